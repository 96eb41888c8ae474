"""Inputs that are converted in a thread: left, late, wrong, and many at once."""

from __future__ import annotations

import copy
import threading
from fractions import Fraction
from typing import Any

import anyio
import numpy as np
import pandas as pd
import polars as pl
import pytest
from support import check_balanced

from helixnb import Job, JobBlock, JobColumns, JobError, Kernel, Router, RouterConfig, Status

pytestmark = pytest.mark.anyio

CONFIG = RouterConfig(cpu_parallelism=2)


def _total(inputs: Any, compute_cost: int, job_id: int) -> float:
    total: float = inputs.sum()
    return total


TOTAL = Kernel(name="Total", solo=_total, inputs="float64[:]", returns="float64")


class Slow:
    """An object whose array takes until somebody lets it go."""

    def __init__(self, array: Any = (1.0, 2.0)) -> None:
        self.begun, self.goes_on = threading.Event(), threading.Event()
        self.array = np.array(array)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        self.begun.set()
        if not self.goes_on.wait(30):
            raise TimeoutError("nobody let it go")
        return self.array


class Raises:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise self.error


def job(inputs: Any, **fields: Any) -> Job:
    return Job(id=1, kind="Total", inputs=inputs, compute_cost=1, **fields)


async def begun(*slow: Slow) -> None:
    for each in slow:
        await anyio.to_thread.run_sync(each.begun.wait, 30)


@pytest.mark.parametrize("many", [False, True])
async def test_whoever_waits_for_a_conversion_may_leave(many: bool) -> None:
    """At once; nothing is in the books then, and the router closes though the thread goes on."""
    slow = Slow()
    async with Router(CONFIG, kernels=[TOTAL]) as router:
        async with anyio.create_task_group() as tasks:
            if many:
                tasks.start_soon(router.submit_many, [job(slow)])
            else:
                tasks.start_soon(router.submit, job(slow))
            await begun(slow)
            tasks.cancel_scope.cancel()
        assert router.stats().submitted == 0
    slow.goes_on.set()
    check_balanced(router.stats())


async def test_it_counts_against_the_budget() -> None:
    """A job whose inputs don't come in time is dropped, and said to be late."""
    slow = Slow()
    async with Router(CONFIG, kernels=[TOTAL]) as router:
        outcome = await router.submit(job(slow, latency_budget_ms=50.0))
        slow.goes_on.set()
        assert (outcome.status, outcome.reason) == (Status.DROPPED, "expired")
        assert router.stats().dropped_by_reason == {"expired": 1}
    check_balanced(router.stats())


async def test_those_that_stand_still_keep_nobody() -> None:
    slow = [Slow() for _ in range(12)]
    outcomes: list[Any] = []

    async def submit(each: Any) -> None:
        outcomes.append(await router.submit(job(each)))

    async with Router(CONFIG, kernels=[TOTAL]) as router, anyio.create_task_group() as tasks:
        for each in slow:
            tasks.start_soon(submit, each)
        await begun(*slow)
        assert (await router.submit(job([1.0] * 10_000))).value == 10_000.0
        assert (await router.submit_many([job([1.0] * 10_000)]))[0].value == 10_000.0
        for each in slow:
            each.goes_on.set()
    assert [each.value for each in outcomes] == [3.0] * 12
    check_balanced(router.stats())


@pytest.mark.parametrize(
    "error",
    [
        OSError("no\nfile"),
        RuntimeError("x" * 500),
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_it_raises_is_the_jobs_own(error: BaseException) -> None:
    """In one line; the router goes on."""
    async with Router(CONFIG, kernels=[TOTAL]) as router:
        for call in (
            lambda: router.submit(job(Raises(error))),
            lambda: router.submit_many([job([1.0]), job(Raises(error))]),
        ):
            with pytest.raises(JobError) as caught:
                await call()
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) <= 200
            assert type(error).__name__ in str(caught.value)
        assert (await router.submit(job([1.0]))).value == 1.0
    check_balanced(router.stats())


async def test_a_kernel_that_takes_its_place_meanwhile_converts_anew() -> None:
    """What was given, and not what the other one has made of it."""

    def last(inputs: Any, compute_cost: int, job_id: int) -> int:
        return int(inputs[-1])

    exact = Kernel(name="Total", solo=last, inputs="int64[:]")
    slow = Slow([1, 2**60 + 1])
    outcomes: list[Any] = []

    async def submit() -> None:
        outcomes.append(await router.submit(job(slow)))

    async with Router(CONFIG, kernels=[TOTAL]) as router, anyio.create_task_group() as tasks:
        tasks.start_soon(submit)
        await begun(slow)
        await router.replace_kernel(exact)
        slow.goes_on.set()
    assert outcomes[0].value == 2**60 + 1


def test_what_takes_long_together_is_told() -> None:
    """By the sum over a call's jobs, and by what is in lists."""
    assert TOTAL.takes_at_once([1.0] * 4_000)
    assert not TOTAL.takes_at_once([Fraction(1, 2)] * 4_000)
    assert not TOTAL.takes_at_once(pd.Series([1.0]))
    assert TOTAL.joins_at_once([[1.0] * 16] * 64)
    assert not TOTAL.joins_at_once([[1.0] * 4_000] * 64)
    assert not TOTAL.joins_at_once([np.ones(100_000)] * 64)
    assert not TOTAL.joins_at_once([np.ones(50_000, np.int32)] * 64)
    assert TOTAL.joins_at_once([np.array(1.0), [], np.ones(16)])


async def test_a_declared_number_is_pythons_own() -> None:
    """Of a kernel in plain Python, by whichever way it runs."""
    async with Router(CONFIG, kernels=[TOTAL]) as router:
        alone = await router.submit(job([1.0]))
        many = await router.submit_many([job([1.0])] * 3)
    assert {type(each.value) for each in (alone, *many)} == {float}


def test_columns_with_one_number_or_nested_nulls() -> None:
    block = JobBlock("K", np.ones((2, 1)), compute_cost=1, params={"p": 2**64 - 1, "q": 2**64})
    assert block.params["p"].tolist() == [2**64 - 1] * 2
    assert block.params["q"].tolist() == [2.0**64] * 2
    nested = pl.Series([[1, None], [2, 3]], dtype=pl.Array(pl.Int64, 2))
    with pytest.raises(JobError, match="inputs must have a real dtype"):
        JobBlock("K", nested, compute_cost=1)
    with pytest.raises(JobError, match=r"kernel_digest must be Kernel.digest, or None, got 5"):
        Job(id=1, kind="K", compute_cost=1, kernel_digest=5)  # type: ignore[arg-type]


async def test_copies_keep_their_errors() -> None:
    """As they are, and as often as wanted; only another process has a copy of them."""

    class Local(Exception):
        pass

    def fails(inputs: Any, compute_cost: int, job_id: int) -> float:
        raise Local("here")

    kernel = Kernel(name="Total", solo=fails, inputs="float64[:]")
    async with Router(CONFIG, kernels=[kernel]) as router:
        one = await router.submit(job([1.0]))
        many = await router.submit_many(JobColumns([JobBlock(kernel, [[1.0]], compute_cost=1)]))
    assert copy.copy(one) is one
    for again in (copy.copy(many), copy.deepcopy(many)):
        assert again[0].error is many[0].error
