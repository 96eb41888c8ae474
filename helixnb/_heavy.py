"""The heavy mix: jobs of milliseconds, sized by how fast the kernels are here."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from statistics import median

import numpy as np

from helixnb._kernels import kernel
from helixnb._records import Job
from helixnb_kernels import HASH_MIX, Kernel, warm_up

SOLO_MS = (2.0, 20.0)
"""The range of what a job of the heavy mix takes solo, in milliseconds."""

BUDGET_MS = (40, 400)
"""The range of latency budgets of the heavy mix, in milliseconds, both ends included."""

_PROBE_NS = 5e6
_PROBES = 9
_STEPS = 64  # of a path
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S11, _S27, _S30, _S31 = (np.uint64(s) for s in (11, 27, 30, 31))
_ONE, _STEPS_A_PATH = np.uint64(1), np.uint64(_STEPS)


def _steps(compute_cost: int, inputs: int) -> float:  # noqa: ARG001  # as of every kernel
    return float(max(compute_cost, _STEPS))


@kernel(
    name="AsianCall",
    inputs="float64[3]",
    returns="float64",
    params={"strike": "float64", "volatility": "float64"},
    work=_steps,
    ns_per_work=25.0,
)
def asian_call(market, compute_cost, job_id, strike, volatility):  # type: ignore[no-untyped-def]
    """Price a call on the mean of a geometric Brownian motion, by simulating its paths.

    `market` is spot, rate and maturity in years. The compute cost counts steps, 64 a path; there
    is at least one path. Uniform numbers are SplitMix64's at a counter that begins at the job's
    id (Steele, Lea and Flood, OOPSLA 2014), normal ones follow Box and Muller (1958).
    """
    spot, rate, maturity = market
    step = maturity / _STEPS
    drift = (rate - 0.5 * volatility * volatility) * step
    scale = volatility * np.sqrt(step)
    paths = max(compute_cost // _STEPS_A_PATH, _ONE)
    total = 0.0
    state = (job_id + _ONE) * _MIX_2
    for _ in range(paths):
        price = spot
        summed = 0.0
        for _ in range(_STEPS // 2):
            state += _GOLDEN
            z = state
            z = (z ^ (z >> _S30)) * _MIX_1
            z = (z ^ (z >> _S27)) * _MIX_2
            z ^= z >> _S31
            radius = np.sqrt(-2.0 * np.log((np.float64(z >> _S11) + 0.5) / 9007199254740992.0))
            state += _GOLDEN
            z = state
            z = (z ^ (z >> _S30)) * _MIX_1
            z = (z ^ (z >> _S27)) * _MIX_2
            z ^= z >> _S31
            angle = 2.0 * np.pi * (np.float64(z >> _S11) / 9007199254740992.0)  # 2**53
            price *= np.exp(drift + scale * radius * np.cos(angle))
            summed += price
            price *= np.exp(drift + scale * radius * np.sin(angle))
            summed += price
        total += max(summed / _STEPS - strike, 0.0)
    return np.exp(-rate * maturity) * total / np.float64(paths)


HEAVY_KERNELS: tuple[Kernel, ...] = (HASH_MIX, asian_call)
"""The kernels of the heavy mix, for ``Router(kernels=...)``."""


def _draw_job(draw: random.Random, kind: str, job_id: int, cost: int, budget_ms: int | None) -> Job:
    if kind == HASH_MIX.name:
        inputs: list[float] = [draw.randint(0, 200_000) for _ in range(draw.randint(2, 6))]
        params = {}
    else:
        inputs = [draw.uniform(80.0, 120.0), draw.uniform(0.0, 0.05), draw.uniform(0.25, 2.0)]
        params = {"strike": draw.uniform(80.0, 120.0), "volatility": draw.uniform(0.1, 0.4)}
    return Job(
        id=job_id,
        kind=kind,
        inputs=inputs,
        compute_cost=cost,
        scaling_potential=draw.random(),
        latency_budget_ms=budget_ms,
        params=params,
    )


def calibrate(clock: Callable[[], int] = time.thread_time_ns) -> dict[str, float]:
    """Measure the nanoseconds that a unit of compute cost takes solo, for `heavy_mix`.

    Compiles the kernels if need be, then runs each of them alone on this thread, about 5 ms at a
    time, nine times; the median counts. Blocks for about 0.1 s.

    Parameters
    ----------
    clock
        Gives nanoseconds of CPU time of this thread, so that what else runs on the machine
        doesn't count.

    Returns
    -------
    dict
        Nanoseconds of CPU time a unit of cost, by kind.
    """
    warm_up(HEAVY_KERNELS, parallel=False)
    draw = random.Random(0)  # noqa: S311  # a workload, not a secret
    ns_per_cost = {}
    for each in HEAVY_KERNELS:
        cost = math.ceil(_PROBE_NS / each.predict_ns(10**6, 1) * 10**6)
        taken_ns = []
        for job_id in range(_PROBES):
            job = _draw_job(draw, each.name, job_id, cost, None)
            inputs, params = each.as_inputs(job.inputs), each.as_params(job.params)
            run = each.solo_call(inputs, cost, job_id, params)
            began_ns = clock()
            run()
            taken_ns.append(clock() - began_ns)
        ns_per_cost[each.name] = median(taken_ns) / cost
    return ns_per_cost


def heavy_mix(jobs: int, seed: int, ns_per_cost: Mapping[str, float]) -> list[Job]:
    """Make the heavy mix: jobs of 2 to 20 ms each, of `HEAVY_KERNELS`.

    Half HashMix, half AsianCall, a path simulation. Solo times are spread evenly over their
    logarithm, so that as many jobs lie between 2 and 4 ms as between 10 and 20, with a mean of
    7.8; costs of HashMix come out at about 1e8 to 1e9. Budgets are 40 to 400 ms and scaling
    potentials 0 to 1, both evenly. Ids count up from 0. The same arguments give the same jobs.

    Parameters
    ----------
    jobs
        How many; 0 or more.
    seed
        Seed of Python's own generator.
    ns_per_cost
        Nanoseconds a unit of cost takes solo, by kind, as `calibrate` measures them.
    """
    draw = random.Random(seed)  # noqa: S311  # a workload, not a secret
    least, most = (math.log(ms * 1e6) for ms in SOLO_MS)
    kinds = [each.name for each in HEAVY_KERNELS]
    mix = []
    for job_id in range(jobs):
        kind = draw.choice(kinds)
        cost = round(math.exp(draw.uniform(least, most)) / ns_per_cost[kind])
        mix.append(_draw_job(draw, kind, job_id, cost, draw.randint(*BUDGET_MS)))
    return mix
