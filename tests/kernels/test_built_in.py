"""The built-in kernels against plain Python, and their stand-alone functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from helixnb_kernels import (
    BUILT_IN,
    HASH_MIX,
    MONTE_CARLO,
    PRIME_COUNT,
    Kernel,
    hash_mix,
    monte_carlo_var,
    prime_count,
    reference,
    warm_up,
)
from helixnb_kernels._order import order_of

UINT64 = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**63, 2**64 - 1]))
INPUTS = st.lists(UINT64, max_size=12)
COSTS = st.one_of(st.integers(0, 30_000), st.sampled_from([63, 64, 10_000, 250_000, 250_001]))
ORACLES: dict[str, Callable[[Any, int, int], Any]] = {
    "HashMix": reference.hash_mix_job,
    "PrimeCount": reference.prime_count_job,
    "MonteCarlo": reference.monte_carlo_job,
}


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    warm_up(BUILT_IN)


@given(INPUTS, st.integers(0, 200))
def test_hash_mix(inputs: list[int], rounds: int) -> None:
    """hash_mix equals the oracle, with no inputs and no rounds too."""
    assert hash_mix(inputs, rounds) == reference.hash_mix(inputs, rounds)


@given(st.integers(0, 3_000))
@example(2**17 * 2)
@example(2**17 * 2 + 1)
@example(999_983)
def test_prime_count(n: int) -> None:
    """prime_count equals the oracle, also where a segment of the sieve ends."""
    assert prime_count(n) == reference.prime_count(n)


@pytest.mark.parametrize(("n", "primes"), [(10**6, 78_498), (10**7, 664_579), (10**8, 5_761_455)])
def test_prime_count_known_values(n: int, primes: int) -> None:
    """prime_count gives the published values of pi(n)."""
    assert prime_count(n) == primes


@given(INPUTS, st.integers(1, 300), UINT64)
@example([], 1, 0x123456789ABCDEF0)
def test_monte_carlo_var(inputs: list[int], simulations: int, seed: int) -> None:
    """monte_carlo_var equals the oracle to the last bit, for the stuck generator too."""
    assert monte_carlo_var(inputs, simulations, seed) == reference.monte_carlo_var(
        inputs, simulations, seed
    )


@pytest.mark.parametrize("kernel", BUILT_IN, ids=lambda kernel: kernel.name)
@given(data=st.data())
def test_a_batch_is_its_solo_runs(kernel: Kernel, data: st.DataObject) -> None:
    """A batch of ragged jobs gives the very values of solo runs, on one thread and two."""
    jobs = data.draw(st.lists(st.tuples(INPUTS, COSTS, UINT64), max_size=9))
    inputs = [kernel.as_inputs(each) for each, _, _ in jobs]
    costs, ids = [cost for _, cost, _ in jobs], [job_id for _, _, job_id in jobs]
    solo = [kernel.solo(*job) for job in zip(inputs, costs, ids, strict=True)]
    for threads in (1, 2):
        assert kernel.run_batch(inputs, costs, ids, threads=threads).values == solo


@pytest.mark.parametrize("kernel", BUILT_IN, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("cost", [0, 1, 9_999, 40_000])
def test_jobs_equal_the_oracle(kernel: Kernel, cost: int) -> None:
    """A job's cost means to the kernel what it means to the oracle, clamps included."""
    inputs = [3, 2**64 - 1]
    answer = kernel.solo(kernel.as_inputs(inputs), cost, 5)
    assert answer == ORACLES[kernel.name](inputs, cost, 5)


@pytest.mark.parametrize("kernel", BUILT_IN, ids=lambda kernel: kernel.name)
def test_ten_thousand_jobs(kernel: Kernel) -> None:
    """A batch of 10,000 jobs gives each its own value."""
    inputs = [kernel.as_inputs([i]) for i in range(10_000)]
    ids = list(range(10_000))
    result = kernel.run_batch(inputs, [0] * 10_000, ids, threads=2)
    for i in (0, 1, 4_999, 9_999):
        assert result.values[i] == kernel.solo(inputs[i], 0, i)


@pytest.mark.parametrize("kernel", BUILT_IN, ids=lambda kernel: kernel.name)
def test_wrong_dtype_raises(kernel: Kernel) -> None:
    """Compiled code refuses an array of another dtype; it doesn't compile a second version."""
    with pytest.raises(TypeError):
        kernel.solo(np.zeros(3), 1, 1)


def test_work_counts_what_the_kernel_does() -> None:
    """`work` follows the clamps, so that it is proportional to time."""
    assert HASH_MIX.work(0, 0) == 1
    assert HASH_MIX.work(6_400, 0) == 100
    assert PRIME_COUNT.work(0, 9) == PRIME_COUNT.work(10_000, 0) == 10_000
    assert PRIME_COUNT.work(10**9, 0) == 250_000
    assert MONTE_CARLO.work(0, 0) == 5_000
    assert MONTE_CARLO.work(10**9, 0) == 50_000


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: hash_mix([1.5], 1), TypeError, r"inputs\[0\] must be an integer, got 1.5"),
        (lambda: hash_mix([1], -1), ValueError, r"rounds must lie in 0 .. 2\*\*64-1, got -1"),
        (lambda: prime_count(True), TypeError, "n must be an integer, got True"),
        (lambda: prime_count(10**15), ValueError, r"n must lie in 0 .. 10\*\*14, got 10+"),
        (lambda: monte_carlo_var([], 0, 1), ValueError, r"simulations must lie in 1 .. 2\*\*40"),
        (lambda: monte_carlo_var([], 10, 2**64), ValueError, "seed must lie in"),
    ],
)
def test_stand_alone_functions_check_their_input(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    """A wrong argument is refused by name, with the value and what is allowed."""
    with pytest.raises(error, match=message):
        call()


@numba.njit  # type: ignore[untyped-decorator]  # untyped
def _order_of(keys: Any) -> Any:
    return order_of(keys)


KEYS = st.one_of(
    st.lists(UINT64, max_size=200),
    st.lists(st.integers(0, 5), max_size=200),
    st.lists(st.integers(2**63 - 40, 2**63 + 40), max_size=200),
)


@given(KEYS)
@example(list(range(3_000, 0, -1)))
@example([2**64 - 1] + [0, 1] * 2_000)
def test_order_of_keys(keys: list[int]) -> None:
    """Indices come in order of their keys, for keys far apart, close together and equal."""
    order = _order_of(np.array(keys, np.uint64))
    assert sorted(order) == list(range(len(keys)))
    assert [keys[i] for i in order] == sorted(keys)
