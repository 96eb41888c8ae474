"""Runs of `learning.py` under load: beside another process, and with gains from batches."""

from __future__ import annotations

import dataclasses
import math
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, cycle, takewhile

import anyio
from learning_runs import draw_job

from helixnb import Job, Outcome, Router, RouterConfig, Status
from helixnb.workload import HEAVY_KERNELS, asian_call, closed_loop, heavy_mix, open_loop, poisson
from helixnb_kernels import HASH_MIX

CLIENTS = 64
SETTLING_S = 1.5
_BURN = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(1_000_000):
        pass
"""


@contextmanager
def burner(burns: bool) -> Iterator[None]:
    """Let another process take all it can of a core, but not for longer than this one lives."""
    if not burns:
        yield
        return
    command = [sys.executable, "-c", _BURN, str(os.getpid())]
    with subprocess.Popen(command) as process:
        try:
            yield
        finally:
            process.kill()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What became of the heavy mix beside another process, or not; rates are a second.

    Attributes
    ----------
    cpu_left
        What `Stats.cpu_left` showed, every quarter of a second.
    """

    burns: bool
    heeds: bool
    offered: float
    in_budget: float
    in_budget_share: float
    dropped: dict[str, float]
    cpu_left: list[float | None]


async def capacity(ns_per_cost: dict[str, float], seconds: float, seed: int) -> float:
    """Measure the answers a second of the heavy mix that 64 clients get, without budgets."""
    mix = heavy_mix(2_000, seed, ns_per_cost)
    answered: list[float] = []
    end_s = time.perf_counter() + SETTLING_S + seconds

    def endless() -> Iterator[Job]:
        for job in cycle(mix):
            if time.perf_counter() > end_s:
                return
            yield dataclasses.replace(job, latency_budget_ms=None)

    def note(outcome: Outcome) -> None:
        assert outcome.status is Status.COMPLETED, outcome
        answered.append(time.perf_counter())

    config = RouterConfig(max_backlog_ms=1e6)  # that many clients wait for longer than a service's
    async with Router(config, kernels=HEAVY_KERNELS) as router:
        await closed_loop(router, endless(), clients=CLIENTS, on_outcome=note)
    return sum(end_s - seconds <= at_s < end_s for at_s in answered) / seconds


async def beside(
    ns_per_cost: dict[str, float],
    rate: float,
    seconds: float,
    seed: int,
    *,
    burns: bool,
    heeds: bool,
) -> Shared:
    """Offer the heavy mix beside another process, or not."""
    whole_s = SETTLING_S + seconds
    due_s = list(takewhile(lambda due: due < whole_s, poisson(rate, seed)))
    jobs = heavy_mix(len(due_s), seed, ns_per_cost)
    outcomes: dict[int, Outcome] = {}
    cpu_left: list[float | None] = []

    def note(outcome: Outcome) -> None:
        outcomes[outcome.job_id] = outcome

    async def look(router: Router) -> None:
        await anyio.sleep(SETTLING_S)
        while True:
            cpu_left.append(router.stats().cpu_left)
            await anyio.sleep(0.25)

    config = RouterConfig(heed_other_cpu_use=heeds)
    with burner(burns):
        async with (
            Router(config, kernels=HEAVY_KERNELS) as router,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(look, router)
            latencies_s = await open_loop(router, jobs, arrivals=due_s, on_outcome=note)
            tasks.cancel_scope.cancel()
    counted = [job for job, due in zip(jobs, due_s, strict=True) if due >= SETTLING_S]
    done = [job for job in counted if outcomes[job.id].status is Status.COMPLETED]
    met = sum(latencies_s[job.id] * 1e3 <= (job.latency_budget_ms or math.inf) for job in done)
    dropped = Counter(
        outcomes[job.id].reason for job in counted if outcomes[job.id].status is Status.DROPPED
    )
    return Shared(
        burns=burns,
        heeds=heeds,
        offered=len(counted) / seconds,
        in_budget=met / seconds,
        in_budget_share=met / max(len(done), 1),
        dropped={reason: jobs / seconds for reason, jobs in sorted(dropped.items())},
        cpu_left=cpu_left,
    )


# -- Batches --------------------------------------------------------------------------------------

BATCHED_NS = 1e6
"""Solo time of a job that may be batched: far more than what it costs to let it run elsewhere."""

POTENTIALS = {asian_call.name: 0.9, HASH_MIX.name: 0.1}
"""What the jobs say of themselves: the wrong way round."""

BATCH_CLIENTS = 32


@dataclass(slots=True)
class Second:
    """What was decided in a second.

    Attributes
    ----------
    decided
        By kind, what was decided for jobs that ended in it; "probe" for batches for that reason.
    gain
        By kind, what `explain` said at its end.
    batches, batched_jobs
        By how much the counters of `Stats` grew.
    """

    decided: dict[str, Counter[str]]
    gain: dict[str, float] = field(default_factory=dict)
    batches: int = 0
    batched_jobs: int = 0


async def batching(ns_per_cost: dict[str, float], seconds: int, seed: int) -> list[Second]:
    """Keep the slots busy with two kinds that gain otherwise than their jobs say."""
    draw = random.Random(seed)
    shown: list[Second] = []
    ids = count()
    over = False

    def fresh() -> Second:
        return Second({kind: Counter() for kind in POTENTIALS})

    now = fresh()

    def make(kind: str) -> Job:
        cost = round(BATCHED_NS / ns_per_cost[kind])
        job = draw_job(draw, kind, next(ids), cost, cost)
        return dataclasses.replace(job, scaling_potential=POTENTIALS[kind])

    def jobs(kind: str) -> Iterator[Job]:
        while not over:
            yield make(kind)

    def note(outcome: Outcome) -> None:
        probe = outcome.reason == "batch_probe"
        now.decided[outcome.kind]["probe" if probe else outcome.decided] += 1

    async def run(router: Router, kind: str) -> None:
        await closed_loop(router, jobs(kind), clients=BATCH_CLIENTS, on_outcome=note)

    async with Router(kernels=HEAVY_KERNELS) as router, anyio.create_task_group() as tasks:
        started_s = anyio.current_time()
        before = router.stats()
        for kind in POTENTIALS:
            tasks.start_soon(run, router, kind)
        for each in range(seconds):
            await anyio.sleep_until(started_s + each + 1)
            stats = router.stats()
            now.batches = stats.batches - before.batches
            now.batched_jobs = stats.batched_jobs - before.batched_jobs
            now.gain = {kind: router.explain(make(kind)).estimate.batch_gain for kind in POTENTIALS}
            shown.append(now)
            before, now = stats, fresh()
        over = True
    return shown
