"""MonteCarlo: value at risk, the 5 % quantile of simulated returns.

The formula is HelixRouter's. Draws come from xorshift64* (S. Vigna, "An experimental exploration
of Marsaglia's xorshift generators, scrambled", ACM TOMS 42(4), 2016). Doubles follow IEEE 754 in
the order of operations written here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from helixnb_kernels._inputs import UInt64Array, as_uint64, as_uint64_vector
from helixnb_kernels._jit import compile_once, jit
from helixnb_kernels._kernel import BATCH_OF_FLOAT64, SOLO_OF_FLOAT64, Kernel

MIN_SIMULATIONS, MAX_SIMULATIONS = 5_000, 50_000
"""A job runs ``compute_cost // 200`` simulations, clamped to this range (both ends included)."""

LARGEST_SIMULATIONS = 2**40

_LOW, _HIGH = np.uint64(MIN_SIMULATIONS), np.uint64(MAX_SIMULATIONS)
_COST_PER_SIMULATION = np.uint64(200)
_SEED = np.uint64(0x123456789ABCDEF0)
_STAR = np.uint64(0x2545F4914F6CDD1D)
_S12, _S13, _S25, _S27, _S51 = (np.uint64(s) for s in (12, 13, 25, 27, 51))
_F = 18446744073709551615.0  # float(2**64 - 1), which rounds up to 2**64
_QUANTILE = 0.05
_ZERO, _DIGIT_BITS, _TOP_DIGIT = np.uint64(0), np.uint64(8), np.uint64(56)
_BUCKETS, _DIGIT = 256, np.uint64(255)


@jit("uint64(uint64[::1], int64)")
def _select(values: UInt64Array, rank: int) -> np.uint64:
    """Return the value of that rank (from 0), by radix selection; the array is used as scratch."""
    size = len(values)
    shift = _TOP_DIGIT
    counts = np.empty(_BUCKETS, np.int64)
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


@jit("float64(uint64[::1], int64, uint64)")
def _value_at_risk(inputs: UInt64Array, simulations: np.int64, seed: np.uint64) -> float:
    mean = 0.0
    volatility = 1.0
    for v in inputs:
        mean += (np.float64(v) / _F) * 0.0001
        rotated = (v << _S13) | (v >> _S51)
        volatility += ((np.float64(rotated) / _F) - 0.5) * 0.01
    scale = max(volatility, 0.1)

    draws = np.empty(simulations, np.uint64)
    s = _SEED ^ seed
    for i in range(simulations):
        s ^= s >> _S12
        s ^= s << _S25
        s ^= s >> _S27
        draws[i] = s * _STAR
    # A return never falls as its draw rises, so the quantile can be picked among the integers.
    draw = _select(draws, int(simulations * _QUANTILE))
    u = (np.float64(draw) / _F) * 2.0 - 1.0
    return mean + (u * 0.05) * scale


@jit(SOLO_OF_FLOAT64)
def _solo(inputs: UInt64Array, compute_cost: np.uint64, job_id: np.uint64) -> float:
    simulations = np.int64(min(max(compute_cost // _COST_PER_SIMULATION, _LOW), _HIGH))
    return _value_at_risk(inputs, simulations, job_id)


def _batch(flat: Any, offsets: Any, costs: Any, ids: Any, out: Any) -> None:
    for i in prange(len(out)):
        out[i] = _solo(flat[offsets[i] : offsets[i + 1]], costs[i], ids[i])


_serial = jit(BATCH_OF_FLOAT64)(_batch)
_parallel = jit(BATCH_OF_FLOAT64, parallel=True)(_batch)


def _work(compute_cost: int, inputs: int) -> float:
    """Count simulations; an input's term takes about as long as one of them."""
    return float(min(max(compute_cost // 200, MIN_SIMULATIONS), MAX_SIMULATIONS) + inputs)


MONTE_CARLO = Kernel(
    name="MonteCarlo",
    result_dtype=np.dtype(np.float64),
    needs=(_select, _value_at_risk),
    solo=_solo,
    serial=_serial,
    parallel=_parallel,
    work=_work,
    ns_per_work=3.0,
)


def monte_carlo_var(inputs: Any, simulations: int, seed: int) -> float:
    """Simulate returns and give the one at the 5 % quantile.

    Parameters
    ----------
    inputs
        One-dimensional sequence or array of integers in 0 .. 2**64-1; may be empty. Each shifts
        the mean (by up to 0.0001) and the volatility (by up to 0.005) of the returns.
    simulations
        Number of simulated returns, 1 .. 2**40; each takes 8 bytes of memory.
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
    values = as_uint64_vector(inputs, "inputs")
    count = as_uint64(simulations, "simulations")
    if not 1 <= count <= LARGEST_SIMULATIONS:
        raise ValueError(f"simulations must lie in 1 .. 2**40, got {count}")
    seed = as_uint64(seed, "seed")
    compile_once(_select)
    compile_once(_value_at_risk)
    return float(_value_at_risk(values, np.int64(count), np.uint64(seed)))
