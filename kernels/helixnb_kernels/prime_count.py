"""PrimeCount: the number of primes up to n, by a segmented sieve over odd numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from helixnb_kernels._define import kernel
from helixnb_kernels._inputs import Array, UInt64Array, as_uint64
from helixnb_kernels._jit import compile_once, helper, jit
from helixnb_kernels._order import order_of
from helixnb_kernels._threads import max_threads, parallel_is_safe, parallel_region

MIN_N, MAX_N = 10_000, 250_000
"""A job's n is its compute cost, clamped to this range (both ends included)."""

LARGEST_N = 10**14
"""The largest n of `prime_count`: its table of base primes stays within 5 MB."""

PARALLEL_N = 4_000_000
"""From here on `prime_count` uses several threads: about 1 ms of work, several launches' worth."""

_LOW, _HIGH, _ONE = np.uint64(MIN_N), np.uint64(MAX_N), np.uint64(1)

# Index i stands for the odd number 2*i + 1, one byte each. A segment stays in the L1 cache.
_SEGMENT = 1 << 15
_PERIOD = 3 * 5 * 7 * 11 * 13


def _wheel() -> Array:
    """Return which odd numbers 3, 5, 7, 11 and 13 leave, over the period of that pattern."""
    left = np.ones(_PERIOD, np.uint8)
    for p in (3, 5, 7, 11, 13):
        left[p // 2 :: p] = 0
    return left


_WHEEL = _wheel()
_WHEEL_PRIMES = 5  # those five, while the number 1, which the wheel leaves, stands in for 2


@helper
def _root(n: Any) -> Any:
    """Return the integer square root."""
    root = np.int64(np.sqrt(n))
    while root * root > n:
        root -= 1
    while (root + 1) * (root + 1) <= n:
        root += 1
    return root


@helper
def _base_primes(limit: Any) -> Any:
    """Return the primes from 17 to `limit`, by a plain sieve."""
    size = limit // 2 + 1
    flags = np.ones(size, np.uint8)
    primes = np.empty(size, np.uint64)
    found = 0
    for i in range(1, size):
        if flags[i]:
            if 2 * i + 1 > 13:
                primes[found] = np.uint64(2 * i + 1)
                found += 1
            j = 2 * i * (i + 1)
            while j < size:  # ten times as fast as a range with a step that isn't constant
                flags[j] = 0
                j += 2 * i + 1
    return primes[:found]


@helper
def _first_multiples(primes: Any, low: Any) -> Any:
    """Return, for each prime, the index of its first odd multiple to strike from `low` on."""
    marks = np.empty(len(primes), np.uint64)
    for k in range(len(primes)):
        p = primes[k]
        square = (p * p) >> _ONE
        behind = np.uint64(low)
        marks[k] = square if square >= behind else square + (behind - square + p - _ONE) // p * p
    return marks


@helper
def _sieve(segment: Any, low: Any, primes: Any, marks: Any) -> None:
    """Sieve the indices from `low` on, as many as the segment has, and move the marks on."""
    at = low % _PERIOD
    start = 0
    while start < len(segment):
        step = min(len(segment) - start, _PERIOD - at)
        target = segment[start : start + step]
        source = _WHEEL[at : at + step]
        for j in range(step):
            target[j] = source[j]
        start += step
        at = 0
    begin, size = np.uint64(low), np.uint64(len(segment))
    for k in range(len(primes)):
        p = primes[k]
        if (p * p) >> _ONE >= begin + size:
            break
        j = marks[k] - begin
        while j < size:
            segment[j] = 0
            j += p
        marks[k] = j + begin


@helper
def _total(flags: Any) -> Any:
    count = np.int64(0)
    for j in range(len(flags)):
        count += np.int64(flags[j])
    return count


@helper
def _small(n: Any) -> Any:
    """Count the primes up to n < 17, for which the wheel is too large."""
    count = np.int64(0)
    for p in (2, 3, 5, 7, 11, 13):
        count += np.int64(p <= n)
    return count


@jit("int64(int64)")
def _count(n: Any) -> Any:
    """Count primes <= n on this thread."""
    if n < 17:
        return _small(n)
    primes = _base_primes(_root(n))
    marks = _first_multiples(primes, 0)
    odds = (n + 1) // 2
    segment = np.empty(min(odds, _SEGMENT), np.uint8)
    count = np.int64(_WHEEL_PRIMES)
    for low in range(0, odds, _SEGMENT):
        flags = segment[: min(_SEGMENT, odds - low)]
        _sieve(flags, low, primes, marks)
        count += _total(flags)
    return count


@jit("int64(int64, int64)", parallel=True)
def _count_parallel(n: Any, parts: Any) -> Any:
    """Count primes <= n, at least 17, on several threads."""
    primes = _base_primes(_root(n))
    odds = (n + 1) // 2
    segments = (odds + _SEGMENT - 1) // _SEGMENT
    counts = np.zeros(parts, np.int64)
    for part in prange(parts):
        first, last = segments * part // parts, segments * (part + 1) // parts
        marks = _first_multiples(primes, first * _SEGMENT)
        segment = np.empty(_SEGMENT, np.uint8)
        for low in range(first * _SEGMENT, min(last * _SEGMENT, odds), _SEGMENT):
            flags = segment[: min(_SEGMENT, odds - low)]
            _sieve(flags, low, primes, marks)
            counts[part] += _total(flags)
    return np.int64(_WHEEL_PRIMES) + _sum(counts)


@helper
def _sum(counts: Any) -> Any:
    total = np.int64(0)
    for count in counts:
        total += count
    return total


def _work(compute_cost: int, inputs: int) -> float:
    """Count the numbers sieved: n. The inputs of a job aren't read."""
    return float(min(max(compute_cost, MIN_N), MAX_N))


def _job(inputs: UInt64Array, compute_cost: np.uint64, job_id: np.uint64) -> np.uint64:
    return np.uint64(_count(np.int64(min(max(compute_cost, _LOW), _HIGH))))


PRIME_COUNT = kernel(name="PrimeCount", returns="uint64", work=_work, ns_per_work=0.16)(_job)


@PRIME_COUNT.batch(parallel=False)  # the one sieve takes less than a launch of threads
def _batch(
    inputs: Any,
    offsets: Any,
    parts: Any,
    compute_cost: Any,
    job_id: Any,
    failed: Any,
    out: Any,
) -> None:
    """Sieve once, up to the largest n, and read off the count of each job in order of n."""
    jobs = len(out)
    if jobs == 0:
        return
    limits = np.empty(jobs, np.int64)
    for i in range(jobs):
        limits[i] = np.int64(min(max(compute_cost[i], _LOW), _HIGH))
    order = order_of(limits)
    largest = limits[order[jobs - 1]]
    primes = _base_primes(_root(largest))
    marks = _first_multiples(primes, 0)
    odds = (largest + 1) // 2
    segment = np.empty(min(odds, _SEGMENT), np.uint8)
    count = np.int64(_WHEEL_PRIMES)
    job = 0
    for low in range(0, odds, _SEGMENT):
        flags = segment[: min(_SEGMENT, odds - low)]
        _sieve(flags, low, primes, marks)
        counted = 0
        while job < jobs and (limits[order[job]] + 1) // 2 - low <= len(flags):
            end = (limits[order[job]] + 1) // 2 - low
            count += _total(flags[counted:end])
            counted = end
            out[order[job]] = np.uint64(count)
            job += 1
        count += _total(flags[counted:])


def prime_count(n: int, *, threads: int | None = None) -> int:
    """Count the primes up to and including n.

    Parameters
    ----------
    n
        0 .. `LARGEST_N` (10**14). Time grows as n log log n; memory as the square root of n.
    threads
        How many threads may be used, at least 1; as many as Numba has by default. Fewer are used
        where n is small or where parallel code isn't safe in this process.

    Raises
    ------
    TypeError
        An argument isn't an integer.
    ValueError
        An argument is out of range.
    """
    limit = as_uint64(n, "n")
    if limit > LARGEST_N:
        raise ValueError(f"n must lie in 0 .. 10**14, got {limit}")
    most = max_threads() if threads is None else as_uint64(threads, "threads")
    if most < 1:
        raise ValueError(f"threads must be at least 1, got {most}")
    most = min(most, max_threads())
    if limit >= PARALLEL_N and most > 1 and parallel_is_safe():
        count = compile_once(_count_parallel)
        with parallel_region(most) as granted:
            if granted:  # some parts a thread, since other programs may slow one of them down
                return int(count(np.int64(limit), np.int64(4 * most)))
    return int(compile_once(_count)(np.int64(limit)))
