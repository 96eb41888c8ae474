"""Workloads: seeded jobs, job files, and the drivers."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from itertools import islice, takewhile
from pathlib import Path
from statistics import mean
from typing import Any

import anyio
import numpy as np
import pytest
from support import Always, check_balanced, router
from trio.testing import MockClock

from helixnb import Decision, Job, JobError, Load, Outcome, RouterConfig, Strategy
from helixnb.workload import (
    COSTS,
    HEAVY_KERNELS,
    asian_call,
    bursty,
    calibrate,
    closed_loop,
    heavy_mix,
    light_mix,
    open_loop,
    pace,
    poisson,
    read_jobs,
)
from helixnb_kernels import warm_up

NS_PER_COST = {"HashMix": 0.03, "AsianCall": 30.0}
"""What a calibration might say."""


def fields(jobs: list[Job]) -> list[tuple[Any, ...]]:
    return [
        (
            *(j.id, j.kind, tuple(j.inputs), j.compute_cost, j.scaling_potential),
            *(j.latency_budget_ms, *j.params.values()),
        )
        for j in jobs
    ]


def test_the_light_mix_is_seeded() -> None:
    """One seed gives the same jobs, another one others; a longer run begins alike."""
    assert fields(light_mix(50, seed=1)) == fields(light_mix(80, seed=1)[:50])
    assert fields(light_mix(50, seed=1)) != fields(light_mix(50, seed=2))
    assert light_mix(0, seed=1) == []


def test_the_light_mix_is_what_it_says() -> None:
    """Kinds, costs, inputs, scaling and budgets follow the original simulator."""
    jobs = light_mix(20_000, seed=3)
    share = {kind: count / len(jobs) for kind, count in Counter(job.kind for job in jobs).items()}
    assert share["PrimeCount"] == pytest.approx(0.55, abs=0.02)
    assert share["HashMix"] == pytest.approx(0.45 * 0.75, abs=0.02)
    assert share["MonteCarlo"] == pytest.approx(0.45 * 0.25, abs=0.02)
    for kind, (least, most) in COSTS.items():
        costs = [job.compute_cost for job in jobs if job.kind == kind]
        assert least <= min(costs) < least * 1.5 + 1_000
        assert most * 0.98 < max(costs) <= most
    assert {len(job.inputs) for job in jobs} == {2, 3, 4, 5, 6}
    assert max(max(job.inputs) for job in jobs) <= 200_000
    assert {job.latency_budget_ms for job in jobs} == set(range(5, 81))
    assert [job.id for job in jobs] == list(range(20_000))


def test_the_heavy_mix_is_seeded() -> None:
    """One seed and calibration give the same jobs; another one of either gives others."""
    jobs = fields(heavy_mix(50, 1, NS_PER_COST))
    assert jobs == fields(heavy_mix(80, 1, NS_PER_COST)[:50])
    assert jobs != fields(heavy_mix(50, 2, NS_PER_COST))
    assert jobs != fields(heavy_mix(50, 1, NS_PER_COST | {"AsianCall": 29.0}))
    assert heavy_mix(0, 1, NS_PER_COST) == []


def test_the_heavy_mix_is_what_it_says() -> None:
    """By the calibration its jobs take 2 to 20 ms, spread over all of that, in both kinds."""
    jobs = heavy_mix(20_000, 3, NS_PER_COST)
    assert [job.id for job in jobs] == list(range(20_000))
    for kind, ns in NS_PER_COST.items():
        solo_ms = [job.compute_cost * ns / 1e6 for job in jobs if job.kind == kind]
        assert len(solo_ms) / len(jobs) == pytest.approx(0.5, abs=0.02)
        assert 1.99 < min(solo_ms) < 2.05
        assert 19.5 < max(solo_ms) < 20.01
        assert mean(solo_ms) == pytest.approx(18 / math.log(10), rel=0.02)
    assert {job.latency_budget_ms for job in jobs} == set(range(40, 401))
    assert mean(job.scaling_potential for job in jobs) == pytest.approx(0.5, abs=0.02)


def test_calibration_divides_the_time_by_the_cost() -> None:
    """By a clock on which each run takes 3 ms, a unit takes that through the cost of 5 ms."""
    clock = itertools.count(0, 3_000_000)
    found = calibrate(clock.__next__)
    costs = {each.name: 5e6 / each.predict_ns(10**6, 1) * 10**6 for each in HEAVY_KERNELS}
    assert found == {name: pytest.approx(3e6 / cost, rel=1e-3) for name, cost in costs.items()}


def asian_call_by_numpy(job: Job) -> float:
    """Price the same call with generator and paths in NumPy."""
    spot, rate, maturity = job.inputs
    strike, volatility = job.params["strike"], job.params["volatility"]
    paths = max(job.compute_cost // 64, 1)
    with np.errstate(over="ignore"):
        first = np.uint64(job.id + 1) * np.uint64(0x94D049BB133111EB)
        z = first + np.arange(1, paths * 64 + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    uniform = (z >> np.uint64(11)).astype(float).reshape(paths, 32, 2)
    radius = np.sqrt(-2.0 * np.log((uniform[..., 0] + 0.5) / 2**53))
    angle = 2.0 * np.pi * uniform[..., 1] / 2**53
    normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    step = maturity / 64
    growth = (rate - volatility**2 / 2) * step + volatility * math.sqrt(step) * normal
    prices = spot * np.exp(np.cumsum(growth.reshape(paths, 64), axis=1))
    payoff = np.maximum(prices.mean(axis=1) - strike, 0.0)
    return math.exp(-rate * maturity) * float(payoff.mean())


@pytest.mark.parametrize("cost", [0, 1, 64, 6_400])
def test_the_path_simulation_prices_a_call(cost: int) -> None:
    """Its answer is that of the same paths in NumPy; a lone path is the least."""
    warm_up([asian_call], parallel=False)
    for job_id in (0, 7):
        job = asian_call.job(
            [100.0, 0.03, 1.5], id=job_id, compute_cost=cost, strike=95.0, volatility=0.3
        )
        inputs, params = asian_call.as_inputs(job.inputs), asian_call.as_params(job.params)
        price = asian_call.solo_call(inputs, cost, job.id, params)()
        assert price == pytest.approx(asian_call_by_numpy(job), rel=1e-9)


@pytest.mark.parametrize("arrivals", [poisson, bursty])
def test_arrivals_are_seeded(arrivals: Any) -> None:
    """One seed gives the same times, another one others; they ascend, at the given mean rate."""
    times = list(islice(arrivals(500.0, 1), 100_000))
    assert times == list(islice(arrivals(500.0, 1), 100_000))
    assert times[:100] != list(islice(arrivals(500.0, 2), 100))
    assert times == sorted(times)
    assert times[0] > 0
    assert len(times) / times[-1] == pytest.approx(500.0, rel=0.02)


def spread_of_counts(times: list[float], seconds: float) -> float:
    """Return the variance of the arrivals in spans of so many seconds, over their mean."""
    spans = math.floor(times[-1] / seconds)
    counts, _ = np.histogram(times, bins=spans, range=(0.0, spans * seconds))
    return float(counts.var() / counts.mean())


def test_poisson_arrivals_are_independent() -> None:
    """Counts of a Poisson process vary as much as their mean, and gaps as much as theirs."""
    times = list(islice(poisson(500.0, 3), 100_000))
    assert spread_of_counts(times, 0.1) == pytest.approx(1.0, abs=0.1)
    gaps = np.diff(times)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.02)


def test_bursty_arrivals_come_in_bursts() -> None:
    """All of a period come in its first part, at the peak's rate; with a peak of 1 it's Poisson."""
    times = list(takewhile(lambda s: s < 100.0, bursty(500.0, 3, peak=5.0, period_s=0.5)))
    assert max(time % 0.5 for time in times) < 0.1 + 1e-9
    assert spread_of_counts(times, 0.1) > 20
    inside = [time for time in times if 0.02 <= time % 0.5 < 0.06]
    assert len(inside) / (200 * 0.04) == pytest.approx(2_500.0, rel=0.03)
    even = list(islice(bursty(500.0, 3, peak=1.0), 1_000))
    assert even == pytest.approx(list(islice(poisson(500.0, 3), 1_000)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: poisson(0.0, 1), "rate must be more than 0 arrivals a second, got 0.0"),
        (lambda: bursty(math.nan, 1), "rate must be more than 0 arrivals a second, got nan"),
        (lambda: bursty(1.0, 1, peak=0.5), "peak must be at least 1, got 0.5"),
        (lambda: bursty(1.0, 1, period_s=0.0), "period_s must be more than 0, got 0.0"),
    ],
)
def test_arrivals_that_cant_be(call: Any, message: str) -> None:
    """What can't be is refused at once, with the value."""
    with pytest.raises(ValueError, match=message):
        call()


def test_jobs_from_a_file(tmp_path: Path) -> None:
    """Each line is a job with the fields of Job; empty lines are passed over."""
    path = tmp_path / "jobs.jsonl"
    record = {"id": 7, "kind": "HashMix", "inputs": [1, 2**64 - 1], "compute_cost": 640}
    path.write_text(
        json.dumps(record)
        + "\n\n"
        + json.dumps(record | {"scaling_potential": 0.5, "latency_budget_ms": 9})
        + "\n"
    )
    assert fields(read_jobs(path)) == [
        (7, "HashMix", (1, 2**64 - 1), 640, 0.0, None),
        (7, "HashMix", (1, 2**64 - 1), 640, 0.5, 9),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: Expecting property name"),
        ("[]", r"line 2: a job must be a JSON object, got \[\]"),
        ('{"id": 1, "kind": "HashMix"}', "line 2: a job needs the field 'compute_cost'"),
        (
            '{"id": 1, "kind": "HashMix", "compute_cost": 1, "cost": 2}',
            "line 2: a job has no field 'cost'; it has",
        ),
        (
            '{"id": -1, "kind": "HashMix", "compute_cost": 1}',
            r"line 2: id must lie in 0 .. 2\*\*64-1, got -1",
        ),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    """The error says which line is wrong, and how."""
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"id": 1, "kind": "HashMix", "compute_cost": 1}\n' + line)
    with pytest.raises(JobError, match=message):
        read_jobs(path)


@pytest.mark.anyio
async def test_a_closed_loop_submits_every_job() -> None:
    """Each job is submitted once, by one of the clients."""
    outcomes: list[Outcome] = []
    async with router(policy=Always(Strategy.BATCH)) as r:
        await closed_loop(r, light_mix(100, seed=0), clients=7, on_outcome=outcomes.append)
    assert sorted(outcome.job_id for outcome in outcomes) == list(range(100))
    check_balanced(r.stats())


@pytest.mark.anyio
async def test_an_open_loop_submits_every_job() -> None:
    """Each job is submitted once, and its outcome reported."""
    outcomes: list[Outcome] = []
    async with router(policy=Always(Strategy.CPU_POOL)) as r:
        await open_loop(r, light_mix(100, seed=0), rate=20_000, seed=1, on_outcome=outcomes.append)
    assert sorted(outcome.job_id for outcome in outcomes) == list(range(100))
    check_balanced(r.stats())
    outcomes.clear()
    due_s = [0.001 * i for i in range(100)]
    async with router(policy=Always(Strategy.BATCH)) as r:
        latencies_s = await open_loop(
            r, light_mix(100, seed=0), arrivals=due_s, on_outcome=outcomes.append
        )
    assert sorted(outcome.job_id for outcome in outcomes) == list(range(100))
    assert len(latencies_s) == 100
    assert min(latencies_s) > 0
    heard_ms = {outcome.job_id: outcome.latency_ms for outcome in outcomes}
    assert all(latencies_s[i] * 1e3 >= ms for i, ms in heard_ms.items())


@pytest.mark.anyio
async def test_an_open_loop_takes_one_kind_of_arrivals() -> None:
    """Arrivals or a rate, and no fewer arrivals than jobs."""
    jobs = light_mix(3, seed=0)
    async with router(policy=Always(Strategy.DROP)) as r:
        for both in ({}, {"rate": 1.0, "arrivals": [0.0]}):
            with pytest.raises(ValueError, match="either arrivals or a rate"):
                await open_loop(r, jobs, **both)  # type: ignore[arg-type]
        with pytest.raises(ExceptionGroup) as caught:
            await open_loop(r, jobs, arrivals=[0.0, 0.0])
        assert caught.group_contains(ValueError, match="there is no arrival for job 2")
        assert r.stats().submitted == 2


class Slow:
    """Drops every job, and holds the loop for a tenth of a second with each."""

    def __init__(self, clock: MockClock) -> None:
        self._clock = clock

    def decide(self, job: Job, load: Load, config: RouterConfig, estimate: Any) -> Decision:
        self._clock.jump(0.1)
        return Decision(Strategy.DROP, "test")


def test_no_arrival_is_lost_where_the_loop_is_late() -> None:
    """Jobs that are due while the loop is held start in order, and are told when they were due."""
    clock = MockClock(autojump_threshold=0)
    due_s = [0.0, 0.01, 0.02, 0.11, 1.0]
    seen: list[tuple[int, float, float]] = []

    async def run() -> None:
        began_s = clock.current_time()

        def start(job: Job, due_s: float) -> None:
            seen.append((job.id, due_s - began_s, clock.current_time() - began_s))
            clock.jump(0.1)

        await pace(start, light_mix(5, seed=0), due_s, clock=clock.current_time)

    anyio.run(run, backend="trio", backend_options={"clock": clock})
    assert [job_id for job_id, _, _ in seen] == list(range(5))
    assert [due for _, due, _ in seen] == pytest.approx(due_s)
    assert [at for _, _, at in seen] == pytest.approx([0.0, 0.1, 0.2, 0.3, 1.0])


def test_latency_counts_from_when_a_job_was_due() -> None:
    """A job that the driver comes to late has waited since it was due."""
    clock = MockClock(autojump_threshold=0)

    async def run() -> list[float]:
        async with router(policy=Slow(clock)) as r:
            return await open_loop(
                r,
                light_mix(4, seed=0),
                arrivals=[0.0, 0.01, 0.02, 1.0],
                clock=clock.current_time,
            )

    latencies_s = anyio.run(run, backend="trio", backend_options={"clock": clock})
    assert latencies_s == pytest.approx([0.3, 0.29, 0.28, 0.1])  # three hold the loop in a row
