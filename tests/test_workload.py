"""Workloads: seeded jobs, job files, and the drivers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support import Always, check_balanced, router

from helixnb import Job, JobError, Outcome, Strategy
from helixnb.workload import COSTS, closed_loop, light_mix, open_loop, read_jobs


def fields(jobs: list[Job]) -> list[tuple[Any, ...]]:
    return [
        (j.id, j.kind, tuple(j.inputs), j.compute_cost, j.scaling_potential, j.latency_budget_ms)
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
