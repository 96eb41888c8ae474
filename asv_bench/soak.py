"""A long run: a million jobs at once, and single ones beside them; prints what became of all.

``python soak.py``. The jobs are the light mix; every answer is checked against the kernels without
the router.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio
import numpy as np
import psutil
from benchmarks.cases import KERNELS
from benchmarks.columns import answers, light_columns

from helixnb import Decision, Job, JobColumns, Load, Outcome, Router, RouterConfig, StaticPolicy
from helixnb.workload import closed_loop, light_mix
from helixnb_kernels import warm_up

LOOPS: dict[str, dict[str, Any]] = {"asyncio": {}, "uvloop": {"use_uvloop": True}}
RATE = 500
"""Single jobs a second beside the columns."""


class NoPressure:
    """The static rules as if no slot were busy: nothing is dropped for pressure."""

    def decide(self, job: Job, load: Load, config: RouterConfig, estimate: Any) -> Decision:
        """Choose by cost and scaling potential alone."""
        return StaticPolicy().decide(job, Load(), config)


class Memory:
    """Watches the resident memory of this process, in MB."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.seen: list[float] = []

    def look(self) -> None:
        """Take one sample."""
        self.seen.append(self._process.memory_info().rss / 1e6)

    async def watch(self) -> None:
        """Take a sample every 20 ms."""
        while True:
            self.look()
            await anyio.sleep(0.02)

    def __str__(self) -> str:
        return f"memory {self.seen[0]:.0f} MB at first, {max(self.seen):.0f} at most"


async def timed(run: Callable[[], Any]) -> tuple[Any, float, Memory]:
    """Return what `run` gives, the seconds it took, and the memory meanwhile."""
    memory = Memory()
    memory.look()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(memory.watch)
        began = time.perf_counter()
        result = await run()
        taken = time.perf_counter() - began
        memory.look()
        tasks.cancel_scope.cancel()
    return result, taken, memory


def dropped(router: Router) -> str:
    """Say how many jobs were dropped, and why."""
    reasons = dict(router.stats().dropped_by_reason)
    return f"dropped {router.stats().dropped} {reasons or ''}"


async def columns_run(columns: JobColumns, expected: dict[str, Any], calls: int) -> None:
    """Run the same columns a few times through one router."""
    async with Router(RouterConfig()) as router:
        for _ in range(calls):
            outcomes, taken, memory = await timed(lambda: router.submit_many(columns))
            for kind, values in expected.items():
                completed = outcomes[kind].completed
                if (outcomes[kind].values[completed] != values[completed]).any():
                    raise AssertionError(f"a wrong answer of {kind}")
            what = f"{outcomes}, {taken:.2f} s, {len(columns) / taken:,.0f} jobs/s"
            del outcomes
            print(f"  submit_many: {what}, {memory}")
        print(f"  {dropped(router)}")


async def single_run(jobs: list[Job], expected: dict[int, Any], clients: int) -> None:
    """Run jobs through `submit`, from so many clients in turn."""
    async with Router(RouterConfig(), policy=NoPressure()) as router:
        wrong = 0

        def check(outcome: Outcome) -> None:
            nonlocal wrong
            wrong += outcome.value_or(None) not in (None, expected[outcome.job_id])

        _, taken, memory = await timed(
            lambda: closed_loop(router, jobs, clients=clients, on_outcome=check)
        )
        if wrong:
            raise AssertionError(f"{wrong} wrong answers")
        stats = router.stats()
        routed = {name: each.routed for name, each in stats.by_strategy.items() if each.routed}
        print(
            f"  submit from {clients} clients: {stats.completed} completed, {taken:.2f} s, "
            f"{len(jobs) / taken:,.0f} jobs/s, {memory}\n  {dropped(router)}, {routed}"
        )


async def beside_run(columns: JobColumns, singles: list[Job], policy: Any) -> None:
    """Submit single jobs at random moments while calls with columns follow each other."""
    seen: list[Outcome] = []
    async with Router(RouterConfig(), policy=policy) as router:
        calls = 0
        over = False

        async def feed() -> None:
            nonlocal calls
            while not over:
                await router.submit_many(columns)
                calls += 1

        async def submit(job: Job) -> None:
            seen.append(await router.submit(job))

        draw = random.Random(3)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(feed)
            await anyio.sleep(0.1)
            due = anyio.current_time()
            for job in singles:
                due += draw.expovariate(RATE)
                await anyio.sleep_until(due)
                tasks.start_soon(submit, job)
            over = True
    done = [each for each in seen if each.value_or(None) is not None]
    latency = np.array([each.latency_ms for each in done])
    p50, p95, p99 = np.quantile(latency, (0.5, 0.95, 0.99))
    met = sum(each.met_budget for each in done)
    reasons = Counter(each.reason for each in seen if each.value_or(None) is None)
    print(
        f"  {type(router._policy).__name__}: {calls} calls of {len(columns):,}; "  # noqa: SLF001
        f"single jobs {len(done)} of {len(seen)} completed, {met} within their 5 to 80 ms; "
        f"p50 {p50:.2f}, p95 {p95:.2f}, p99 {p99:.2f} ms; dropped {dict(reasons)}"
    )


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1_000_000, help="jobs of a call with columns")
    parser.add_argument("--single", type=int, default=200_000, help="jobs through submit")
    parser.add_argument("--beside", type=int, default=3_000, help="single jobs beside columns")
    arguments = parser.parse_args()
    print(RouterConfig())
    warm_up(KERNELS.values())
    columns = light_columns(arguments.jobs, 1)
    bounded = light_columns(arguments.jobs, 1, budgets=True)
    expected = answers(columns)
    jobs = light_mix(arguments.single, 2)
    free = [dataclasses.replace(job, latency_budget_ms=None) for job in jobs]
    solo = {
        job.id: KERNELS[job.kind].solo_call(
            KERNELS[job.kind].as_inputs(job.inputs), job.compute_cost, job.id
        )()
        for job in jobs
    }
    for loop, options in LOOPS.items():
        print(loop)

        def run(main: Callable[..., Any], *args: Any, options: Any = options) -> None:
            anyio.run(main, *args, backend="asyncio", backend_options=options)

        print(" without budgets")
        run(columns_run, columns, expected, 5)
        run(single_run, free, solo, 400)
        print(" with budgets of 5 to 80 ms")
        run(columns_run, bounded, expected, 1)
        run(single_run, jobs, solo, 2_000)
        print(" single jobs beside columns")
        run(beside_run, columns, jobs[: arguments.beside], StaticPolicy())
        run(beside_run, light_columns(100_000, 4), jobs[: arguments.beside], NoPressure())


if __name__ == "__main__":
    main()
