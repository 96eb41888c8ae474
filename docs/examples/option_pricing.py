"""Price European call options by Monte Carlo, each with its standard error, under a router.

A job is one option; its compute cost is the number of pairs of paths, its id the seed. The answer
is a price and its standard error.
"""

from __future__ import annotations

import math

import anyio
import numpy as np

import helixnb

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1, MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
S11, S27, S30, S31 = (np.uint64(s) for s in (11, 27, 30, 31))
ONE = np.uint64(1)


@helixnb.kernel(
    inputs="float64[5]",
    returns="float64[2]",
    work=lambda pairs, _: pairs,
    ns_per_work=25.0,
)
def european_call(option, compute_cost, job_id, out):
    """Simulate geometric Brownian motion to maturity, with antithetic pairs.

    `option` is spot, strike, rate, volatility and maturity in years. Uniform numbers are
    SplitMix64's at a counter (Steele, Lea and Flood, OOPSLA 2014), normal ones follow Box and
    Muller (1958).
    """
    spot, strike, rate, volatility, maturity = option
    drift = (rate - 0.5 * volatility * volatility) * maturity
    scale = volatility * np.sqrt(maturity)
    discount = np.exp(-rate * maturity)
    total = 0.0
    squares = 0.0
    state = (job_id + ONE) * MIX_2
    for _ in range(compute_cost):
        state += GOLDEN
        z = state
        z = (z ^ (z >> S30)) * MIX_1
        z = (z ^ (z >> S27)) * MIX_2
        z ^= z >> S31
        u = (np.float64(z >> S11) + 0.5) / 9007199254740992.0  # 2**53
        state += GOLDEN
        z = state
        z = (z ^ (z >> S30)) * MIX_1
        z = (z ^ (z >> S27)) * MIX_2
        z ^= z >> S31
        v = (np.float64(z >> S11) + 0.5) / 9007199254740992.0
        normal = np.sqrt(-2.0 * np.log(u)) * np.cos(2.0 * np.pi * v)
        up = max(spot * np.exp(drift + scale * normal) - strike, 0.0)
        down = max(spot * np.exp(drift - scale * normal) - strike, 0.0)
        payoff = 0.5 * (up + down) * discount
        total += payoff
        squares += payoff * payoff
    pairs = np.float64(compute_cost)
    mean = total / pairs
    out[0] = mean
    out[1] = np.sqrt(max(squares / pairs - mean * mean, 0.0) / pairs)


def black_scholes(spot, strike, rate, volatility, maturity):
    """Return the exact price of the same call (Black and Scholes, 1973)."""
    scale = volatility * math.sqrt(maturity)
    d1 = (math.log(spot / strike) + (rate + 0.5 * volatility**2) * maturity) / scale

    def normal(x):
        return 0.5 * math.erfc(-x / math.sqrt(2.0))

    return spot * normal(d1) - strike * math.exp(-rate * maturity) * normal(d1 - scale)


async def main():
    """Price a strip of strikes, and set them beside the exact prices."""
    async with helixnb.Router(kernels=[european_call]) as router:
        options = [(100.0, strike, 0.02, 0.25, 0.5) for strike in range(80, 125, 5)]
        jobs = [
            european_call.job(option, compute_cost=50_000, scaling_potential=0.9)
            for option in options
        ]
        for option, outcome in zip(options, await router.submit_many(jobs), strict=True):
            price, error = outcome.value
            print(
                f"strike {option[1]:5.1f}: {price:8.4f} +- {error:.4f}, "
                f"exact {black_scholes(*option):8.4f} ({outcome.strategy})"
            )


if __name__ == "__main__":
    anyio.run(main)
