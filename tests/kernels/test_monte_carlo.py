"""MonteCarlo's short cuts against drawing, sorting and picking."""

from __future__ import annotations

import json

import numba
import numpy as np
import numpy.typing as npt
import pytest
from support import python

from helixnb_kernels import monte_carlo_var, reference
from helixnb_kernels.monte_carlo import _JUMP, _KEPT, _STEPS, _pick_by_digits

STUCK = 0x123456789ABCDEF0
U = np.uint64


@numba.njit  # type: ignore[untyped-decorator]  # untyped
def _draws(seed: U, simulations: int) -> npt.NDArray[U]:
    s = U(STUCK) ^ seed
    draws = np.empty(simulations, np.uint64)
    for i in range(simulations):
        s ^= s >> U(12)
        s ^= s << U(25)
        s ^= s >> U(27)
        draws[i] = s * U(0x2545F4914F6CDD1D)
    return draws


def answer(simulations: int, seed: int) -> float:
    """Return the value at risk without inputs, by sorting all draws."""
    draw = int(np.sort(_draws(U(seed), simulations))[int(simulations * 0.05)])
    u = (float(draw) / float(2**64 - 1)) * 2.0 - 1.0
    return 0.0 + (u * 0.05) * 1.0


@pytest.mark.parametrize("seed", [0, 1, STUCK, 2**64 - 1])
def test_every_small_number_of_simulations(seed: int) -> None:
    """Blocks that are full, partial or empty give the same quantile as sorting."""
    for simulations in [*range(1, 400), *range(2_040, 2_060), *range(4_090, 4_200, 7)]:
        assert monte_carlo_var([], simulations, seed) == answer(simulations, seed), simulations


@pytest.mark.parametrize("seed", [7, STUCK])
@pytest.mark.parametrize("simulations", [5_000, 50_000, 200_001, 1_000_000, 3_000_017])
def test_large_numbers_of_simulations(simulations: int, seed: int) -> None:
    """So does keeping only the draws near the quantile, even where all draws are equal."""
    assert monte_carlo_var([], simulations, seed) == answer(simulations, seed)


def test_the_fallback_gives_the_same() -> None:
    """Where the quantile isn't near its place, it is found digit by digit."""

    @numba.njit  # type: ignore[untyped-decorator]  # untyped
    def by_digits(seed: U, simulations: int, rank: int) -> U:
        draw: U = _pick_by_digits(U(STUCK) ^ seed, simulations, rank)
        return draw

    for simulations in (1, 100, 2_048, 10_001):
        draws = np.sort(_draws(U(3), simulations))
        for rank in {0, simulations // 20, simulations - 1}:
            assert by_digits(U(3), simulations, rank) == draws[rank]


def test_the_jump_table() -> None:
    """Looking up eight bytes is as good as that many steps of the generator."""
    for start in (1, STUCK, 2**64 - 1, 0xDEADBEEF):
        s, jumped = start, 0
        for byte in range(8):
            jumped ^= int(_JUMP[byte, s >> 8 * byte & 255])
        for _ in range(_STEPS):
            s ^= s >> 12
            s = (s ^ (s << 25)) & (2**64 - 1)
            s ^= s >> 27
        assert jumped == s


def test_equals_the_oracle_with_inputs() -> None:
    """Inputs shift mean and volatility as in the formula."""
    inputs = [2**64 - 1, 12_345, 0]
    expected = reference.monte_carlo_var(inputs, 60_000, 9)
    assert monte_carlo_var(inputs, 60_000, 9) == expected


@pytest.mark.slow
def test_memory_doesnt_grow_with_the_simulations() -> None:
    """A hundred million simulations need no more than a million."""
    program = """
import json, resource
from helixnb_kernels import monte_carlo_var
peaks = []
for simulations in (10**6, 10**8):
    monte_carlo_var([], simulations, 1)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(json.dumps(peaks))
"""
    pytest.importorskip("resource")
    done = python("-c", program)
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)
    assert second - first < 2_000  # KiB on Linux; all draws would be 800 MB
    assert 8 * 3 * _KEPT < 1e6
