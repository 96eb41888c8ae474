"""The three kernels in plain Python, for tests and for reading: exact, slow, no dependencies."""

from __future__ import annotations

from collections.abc import Iterable

_MASK = 2**64 - 1


def _rotate_left(x: int, bits: int) -> int:
    return ((x << bits) | (x >> (64 - bits))) & _MASK


def hash_mix(inputs: Iterable[int], rounds: int) -> int:
    """Give what `helixnb_kernels.hash_mix` gives."""
    x = 0xCBF29CE484222325
    for v in inputs:
        x = ((x ^ v) * 0x100000001B3) & _MASK
        x = ((x ^ (x >> 33)) * 0xFF51AFD7ED558CCD) & _MASK
        x = ((x ^ (x >> 33)) * 0xC4CEB9FE1A85EC53) & _MASK
        x ^= x >> 33
    for _ in range(rounds):
        x = ((_rotate_left(x, 7) ^ 0x9E3779B97F4A7C15) * 0xBF58476D1CE4E5B9) & _MASK
    return x


def prime_count(n: int) -> int:
    """Give what `helixnb_kernels.prime_count` gives, with n bytes of memory."""
    if n < 2:
        return 0
    composite = bytearray(n + 1)
    count = 0
    for p in range(2, n + 1):
        if not composite[p]:
            count += 1
            composite[p * p :: p] = b"\x01" * len(range(p * p, n + 1, p))
    return count


def monte_carlo_var(inputs: Iterable[int], simulations: int, seed: int) -> float:
    """Give what `helixnb_kernels.monte_carlo_var` gives."""
    scale = float(_MASK)
    mean, volatility = 0.0, 1.0
    for v in inputs:
        mean += (float(v) / scale) * 0.0001
        volatility += ((float(_rotate_left(v, 13)) / scale) - 0.5) * 0.01
    s = 0x123456789ABCDEF0 ^ seed
    samples = []
    for _ in range(simulations):
        s ^= s >> 12
        s = (s ^ (s << 25)) & _MASK
        s ^= s >> 27
        u = (float((s * 0x2545F4914F6CDD1D) & _MASK) / scale) * 2.0 - 1.0
        samples.append(mean + (u * 0.05) * max(volatility, 0.1))
    return sorted(samples)[int(simulations * 0.05)]


def hash_mix_job(inputs: Iterable[int], compute_cost: int, job_id: int) -> int:
    """Run a HashMix job: ``compute_cost // 64`` rounds, at least one."""
    return hash_mix(inputs, max(compute_cost // 64, 1))


def prime_count_job(inputs: Iterable[int], compute_cost: int, job_id: int) -> int:
    """Run a PrimeCount job: n is the cost, clamped to 10,000 .. 250,000."""
    return prime_count(min(max(compute_cost, 10_000), 250_000))


def monte_carlo_job(inputs: Iterable[int], compute_cost: int, job_id: int) -> float:
    """Run a MonteCarlo job: ``compute_cost // 200`` simulations, clamped to 5,000 .. 50,000."""
    return monte_carlo_var(inputs, min(max(compute_cost // 200, 5_000), 50_000), job_id)
