"""The kernel record, and batches whose jobs fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import prange
from support import PICKY, Picky

from helixnb_kernels import (
    HASH_MIX,
    Kernel,
    parallel_is_safe,
    parallel_region_is_free,
    warm_up,
)
from helixnb_kernels._jit import jit
from helixnb_kernels._kernel import BATCH_OF_UINT64

INPUTS = [np.empty(0, np.uint64)] * 3


def solo(inputs: Any, compute_cost: int, job_id: int) -> int:
    return job_id


def test_a_batch_needs_a_batch_form() -> None:
    """A kernel without one says so."""
    with pytest.raises(ValueError, match="kernel Picky has no batch form: run its jobs solo"):
        PICKY.run_batch(INPUTS, [1] * 3, [1, 2, 3], 1)


def test_a_batch_form_that_raises() -> None:
    """Its error is the caller's, and the parallel region is free again."""

    def batch(flat: Any, offsets: Any, costs: Any, ids: Any, out: Any) -> None:
        raise Picky

    dtype = np.dtype(np.int64)
    kernel = Kernel(name="K", solo=solo, serial=batch, parallel=batch, result_dtype=dtype)
    for threads in (1, 2):
        with pytest.raises(Picky):
            kernel.run_batch(INPUTS, [1] * 3, [1, 2, 3], threads)
    assert parallel_region_is_free()


def test_the_parallel_form_runs_only_once_it_is_warm() -> None:
    """A form that would have to compile first isn't used: compiling isn't running."""

    @jit(BATCH_OF_UINT64, parallel=True)
    def cold(flat: Any, offsets: Any, costs: Any, ids: Any, out: Any) -> None:
        for i in prange(len(out)):
            out[i] = ids[i]

    kernel = Kernel(
        name="K", solo=solo, serial=cold, parallel=cold, result_dtype=np.dtype(np.uint64)
    )
    assert not kernel.can_run_parallel
    warm_up([kernel])
    assert kernel.can_run_parallel is parallel_is_safe()


def test_an_empty_batch() -> None:
    """A batch of no jobs gives no values."""
    warm_up([HASH_MIX])
    assert HASH_MIX.run_batch([], [], [], 2).values == []


def test_predicted_time_follows_work() -> None:
    """The prediction is work times nanoseconds a unit; work is the cost by default."""
    kernel = Kernel(name="K", solo=solo, ns_per_work=2.5)
    assert kernel.predict_ns(4, 0) == 10.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, "name must be a non-empty string, got ''"),
        ({"name": "K", "serial": solo}, "kernel K: a batch form needs a result_dtype"),
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
