"""MonteCarlo: value at risk, the 5 % quantile of simulated returns.

The formula is HelixRouter's. Draws come from xorshift64* (S. Vigna, "An experimental exploration
of Marsaglia's xorshift generators, scrambled", ACM TOMS 42(4), 2016). Doubles follow IEEE 754 in
the order of operations written here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from helixnb_kernels._define import kernel
from helixnb_kernels._inputs import UInt64Array, as_uint64, as_vector
from helixnb_kernels._jit import compile_once, helper, jit
from helixnb_kernels._types import UINT64_INPUTS

MIN_SIMULATIONS, MAX_SIMULATIONS = 5_000, 50_000
"""A job runs ``compute_cost // 200`` simulations, clamped to this range (both ends included)."""

LARGEST_SIMULATIONS = 2**40

_LOW, _HIGH = np.uint64(MIN_SIMULATIONS), np.uint64(MAX_SIMULATIONS)
_COST_PER_SIMULATION = np.uint64(200)
_SEED = np.uint64(0x123456789ABCDEF0)
_STAR = np.uint64(0x2545F4914F6CDD1D)
_S12, _S13, _S25, _S27, _S51 = (np.uint64(s) for s in (12, 13, 25, 27, 51))
_ZERO, _TOP_DIGIT, _DIGIT_BITS, _DIGIT = (np.uint64(n) for n in (0, 56, 8, 255))
_F = 18446744073709551615.0  # float(2**64 - 1), which rounds up to 2**64
_QUANTILE = 0.05

_LANES, _STEPS = 32, 64  # generator streams side by side, and the draws of each in a block
_BLOCK = _LANES * _STEPS
_KEPT = 1 << 15  # draws kept at most, so that scratch memory doesn't grow with the simulations


def _jump_table() -> UInt64Array:
    """Return what `_STEPS` steps of the generator make of each byte of its state.

    A step is linear over GF(2), so many steps are one matrix, and the matrix is eight tables
    whose entries are combined by exclusive or (S. Vigna, as above, section 5, on jumping).
    """
    state = np.uint64(1) << np.arange(64, dtype=np.uint64)
    for _ in range(_STEPS):
        state ^= state >> _S12
        state ^= state << _S25
        state ^= state >> _S27
    table = np.zeros((8, 256), np.uint64)
    for bit in range(8):
        has_bit = (np.arange(256) >> bit & 1).astype(bool)
        table[:, has_bit] ^= state.reshape(8, 8)[:, bit, np.newaxis]
    return table


_JUMP = _jump_table()


@helper
def _jump(s: np.uint64) -> np.uint64:
    """Return the state `_STEPS` steps after `s`."""
    after = _ZERO
    for byte in range(8):
        after ^= _JUMP[byte, (s >> np.uint64(8 * byte)) & _DIGIT]
    return after


@helper
def _draw(states: UInt64Array, draws: UInt64Array) -> None:
    """Advance all streams `_STEPS` steps; ``draws`` takes one row of all streams a step."""
    for step in range(_STEPS):
        row = draws[step * _LANES : step * _LANES + len(states)]
        for lane in range(len(states)):
            s = states[lane]
            s ^= s >> _S12
            s ^= s << _S25
            s ^= s >> _S27
            states[lane] = s
            row[lane] = s * _STAR


@helper
def _next_block(first: Any, left: Any, states: UInt64Array, draws: UInt64Array) -> Any:
    """Fill ``draws`` with the next draws of one stream, in any order.

    Returns the state after them, and how many they are: `_BLOCK`, or what is left. Streams that
    start `_STEPS` steps apart run side by side, since one alone waits for itself at each step.
    """
    if left >= _BLOCK:
        s = first
        for lane in range(_LANES):
            states[lane] = s
            s = _jump(s)
        _draw(states, draws)
        return s, _BLOCK
    full = left // _STEPS
    s = first
    for lane in range(full):
        states[lane] = s
        s = _jump(s)
    _draw(states[:full], draws)
    for step in range(_STEPS):  # rows were a whole block apart
        for lane in range(full):
            draws[step * full + lane] = draws[step * _LANES + lane]
    for i in range(full * _STEPS, left):
        s ^= s >> _S12
        s ^= s << _S25
        s ^= s >> _S27
        draws[i] = s * _STAR
    return s, left


@helper
def _count_below(draws: UInt64Array, bound: np.uint64) -> Any:
    count = np.int64(0)
    for i in range(len(draws)):
        count += np.int64(draws[i] < bound)
    return count


@helper
def _keep(draws: UInt64Array, low: np.uint64, width: np.uint64, kept: UInt64Array, n: Any) -> Any:
    """Append the draws in ``low <= draw < low + width``; a branch on each would be mispredicted."""
    end = np.uint64(n)
    for i in range(len(draws)):
        kept[end] = draws[i]
        end += np.uint64(draws[i] - low < width)
    return np.int64(end)


@helper
def _select(values: UInt64Array, rank: Any) -> np.uint64:
    """Return the value of that rank (from 0), by radix selection; the array is used as scratch."""
    size = len(values)
    shift = _TOP_DIGIT
    counts = np.empty(256, np.int64)
    while size > 1:
        counts[:] = 0
        for i in range(size):
            counts[(values[i] >> shift) & _DIGIT] += 1
        bucket = 0
        while rank >= counts[bucket]:
            rank -= counts[bucket]
            bucket += 1
        kept = 0
        for i in range(size):
            if (values[i] >> shift) & _DIGIT == np.uint64(bucket):
                values[kept] = values[i]
                kept += 1
        size = kept
        if shift == _ZERO:
            break
        shift -= _DIGIT_BITS
    return values[0]  # type: ignore[no-any-return]  # a uint64


@helper
def _pick(seed: Any, simulations: Any, rank: Any, low: Any, width: Any) -> Any:
    """Return the draw of that rank if it lies in ``low <= draw < low + width``, and whether."""
    size = min(simulations, _BLOCK)
    draws = np.empty(_BLOCK, np.uint64)
    states = np.empty(_LANES, np.uint64)
    kept = np.empty(min(simulations, _KEPT) + size + 1, np.uint64)
    s = seed
    below, count, left = np.int64(0), np.int64(0), simulations
    while left > 0:
        s, made = _next_block(s, left, states, draws)
        left -= made
        block = draws[:made]
        if low > _ZERO:
            below += _count_below(block, low)
        count = _keep(block, low, width, kept, count)
        if count > _KEPT:
            return _ZERO, False
    if below <= rank < below + count:
        return _select(kept[:count], rank - below), True
    return _ZERO, False


@helper
def _pick_by_digits(seed: Any, simulations: Any, rank: Any) -> Any:
    """Return the draw of that rank, digit by digit, generating the draws anew for each."""
    draws = np.empty(_BLOCK, np.uint64)
    states = np.empty(_LANES, np.uint64)
    counts = np.empty(256, np.int64)
    prefix = _ZERO
    for digit in range(8):
        shift = np.uint64(56 - 8 * digit)
        counts[:] = 0
        s, left = seed, simulations
        while left > 0:
            s, made = _next_block(s, left, states, draws)
            left -= made
            for i in range(made):
                if digit == 0 or draws[i] >> (shift + _DIGIT_BITS) == prefix:
                    counts[(draws[i] >> shift) & _DIGIT] += 1
        bucket = 0
        while rank >= counts[bucket]:
            rank -= counts[bucket]
            bucket += 1
        prefix = (prefix << _DIGIT_BITS) | np.uint64(bucket)
    return prefix


@helper
def _quantile_draw(seed: Any, simulations: Any) -> Any:
    """Return the draw at the quantile.

    Draws are spread evenly, so it lies near `_QUANTILE` * 2**64: six standard deviations to either
    side miss it once in 10**9 seeds, and then it is found digit by digit. From 10**8 simulations
    on that would be more draws than are kept, and it is looked for nearer.
    """
    rank = np.int64(simulations * _QUANTILE)
    deviation = 6.0 * np.sqrt(_QUANTILE * (1.0 - _QUANTILE) / simulations)
    deviation = min(deviation, 0.4 * _KEPT / simulations) if simulations > _KEPT else deviation
    high = _QUANTILE + deviation + 2.0 / simulations
    if high < 1.0:
        low = 0.0
        if simulations * high > _KEPT // 2:  # so many that only those near it can be kept
            low = max(0.0, _QUANTILE - deviation - 2.0 / simulations)
        start = np.uint64(low * _F)
        draw, found = _pick(seed, simulations, rank, start, np.uint64(high * _F) - start)
        if found:
            return draw
    return _pick_by_digits(seed, simulations, rank)


@jit(types.float64(UINT64_INPUTS, types.int64, types.uint64))
def _value_at_risk(inputs: UInt64Array, simulations: Any, seed: Any) -> float:
    mean = 0.0
    volatility = 1.0
    for v in inputs:
        mean += (np.float64(v) / _F) * 0.0001
        rotated = (v << _S13) | (v >> _S51)
        volatility += ((np.float64(rotated) / _F) - 0.5) * 0.01
    # A return never falls as its draw rises, so the quantile can be picked among the integers.
    draw = _quantile_draw(_SEED ^ seed, simulations)
    u = (np.float64(draw) / _F) * 2.0 - 1.0
    return mean + (u * 0.05) * max(volatility, 0.1)


def _work(compute_cost: int, inputs: int) -> float:
    """Count simulations; an input's term takes about as long as one of them."""
    return float(min(max(compute_cost // 200, MIN_SIMULATIONS), MAX_SIMULATIONS) + inputs)


def _job(inputs: UInt64Array, compute_cost: np.uint64, job_id: np.uint64) -> float:
    simulations = np.int64(min(max(compute_cost // _COST_PER_SIMULATION, _LOW), _HIGH))
    return _value_at_risk(inputs, simulations, job_id)


MONTE_CARLO = kernel(name="MonteCarlo", returns="float64", work=_work, ns_per_work=1.1)(_job)


def monte_carlo_var(inputs: Any, simulations: int, seed: int) -> float:
    """Simulate returns and give the one at the 5 % quantile.

    Parameters
    ----------
    inputs
        One-dimensional sequence or array of integers in 0 .. 2**64-1; may be empty. Each shifts
        the mean (by up to 0.0001) and the volatility (by up to 0.005) of the returns.
    simulations
        Number of simulated returns, 1 .. 2**40. Memory stays below 1 MB however many.
    seed
        Seed of the generator, 0 .. 2**64-1; a job passes its id. For 0x123456789ABCDEF0 the
        generator stands still at zero, as it did in HelixRouter.

    Returns
    -------
    float
        The return at index ``floor(simulations * 0.05)`` of the sorted returns.

    Raises
    ------
    TypeError
        A value isn't an integer.
    ValueError
        A value is out of range, or `inputs` has several dimensions.
    """
    values = as_vector(inputs, np.dtype(np.uint64), "inputs")
    count = as_uint64(simulations, "simulations")
    if not 1 <= count <= LARGEST_SIMULATIONS:
        raise ValueError(f"simulations must lie in 1 .. 2**40, got {count}")
    seed = as_uint64(seed, "seed")
    return float(compile_once(_value_at_risk)(values, np.int64(count), np.uint64(seed)))
