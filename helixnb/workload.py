"""Seeded workloads, and what drives a router with them."""

from __future__ import annotations

import itertools
import json
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import anyio

from helixnb._arrivals import bursty, pace, poisson
from helixnb._errors import JobError
from helixnb._heavy import HEAVY_KERNELS, asian_call, calibrate, heavy_mix
from helixnb._records import Job, Outcome
from helixnb._router import Router
from helixnb._ticket import Ticket
from helixnb_kernels._values import shown

__all__ = [
    "COSTS",
    "HEAVY_KERNELS",
    "asian_call",
    "bursty",
    "calibrate",
    "closed_loop",
    "heavy_mix",
    "light_jobs",
    "light_mix",
    "open_loop",
    "pace",
    "poisson",
    "read_jobs",
]

COSTS = {
    "HashMix": (500, 120_000),
    "PrimeCount": (2_000, 80_000),
    "MonteCarlo": (20_000, 250_000),
}
"""The range of compute costs of each kind in the light mix, both ends included."""

_FIELDS = frozenset(Job.__dataclass_fields__)


def light_mix(jobs: int, seed: int) -> list[Job]:
    """Make the light mix: jobs of about 1 to 60 us, as HelixRouter's simulator drew them.

    55 % PrimeCount; of the rest 75 % HashMix, else MonteCarlo; 2 to 6 inputs up to 200,000; costs
    evenly from `COSTS`; scaling potential 0 to 1; budgets 5 to 80 ms. Ids count up from 0. The
    same arguments give the same jobs.

    Parameters
    ----------
    jobs
        How many; 0 or more.
    seed
        Seed of Python's own generator.
    """
    return list(itertools.islice(light_jobs(seed), jobs))


def light_jobs(seed: int) -> Iterator[Job]:
    """Give the jobs of the light mix without end; see `light_mix`."""
    draw = random.Random(seed)  # noqa: S311  # a workload, not a secret
    return (_light_job(draw, job_id) for job_id in itertools.count())


def _light_job(draw: random.Random, job_id: int) -> Job:
    if draw.random() < 0.55:
        kind = "PrimeCount"
    else:
        kind = "HashMix" if draw.random() < 0.75 else "MonteCarlo"
    return Job(
        id=job_id,
        kind=kind,
        inputs=[draw.randint(0, 200_000) for _ in range(draw.randint(2, 6))],
        compute_cost=draw.randint(*COSTS[kind]),
        scaling_potential=draw.random(),
        latency_budget_ms=draw.randint(5, 80),
    )


def read_jobs(path: Path) -> list[Job]:
    """Read jobs from a file with one JSON object a line, with the fields of `Job`.

    Empty lines are passed over.

    Raises
    ------
    JobError
        A line isn't a job; the message names the line.
    OSError
        The file can't be read.
    """
    jobs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            jobs.append(_job_of(json.loads(line)))
        except ValueError as error:  # JobError and JSONDecodeError are ValueErrors
            raise JobError(f"{path}, line {number}: {error}") from None
    return jobs


def _job_of(record: Any) -> Job:
    if not isinstance(record, dict):
        raise JobError(f"a job must be a JSON object, got {shown(record)}")
    if unknown := record.keys() - _FIELDS:
        raise JobError(f"a job has no field {shown(min(unknown))}; it has {sorted(_FIELDS)}")
    if missing := {"id", "kind", "compute_cost"} - record.keys():
        raise JobError(f"a job needs the field {min(missing)!r}")
    return Job(**record)


async def closed_loop(
    router: Router,
    jobs: Iterable[Job],
    *,
    clients: int,
    on_outcome: Callable[[Outcome], object] | None = None,
) -> None:
    """Let a number of clients submit jobs in turn, each its next one when it has an outcome."""
    queue = iter(jobs)

    async def client() -> None:
        for job in queue:
            outcome = await router.submit(job)
            if on_outcome is not None:
                on_outcome(outcome)

    async with anyio.create_task_group() as tasks:
        for _ in range(clients):
            tasks.start_soon(client)


async def open_loop(
    router: Router,
    jobs: Iterable[Job],
    *,
    arrivals: Iterable[float] | None = None,
    rate: float | None = None,
    seed: int = 0,
    on_outcome: Callable[[Outcome], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Submit jobs when they are due, whatever becomes of earlier ones.

    `pace` with a router: see there for what happens where the event loop is late.

    Parameters
    ----------
    arrivals
        Seconds from this call to when each job is due, ascending, as `poisson` and `bursty` give
        them; at least as many as jobs.
    rate, seed
        Instead of `arrivals`: those of ``poisson(rate, seed)``.
    on_outcome
        Is called with each outcome, as it comes.
    clock
        As of `pace`.

    Returns
    -------
    list of float
        Seconds from when each job was due to when its outcome was heard of, in the order of
        `jobs`. That counts a late start too, which `Outcome.latency_ms` doesn't.

    Raises
    ------
    ValueError
        Neither or both of `arrivals` and `rate` are given, or there are more jobs than arrivals.
    """
    if (arrivals is None) == (rate is None):
        raise ValueError("open_loop takes either arrivals or a rate")
    if rate is not None:
        arrivals = poisson(rate, seed)
    assert arrivals is not None
    latencies_s: list[float] = []

    async def watch(ticket: Ticket, position: int, due_s: float) -> None:
        outcome = await ticket.wait()
        latencies_s[position] = clock() - due_s
        if on_outcome is not None:
            on_outcome(outcome)

    def start(job: Job, due_s: float) -> None:
        latencies_s.append(math.nan)
        tasks.start_soon(watch, router.submit_soon(job), len(latencies_s) - 1, due_s)

    async with anyio.create_task_group() as tasks:
        await pace(start, jobs, arrivals, clock=clock)
    return latencies_s
