"""One row of the overload table: a dispatcher under one offered load, in a process of its own.

``python overload_runs.py CASE`` takes a `Case` as JSON and prints what became of its jobs, as JSON.
A further dispatcher is an async generator below `dispatcher`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import itertools
import json
import math
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from helixnb import (
    Decision,
    Estimate,
    Job,
    Load,
    Outcome,
    Router,
    RouterConfig,
    StaticPolicy,
    Status,
    Strategy,
)
from helixnb.workload import HEAVY_KERNELS, bursty, heavy_mix, light_mix, pace, poisson
from helixnb_kernels import BUILT_IN, Kernel, parallel_is_safe, warm_up

THREADS = RouterConfig().cpu_parallelism
BEAT_S = 0.005
CLIENTS = 64
"""How many clients measure the capacity, each with one job under way: a router's largest batch."""

PEAK, PERIOD_S = 4.0, 1.0
"""The bursty row: a quarter of each second at four times the mean rate."""

CHECKED = {"light": 500, "heavy": 50}
"""How many answers of a row are compared with solo runs."""

KERNELS: dict[str, tuple[Kernel, ...]] = {"light": BUILT_IN, "heavy": HEAVY_KERNELS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What to run.

    Attributes
    ----------
    mix
        ``"light"`` or ``"heavy"``.
    dispatcher
        A name in `DISPATCHERS`.
    rate
        Mean arrivals a second; 0 measures the capacity instead.
    bursts
        Whether they come in bursts.
    ns_per_cost
        The calibration of the heavy mix.
    warm_up_s, seconds, drain_s
        Seconds of arrivals that don't count, of arrivals that do, and after the last one.
    """

    mix: str
    dispatcher: str
    rate: float
    bursts: bool
    seed: int
    ns_per_cost: dict[str, float]
    warm_up_s: float
    seconds: float
    drain_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What became of the jobs that were due in the measured time; rates are a second of it.

    Attributes
    ----------
    offered, in_budget, unanswered
        Rates of jobs: all; those answered within their budget; those that had no answer when the
        drain was over, and were cancelled.
    completed
        Rate of answers in the measured time, whenever their jobs were due.
    p50_ms, p95_ms, p99_ms
        Latency of completed jobs from when they were due; None if there are none.
    in_budget_share
        Of the completed jobs, how many were so within their budget.
    dropped
        Rate of drops by reason.
    lag_p99_ms, stalled_share
        How late a beat of 5 ms came, and the share of the time in which it was overdue by more
        than 5 ms.
    loop_cpu
        CPU time of the event loop's thread over wall time.
    checked
        How many answers were compared with those of solo runs.
    """

    offered: float
    in_budget: float
    completed: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    in_budget_share: float | None
    dropped: dict[str, float]
    unanswered: float
    lag_p99_ms: float
    stalled_share: float
    loop_cpu: float
    checked: int


# -- The dispatchers ------------------------------------------------------------------------------

Serve = Callable[[Job], Awaitable[Any]]
Opens = Callable[[dict[str, Kernel]], AbstractAsyncContextManager[Serve]]

DISPATCHERS: dict[str, Opens] = {}
"""The rows of each offered load, in order; and what else measures the capacity."""


def dispatcher(
    name: str,
) -> Callable[[Callable[[dict[str, Kernel]], AsyncIterator[Serve]]], Opens]:
    """Make a dispatcher of an async generator of what runs one job, in a task of the job's own."""

    def add(function: Callable[[dict[str, Kernel]], AsyncIterator[Serve]]) -> Opens:
        DISPATCHERS[name] = opens = asynccontextmanager(function)
        return opens

    return add


@dispatcher("AdaptivePolicy")
async def adaptive(kernels: dict[str, Kernel]) -> AsyncIterator[Serve]:
    """Submit to a router with that policy, as it comes."""
    async with Router(kernels=kernels.values()) as router:
        yield router.submit


@dispatcher("StaticPolicy")
async def static(kernels: dict[str, Kernel]) -> AsyncIterator[Serve]:
    """Submit to a router with that policy, as it comes."""
    async with Router(kernels=kernels.values(), policy=StaticPolicy()) as router:
        yield router.submit


def solo(kernels: dict[str, Kernel], job: Job) -> Any:
    """Run a job by its kernel's solo form."""
    kernel = kernels[job.kind]
    inputs, params = kernel.as_inputs(job.inputs), kernel.as_params(job.params)
    return kernel.solo_call(inputs, job.compute_cost, job.id, params)()


@dispatcher("asyncio.to_thread")
async def to_thread(kernels: dict[str, Kernel]) -> AsyncIterator[Serve]:
    """Call the solo form, a thread hop a job, on asyncio's default executor."""
    yield lambda job: asyncio.to_thread(solo, kernels, job)


@dispatcher("executor")
async def executor(kernels: dict[str, Kernel]) -> AsyncIterator[Serve]:
    """Call the solo form by `loop.run_in_executor`, on as many threads as there are cores."""
    loop = asyncio.get_running_loop()
    pool = ThreadPoolExecutor(THREADS)
    yield lambda job: loop.run_in_executor(pool, solo, kernels, job)
    pool.shutdown(wait=False, cancel_futures=True)


@dispatcher("all inline")
async def inline(kernels: dict[str, Kernel]) -> AsyncIterator[Serve]:
    """Call the solo form in the job's own task."""

    async def call(job: Job) -> Any:
        return solo(kernels, job)

    yield call


ROWS = tuple(DISPATCHERS)


class Always:
    """One strategy for every job."""

    def __init__(self, strategy: Strategy) -> None:
        self._decision = Decision(strategy, "always")

    def decide(self, job: Job, load: Load, config: RouterConfig, estimate: Estimate) -> Decision:
        return self._decision


@dispatcher("router, all cpu_pool")
async def pooled(kernels: dict[str, Kernel]) -> AsyncIterator[Serve]:
    """Submit to a router that pools every job."""
    async with Router(kernels=kernels.values(), policy=Always(Strategy.CPU_POOL)) as router:
        yield router.submit


@dispatcher("router, all batch")
async def batched(kernels: dict[str, Kernel]) -> AsyncIterator[Serve]:
    """Submit to a router that batches every job."""
    async with Router(kernels=kernels.values(), policy=Always(Strategy.BATCH)) as router:
        yield router.submit


LIMITS = ("executor", "all inline", "router, all cpu_pool", "router, all batch")
"""What may be the fastest way through a mix; the best of them is the capacity."""


# -- Measuring ------------------------------------------------------------------------------------


def make_jobs(case: Case, jobs: int) -> list[Job]:
    """Make jobs of a case's mix."""
    if case.mix == "heavy":
        return heavy_mix(jobs, case.seed, case.ns_per_cost)
    return light_mix(jobs, case.seed)


def quantile(ordered: list[float], share: float) -> float:
    """Return the smallest value that at least this share of them don't exceed."""
    return ordered[math.ceil(share * len(ordered)) - 1]


async def capacity(case: Case) -> float:
    """Measure the answers a second that clients get who wait for each, without budgets."""
    kernels = {kernel.name: kernel for kernel in KERNELS[case.mix]}
    jobs = itertools.cycle(
        [
            dataclasses.replace(job, latency_budget_ms=None)
            for job in make_jobs(case, 20_000 if case.mix == "light" else 2_000)
        ]
    )
    ends_s: list[float] = []
    begin_s = time.perf_counter() + case.warm_up_s
    end_s = begin_s + case.seconds
    settle()

    async def client(serve: Serve) -> None:
        while time.perf_counter() < end_s:
            await serve(next(jobs))
            ends_s.append(time.perf_counter())
            await asyncio.sleep(0)  # inline never waits

    async with DISPATCHERS[case.dispatcher](kernels) as serve:
        await asyncio.gather(*(client(serve) for _ in range(CLIENTS)))
    return sum(begin_s <= each < end_s for each in ends_s) / case.seconds


def settle() -> None:
    """Keep the collector off what was made so far, as a service does once it is up."""
    gc.collect()
    gc.freeze()


class Heart:
    """Beats on the event loop, and notes when each beat was due and when it came."""

    def __init__(self) -> None:
        self.beats: list[tuple[float, float]] = []

    async def beat(self) -> None:
        """Sleep over and over."""
        while True:
            due_s = time.perf_counter() + BEAT_S
            await asyncio.sleep(BEAT_S)
            self.beats.append((due_s, time.perf_counter()))

    def within(self, begin_s: float, end_s: float) -> tuple[float, float]:
        """Return the 99th percentile of lag in ms, and the share of the time in large lags.

        All beats count that were due or came in that time, even the one that it ended in.
        """
        beats = [each for each in self.beats if each[1] >= begin_s and each[0] < end_s]
        lags_s = sorted(max(0.0, came_s - due_s) for due_s, came_s in beats)
        stalled_s = sum(
            min(came_s, end_s) - max(due_s, begin_s)
            for due_s, came_s in beats
            if came_s - due_s > BEAT_S
        )
        return quantile(lags_s, 0.99) * 1e3, stalled_s / (end_s - begin_s)


class Meter:
    """Takes the loop's CPU time at the two ends of the measured time, or as soon as it can."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []
        self.done = asyncio.Event()

    def mark(self) -> None:
        self.marks.append((time.perf_counter(), time.thread_time()))
        if len(self.marks) == 2:
            self.done.set()

    def share(self) -> float:
        """Return CPU time over wall time."""
        (wall_0, cpu_0), (wall_1, cpu_1) = self.marks
        return (cpu_1 - cpu_0) / (wall_1 - wall_0)


async def measure(case: Case) -> Row:
    """Start each job when it is due, in a task of its own, and see what becomes of it."""
    whole_s = case.warm_up_s + case.seconds
    arrivals = (
        bursty(case.rate, case.seed + 1, peak=PEAK, period_s=PERIOD_S)
        if case.bursts
        else poisson(case.rate, case.seed + 1)
    )
    due_s = list(itertools.takewhile(lambda due: due < whole_s, arrivals))
    jobs = make_jobs(case, len(due_s))
    kernels = {kernel.name: kernel for kernel in KERNELS[case.mix]}
    answers: list[Any] = [None] * len(jobs)
    latencies_s = [math.nan] * len(jobs)
    tasks: dict[int, asyncio.Task[None]] = {}
    loop = asyncio.get_running_loop()
    clock = time.perf_counter
    heart, meter = Heart(), Meter()
    settle()

    async with DISPATCHERS[case.dispatcher](kernels) as serve:

        async def one(job: Job, due_s: float) -> None:
            if clock() < over_s:  # or a loop that is full of inline jobs would never get there
                answers[job.id] = await serve(job)
                latencies_s[job.id] = clock() - due_s
            del tasks[job.id]

        def start(job: Job, due_s: float) -> None:
            tasks[job.id] = loop.create_task(one(job, due_s))

        beating = asyncio.create_task(heart.beat())
        await asyncio.sleep(0)
        began_s = clock()
        over_s = began_s + whole_s + case.drain_s
        loop.call_later(case.warm_up_s, meter.mark)
        loop.call_later(whole_s, meter.mark)
        await pace(start, jobs, due_s)
        if left := list(tasks.values()):
            done, late = await asyncio.wait(left, timeout=max(0.0, over_s - clock()))
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
            for task in done:
                task.result()  # none is expected to fail
        await meter.done.wait()
        await asyncio.sleep(2 * BEAT_S)
        beating.cancel()
    return row_of(case, jobs, due_s, answers, latencies_s, heart, meter, began_s, kernels)


def row_of(
    case: Case,
    jobs: list[Job],
    due_s: list[float],
    answers: list[Any],
    latencies_s: list[float],
    heart: Heart,
    meter: Meter,
    began_s: float,
    kernels: dict[str, Kernel],
) -> Row:
    """Count what became of the jobs that were due in the measured time."""
    begin_s, end_s = case.warm_up_s, case.warm_up_s + case.seconds
    dropped: Counter[str] = Counter()
    done: list[tuple[Job, Any, float]] = []
    counted = in_time = unanswered = 0
    for job, due, answer, latency_s in zip(jobs, due_s, answers, latencies_s, strict=True):
        counts = begin_s <= due < end_s
        counted += counts
        if math.isnan(latency_s):
            unanswered += counts
            continue
        value = answer
        if isinstance(answer, Outcome):
            if answer.status is Status.DROPPED:
                dropped[answer.reason] += counts
                continue
            value = answer.value  # raises what the kernel raised
        in_time += begin_s <= due + latency_s < end_s
        if counts:
            done.append((job, value, latency_s * 1e3))
    met = sum(ms <= (job.latency_budget_ms or math.inf) for job, _, ms in done)
    ordered_ms = sorted(ms for _, _, ms in done)
    sample = random.Random(case.seed).sample(done, min(CHECKED[case.mix], len(done)))
    for job, value, _ in sample:
        if (expected := solo(kernels, job)) != value:
            raise AssertionError(f"{case.dispatcher} gave {value!r} for {job}, not {expected!r}")
    p50_ms, p95_ms, p99_ms = (
        quantile(ordered_ms, share) if ordered_ms else None for share in (0.5, 0.95, 0.99)
    )
    lag_p99_ms, stalled_share = heart.within(began_s + begin_s, began_s + end_s)
    return Row(
        offered=counted / case.seconds,
        in_budget=met / case.seconds,
        completed=in_time / case.seconds,
        p50_ms=p50_ms,
        p95_ms=p95_ms,
        p99_ms=p99_ms,
        in_budget_share=met / len(done) if done else None,
        dropped={key: count / case.seconds for key, count in sorted(dropped.items()) if count},
        unanswered=unanswered / case.seconds,
        lag_p99_ms=lag_p99_ms,
        stalled_share=stalled_share,
        loop_cpu=meter.share(),
        checked=len(sample),
    )


def main() -> None:
    """Run one case."""
    case = Case(**json.loads(sys.argv[1]))
    parallel_is_safe()  # chooses the threading layer: on this thread, as a router does
    warm_up(KERNELS[case.mix])
    if case.rate:
        print(json.dumps(dataclasses.asdict(asyncio.run(measure(case)))), flush=True)
    else:
        print(json.dumps(asyncio.run(capacity(case))), flush=True)
    os._exit(0)  # without waiting for what threads still hold


if __name__ == "__main__":
    main()
