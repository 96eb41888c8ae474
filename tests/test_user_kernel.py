"""A kernel of one's own, called as a function."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import helixnb
from helixnb import JobError, KernelError


@helixnb.kernel(inputs="float64[:]", returns="float64", params={"rate": "float64"})
def discounted(flows: Any, rate: Any) -> Any:
    if len(flows) == 0:
        raise ValueError("no flows")
    total = 0.0
    for t in range(len(flows)):
        total += flows[t] / (1.0 + rate) ** t
    return total


@helixnb.kernel(returns="uint64[2]", shared={"table": "uint64[:]"})
def looked_up(x: Any, compute_cost: Any, job_id: Any, table: Any, out: Any) -> Any:
    out[0] = compute_cost
    out[1] = table[job_id]


def test_it_has_the_value_of_a_job() -> None:
    """Called before any router knows it, as often as one likes, with what a job is made of."""
    flows = [1.5] * 7
    expected = sum(1.5 / 1.1**t for t in range(7))
    assert discounted(flows, rate=0.1) == pytest.approx(expected, rel=1e-14)
    assert discounted(np.array(flows), rate=0.1) == discounted(flows, rate=0.1)
    big = 2**64 - 1
    looked_up.bind(table=np.array([5, 6, big], np.uint64))
    assert looked_up(compute_cost=big, id=2).tolist() == [big, big]


@pytest.mark.anyio
async def test_it_has_the_value_that_a_router_gives() -> None:
    draw = np.random.default_rng(3)
    series = [draw.normal(size=n) for n in range(1, 30)]
    async with helixnb.Router(kernels=[discounted]) as router:
        outcomes = await router.submit_many([discounted.job(x, rate=0.03) for x in series])
    assert [outcome.value for outcome in outcomes] == [discounted(x, rate=0.03) for x in series]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: discounted(["much"], rate=0.1), TypeError, r"inputs\[0\] must be a real number"),
        (lambda: discounted([1.0]), ValueError, "params must be rate, got none"),
        (lambda: discounted([1.0], rate=0.1, id=-1), JobError, "id must lie in"),
        (lambda: discounted([], rate=0.1), ValueError, "no flows"),
        (looked_up, JobError, "computes with compute_cost, so it must be given"),
    ],
)
def test_what_it_refuses(call: Any, error: type[Exception], message: str) -> None:
    """What a job would be refused for, and what the kernel raises by itself."""
    with pytest.raises(error, match=message):
        call()


def test_shared_arrays_come_first() -> None:
    @helixnb.kernel(inputs="float64[:]", returns="float64", shared={"weights": "float64[:]"})
    def weighted(x: Any, weights: Any) -> Any:
        return x[0] * weights[0]

    with pytest.raises(KernelError, match="bind its shared arrays first"):
        weighted([1.0])


def test_the_decorator_takes_names() -> None:
    """Without parentheses it would be given the function."""
    with pytest.raises(TypeError, match=r"write @kernel\(inputs=\.\.\., returns=\.\.\.\)"):
        make: Any = helixnb.kernel
        make(lambda x: x)
