"""PrimeCount: the number of primes up to n, by a segmented sieve over odd numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from helixnb_kernels._inputs import UInt64Array, as_uint64
from helixnb_kernels._jit import compile_once, jit
from helixnb_kernels._kernel import BATCH_OF_UINT64, SOLO_OF_UINT64, Kernel

MIN_N, MAX_N = 10_000, 250_000
"""A job's n is its compute cost, clamped to this range (both ends included)."""

LARGEST_N = 10**14
"""The largest n of `prime_count`: its table of base primes stays within 5 MB."""

_LOW, _HIGH = np.uint64(MIN_N), np.uint64(MAX_N)
_SEGMENT = 1 << 17  # odd numbers a segment; one byte each, so a segment stays in the L2 cache


@jit("int64(int64)")
def _count(n: Any) -> Any:
    """Count primes <= n. Index i stands for the odd number 2*i + 1."""
    if n < 2:
        return np.int64(0)
    root = int(np.sqrt(n))
    while root * root > n:
        root -= 1
    while (root + 1) * (root + 1) <= n:
        root += 1
    base = np.ones(root // 2 + 1, np.uint8)
    for i in range(1, (int(np.sqrt(root)) + 1) // 2 + 1):
        if base[i]:
            base[2 * i * (i + 1) :: 2 * i + 1] = 0

    odds = (n + 1) // 2  # indices 0 .. odds-1; index 0 is the number 1, which stands in for 2
    segment = np.empty(min(odds, _SEGMENT), np.uint8)
    count = np.int64(0)
    for low in range(0, odds, _SEGMENT):
        high = min(low + _SEGMENT, odds)
        segment[:] = 1
        for i in range(1, len(base)):
            square = 2 * i * (i + 1)
            if square >= high:
                break
            if base[i]:
                step = 2 * i + 1
                first = (
                    square if square >= low else square + (low - square + step - 1) // step * step
                )
                for j in range(first - low, high - low, step):
                    segment[j] = 0
        for j in range(high - low):
            count += np.int64(segment[j])
    return count


@jit(SOLO_OF_UINT64)
def _solo(inputs: UInt64Array, compute_cost: np.uint64, job_id: np.uint64) -> np.uint64:
    return np.uint64(_count(np.int64(min(max(compute_cost, _LOW), _HIGH))))


def _batch(flat: Any, offsets: Any, costs: Any, ids: Any, out: Any) -> None:
    for i in prange(len(out)):
        out[i] = _solo(flat[offsets[i] : offsets[i + 1]], costs[i], ids[i])


_serial = jit(BATCH_OF_UINT64)(_batch)
_parallel = jit(BATCH_OF_UINT64, parallel=True)(_batch)


def _work(compute_cost: int, inputs: int) -> float:
    """Count the numbers sieved: n. The inputs of a job aren't read."""
    return float(min(max(compute_cost, MIN_N), MAX_N))


PRIME_COUNT = Kernel(
    name="PrimeCount",
    result_dtype=np.dtype(np.uint64),
    needs=(_count,),
    solo=_solo,
    serial=_serial,
    parallel=_parallel,
    work=_work,
    ns_per_work=0.5,
)


def prime_count(n: int) -> int:
    """Count the primes up to and including n.

    Parameters
    ----------
    n
        0 .. `LARGEST_N` (10**14). Time grows as n log log n; memory as the square root of n.

    Raises
    ------
    TypeError
        `n` isn't an integer.
    ValueError
        `n` is out of range.
    """
    limit = as_uint64(n, "n")
    if limit > LARGEST_N:
        raise ValueError(f"n must lie in 0 .. 10**14, got {limit}")
    compile_once(_count)
    return int(_count(np.int64(limit)))
