"""The kernel record, and batches whose jobs fail."""

from __future__ import annotations

import functools
import gc
import weakref
from typing import Any

import numpy as np
import pytest
from numba import prange
from numba.core.dispatcher import Dispatcher
from support import PICKY, Picky

from helixnb_kernels import (
    BUILT_IN,
    HASH_MIX,
    Kernel,
    kernel,
    parallel_is_safe,
    parallel_region_is_free,
    warm_up,
)
from helixnb_kernels._fork import after_fork_in_child
from helixnb_kernels._jit import jit

INPUTS = [np.empty(0, np.uint64)] * 3


def solo(inputs: Any, compute_cost: int, job_id: int) -> int:
    return job_id


def test_a_batch_needs_a_batch_form() -> None:
    """A kernel without one says so."""
    with pytest.raises(ValueError, match="kernel Picky has no batch form: run its jobs solo"):
        PICKY.run_batch(INPUTS, [1] * 3, [1, 2, 3])


def test_a_batch_form_that_raises() -> None:
    """Its error is the caller's, and the parallel region is free again."""

    def batch(
        inputs: Any, offsets: Any, parts: Any, costs: Any, ids: Any, failed: Any, out: Any
    ) -> None:
        raise Picky

    kernel = Kernel(name="K", solo=solo, serial=batch, parallel=batch, returns="int64")
    for threads in (1, 2):
        with pytest.raises(Picky):
            kernel.run_batch(INPUTS, [1] * 3, [1, 2, 3], threads=threads)
    assert parallel_region_is_free()


def test_the_parallel_form_runs_only_once_it_is_warm() -> None:
    """A form that would have to compile first isn't used: compiling isn't running."""

    @jit(HASH_MIX._shape.batch_signature, parallel=True)
    def cold(
        inputs: Any, offsets: Any, parts: Any, costs: Any, ids: Any, failed: Any, out: Any
    ) -> None:
        for i in prange(len(out)):
            out[i] = ids[i]

    kernel = Kernel(name="K", solo=solo, serial=cold, parallel=cold, returns="uint64")
    assert not kernel.can_run_parallel
    warm_up([kernel])
    assert kernel.can_run_parallel is parallel_is_safe()


def test_an_empty_batch() -> None:
    """A batch of no jobs gives no values."""
    warm_up([HASH_MIX])
    assert HASH_MIX.run_batch([], [], [], threads=2).values == []


def test_predicted_time_follows_work() -> None:
    """The prediction is work times nanoseconds a unit; work is the cost by default."""
    kernel = Kernel(name="K", solo=solo, ns_per_work=2.5)
    assert kernel.predict_ns(4, 0) == 10.0
    assert Kernel(name="K", solo=solo).predict_ns(4, 0) == 4.0


def first(inputs: Any) -> Any:
    return inputs[0]


def test_a_time_is_declared_by_work_and_the_time_of_a_unit() -> None:
    """One of them alone says nothing; for kernels made by hand and by `kernel` alike."""
    fields: dict[str, Any] = {"work": lambda cost, inputs: 1.0, "ns_per_work": 1.0}
    makers: list[Any] = [
        functools.partial(Kernel, name="K", solo=solo),
        lambda **given: kernel(returns="uint64", **given)(first),
    ]
    for make in makers:
        assert make(**fields).declares_time
        assert not make().declares_time
        for name, value in fields.items():
            assert not make(**{name: value}).declares_time
    assert all(each.declares_time for each in BUILT_IN)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, "name must be a non-empty string, got ''"),
        ({"name": "K", "serial": solo}, "kernel K: a batch form needs to declare what it returns"),
        ({"name": "K", "parallel": solo}, "kernel K: a parallel form needs a serial form"),
    ],
)
def test_a_record_that_cant_be(fields: dict[str, Any], message: str) -> None:
    """A kernel that could not run is refused when it is made."""
    with pytest.raises(ValueError, match=message):
        Kernel(solo=solo, **fields)


def test_warm_up_reports_progress() -> None:
    """Progress counts every form up to the total, which is reported too."""
    seen: list[tuple[int, int, str]] = []
    warm_up([HASH_MIX, PICKY], progress=lambda *step: seen.append(step))
    total = seen[0][1]
    assert [done for done, _, _ in seen] == list(range(total + 1))
    assert {name for _, _, name in seen} == {"HashMix", "Picky", ""}


def test_a_form_is_numbas_own_once_it_is_warm() -> None:
    """Nothing stands between a job and its compiled code, which would cost every call."""
    warm_up([HASH_MIX])
    assert isinstance(HASH_MIX.solo, Dispatcher)
    assert isinstance(HASH_MIX.serial, Dispatcher)


def test_what_a_forked_child_calls_is_held_weakly() -> None:
    """Python drops such callbacks last, so one that was held would keep its module alive."""

    def callback() -> None: ...

    known = weakref.ref(after_fork_in_child(callback))
    del callback
    gc.collect()
    assert known() is None
