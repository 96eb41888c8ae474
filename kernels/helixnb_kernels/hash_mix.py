"""HashMix: an FNV-1a style fold of the inputs, then rounds of a rotate-xor-multiply mix.

The formula is HelixRouter's; the finaliser in the fold is MurmurHash3's ``fmix64``, and the
constants of the rounds are the golden ratio and SplitMix64's. All arithmetic is modulo 2**64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from helixnb_kernels._inputs import UInt64Array, as_uint64, as_uint64_vector
from helixnb_kernels._jit import compile_once, jit
from helixnb_kernels._kernel import BATCH_OF_UINT64, SOLO_OF_UINT64, Kernel

_FNV_OFFSET = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)
_FMIX_1 = np.uint64(0xFF51AFD7ED558CCD)
_FMIX_2 = np.uint64(0xC4CEB9FE1A85EC53)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SPLITMIX = np.uint64(0xBF58476D1CE4E5B9)
_S7, _S33, _S57 = np.uint64(7), np.uint64(33), np.uint64(57)
_ONE, _COST_PER_ROUND = np.uint64(1), np.uint64(64)


@jit("uint64(uint64[::1], uint64)")
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


@jit(SOLO_OF_UINT64)
def _solo(inputs: UInt64Array, compute_cost: np.uint64, job_id: np.uint64) -> np.uint64:
    return _chain(inputs, max(compute_cost // _COST_PER_ROUND, _ONE))


def _batch(flat: Any, offsets: Any, costs: Any, ids: Any, out: Any) -> None:
    for i in prange(len(out)):
        out[i] = _solo(flat[offsets[i] : offsets[i + 1]], costs[i], ids[i])


_serial = jit(BATCH_OF_UINT64)(_batch)
_parallel = jit(BATCH_OF_UINT64, parallel=True)(_batch)


def _work(compute_cost: int, inputs: int) -> float:
    """Count rounds; folding an input takes about as long as three of them."""
    return max(compute_cost // 64, 1) + 3.0 * inputs


HASH_MIX = Kernel(
    name="HashMix",
    result_dtype=np.dtype(np.uint64),
    needs=(_chain,),
    solo=_solo,
    serial=_serial,
    parallel=_parallel,
    work=_work,
    ns_per_work=1.8,
)


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
    values = as_uint64_vector(inputs, "inputs")
    count = as_uint64(rounds, "rounds")
    compile_once(_chain)
    return int(_chain(values, np.uint64(count)))
