"""HashMix: an FNV-1a style fold of the inputs, then rounds of a rotate-xor-multiply mix.

The formula is HelixRouter's; the finaliser in the fold is MurmurHash3's ``fmix64``, and the
constants of the rounds are the golden ratio and SplitMix64's. All arithmetic is modulo 2**64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange, types

from helixnb_kernels._define import kernel
from helixnb_kernels._inputs import UInt64Array, as_uint64, as_vector
from helixnb_kernels._jit import compile_once, helper, jit
from helixnb_kernels._order import order_of
from helixnb_kernels._types import UINT64_INPUTS

_FNV_OFFSET = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)
_FMIX_1 = np.uint64(0xFF51AFD7ED558CCD)
_FMIX_2 = np.uint64(0xC4CEB9FE1A85EC53)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SPLITMIX = np.uint64(0xBF58476D1CE4E5B9)
_S7, _S33, _S57 = np.uint64(7), np.uint64(33), np.uint64(57)
_ZERO, _ONE, _COST_PER_ROUND = np.uint64(0), np.uint64(1), np.uint64(64)
_LANES, _VECTOR = 128, 16  # jobs side by side; and how many drop out at once
_FEW = 4  # lanes that are faster one by one
_NEAR, _ANY = np.uint64(10), np.uint64(2**64 - 1)  # rounds that are faster one by one


@helper
def _mix(x: np.uint64, rounds: np.uint64) -> np.uint64:
    for _ in range(rounds):
        x = (((x << _S7) | (x >> _S57)) ^ _GOLDEN) * _SPLITMIX
    return x


@jit(types.uint64(UINT64_INPUTS, types.uint64))
def _chain(inputs: UInt64Array, rounds: np.uint64) -> np.uint64:
    x = _FNV_OFFSET
    for v in inputs:
        x ^= v
        x *= _FNV_PRIME
        x ^= x >> _S33
        x *= _FMIX_1
        x ^= x >> _S33
        x *= _FMIX_2
        x ^= x >> _S33
    for _ in range(rounds):
        x = ((x << _S7) | (x >> _S57)) ^ _GOLDEN
        x *= _SPLITMIX
    return x


def _work(compute_cost: int, inputs: int) -> float:
    """Count rounds; folding an input takes about as long as three of them."""
    return max(compute_cost // 64, 1) + 3.0 * inputs


def _job(inputs: UInt64Array, compute_cost: np.uint64, job_id: np.uint64) -> np.uint64:
    return _chain(inputs, max(compute_cost // _COST_PER_ROUND, _ONE))


HASH_MIX = kernel(name="HashMix", returns="uint64", work=_work, ns_per_work=1.8)(_job)


@helper
def _advance(lanes: UInt64Array, rounds: np.uint64) -> None:
    """Mix all lanes side by side.

    The lanes are innermost: they fill vector registers, and as many vectors as fit hide the
    latency of the multiplication.
    """
    for _ in range(rounds):
        for lane in range(len(lanes)):
            x = lanes[lane]
            lanes[lane] = (((x << _S7) | (x >> _S57)) ^ _GOLDEN) * _SPLITMIX


@HASH_MIX.batch()
def _batch(
    inputs: Any,
    offsets: Any,
    parts: Any,
    compute_cost: Any,
    job_id: Any,
    failed: Any,
    out: Any,
) -> None:
    """Run jobs in groups of similar length, one a lane.

    In a group the lanes stand in order of their rounds, at its end. All advance to where the next
    one is done; those that are done drop out by whole vectors, so that the inner loop has no
    remainder. Lanes that are nearly done, and the last few of a group, finish one by one.
    """
    for part in prange(len(parts) - 1):
        first, jobs = parts[part], parts[part + 1] - parts[part]
        rounds = np.empty(jobs, np.uint64)
        for i in range(jobs):
            rounds[i] = max(compute_cost[first + i] // _COST_PER_ROUND, _ONE)
        order = order_of(rounds)
        lanes = np.zeros(_LANES, np.uint64)
        for start in range(0, jobs, _LANES):
            group = order[start : start + _LANES]
            unused = _LANES - len(group)
            for k in range(len(group)):
                i = first + group[k]
                lanes[unused + k] = _chain(inputs[offsets[i] : offsets[i + 1]], _ZERO)
            advanced = _ZERO
            k = 0
            while k < len(group):
                near = _ANY
                if len(group) - k > _FEW:
                    ahead = rounds[group[k]] - advanced
                    _advance(lanes[(unused + k) // _VECTOR * _VECTOR :], ahead)
                    advanced += ahead
                    near = _NEAR
                while k < len(group) and rounds[group[k]] - advanced <= near:
                    i = group[k]
                    out[first + i] = _mix(lanes[unused + k], rounds[i] - advanced)
                    k += 1


def hash_mix(inputs: Any, rounds: int) -> int:
    """Hash `inputs` and mix the result for a number of rounds.

    Parameters
    ----------
    inputs
        One-dimensional sequence or array of integers in 0 .. 2**64-1; may be empty.
    rounds
        Number of mixing rounds, 0 .. 2**64-1.

    Returns
    -------
    int
        The hash, 0 .. 2**64-1.

    Raises
    ------
    TypeError
        A value isn't an integer.
    ValueError
        A value is out of range, or `inputs` has several dimensions.
    """
    values = as_vector(inputs, np.dtype(np.uint64), "inputs")
    count = as_uint64(rounds, "rounds")
    return int(compile_once(_chain)(values, np.uint64(count)))
