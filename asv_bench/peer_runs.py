"""The jobs of the peers page, the peers that run them, and how a run is measured.

A further row is an async generator below `peer`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import gc
import inspect
import math
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import numpy as np
import uvloop
from aiodataloader import DataLoader
from batched import BatchProcessor
from joblib import Parallel, delayed

from helixnb import Job, JobBlock, JobColumns, Outcomes, Router, RouterConfig, StaticPolicy
from helixnb.workload import light_mix
from helixnb_kernels import BUILT_IN, Kernel, parallel_is_safe, warm_up

KERNELS = {kernel.name: kernel for kernel in BUILT_IN}
CONFIG = RouterConfig()
CORES = CONFIG.cpu_parallelism

BATCH_JOBS, BATCH_DELAY_MS = CONFIG.batch_max_jobs, CONFIG.batch_max_delay_ms
PARALLEL_PAYS_NS = 200_000
"""How the router batches, which its peers do alike; the last is predicted work, for all cores."""

BEAT_S = 0.005
WARM_UP_JOBS = 64

# -- The jobs -------------------------------------------------------------------------------------


def open_ended(jobs: list[Job]) -> list[Job]:
    """Return the jobs as ones to be answered whenever it is, and never dropped.

    The static policy drops under pressure what doesn't scale, so all are declared to.
    """
    return [dataclasses.replace(job, latency_budget_ms=None, scaling_potential=1.0) for job in jobs]


def heavy_mix(jobs: int, seed: int) -> list[Job]:
    """Make HashMix jobs of about 1 ms."""
    draw = random.Random(seed)
    return [
        Job(
            id=i,
            kind="HashMix",
            inputs=[draw.randint(0, 200_000) for _ in range(draw.randint(2, 6))],
            compute_cost=64 * draw.randint(400_000, 700_000),
        )
        for i in range(jobs)
    ]


MIXES: dict[str, Callable[[], list[Job]]] = {
    "Light mix, 2,000 jobs": lambda: open_ended(light_mix(2_000, seed=1)),
    "Light mix, 20,000 jobs": lambda: open_ended(light_mix(20_000, seed=2)),
    "Heavy mix, 1,000 jobs": lambda: open_ended(heavy_mix(1_000, seed=3)),
}


def solo(job: Job) -> Any:
    """Run a job by its kernel's solo form."""
    kernel = KERNELS[job.kind]
    return kernel.solo(kernel.as_inputs(job.inputs), job.compute_cost, job.id)


def batch(kernel: Kernel, jobs: list[Job]) -> list[Any]:
    """Run jobs of one kind by its kernel's batch form, called as the router calls it."""
    inputs = [kernel.as_inputs(job.inputs) for job in jobs]
    costs = [job.compute_cost for job in jobs]
    predicted_ns = [kernel.predict_ns(c, len(i)) for c, i in zip(costs, inputs, strict=True)]
    threads = CORES if sum(predicted_ns) >= PARALLEL_PAYS_NS else 1
    ids = [job.id for job in jobs]
    return kernel.run_batch(inputs, costs, ids, threads=threads, weights=predicted_ns).values


# -- The peers ------------------------------------------------------------------------------------

Each = Callable[[Job], Awaitable[Any]]
Whole = Callable[[list[Job]], Awaitable[list[Any]]]
Opens = Callable[[int], AbstractAsyncContextManager[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One way to run the jobs.

    Attributes
    ----------
    open
        Takes the number of jobs, and gives what runs them while it is open: one job, in a task of
        its own, or the whole list.
    whole
        Whether it takes the whole list. No job has an end of its own then.
    what
        How it runs them, for the page.
    prepare
        Makes what it takes of the list, before the clock runs.
    """

    name: str
    open: Opens
    whole: bool
    what: str
    prepare: Callable[[list[Job]], Any]


PEERS: list[Peer] = []
"""The rows, in order."""


def peer(
    name: str, *, whole: bool = False, prepare: Callable[[list[Job]], Any] = list
) -> Callable[[Callable[[int], AsyncIterator[Any]]], Opens]:
    """Make a row of an async generator of one value; its docstring goes onto the page."""

    def add(function: Callable[[int], AsyncIterator[Any]]) -> Opens:
        opens = asynccontextmanager(function)
        what = inspect.getdoc(function) or ""
        PEERS.append(Peer(name=name, open=opens, whole=whole, what=what, prepare=prepare))
        return opens

    return add


@peer("inline")
async def inline(jobs: int) -> AsyncIterator[Each]:
    """Call the solo form in the job's own task: nothing is handed over, and the loop stands still.

    The baseline.
    """

    async def call(job: Job) -> Any:
        return solo(job)

    yield call


@peer("asyncio.to_thread")
async def asyncio_to_thread(jobs: int) -> AsyncIterator[Each]:
    """Call the solo form, a thread hop a job, on asyncio's default executor."""
    yield lambda job: asyncio.to_thread(solo, job)


@peer("anyio.to_thread.run_sync")
async def anyio_to_thread(jobs: int) -> AsyncIterator[Each]:
    """Call the solo form, a thread hop a job, under anyio's default limit of 40 threads."""
    yield lambda job: anyio.to_thread.run_sync(solo, job)


@peer("ThreadPoolExecutor")
async def executor(jobs: int) -> AsyncIterator[Each]:
    """Call the solo form by `loop.run_in_executor`, on as many threads as there are cores."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(CORES) as pool:
        yield lambda job: loop.run_in_executor(pool, solo, job)


@peer("joblib, threads", whole=True)
async def joblib_threads(jobs: int) -> AsyncIterator[Whole]:
    """Call the solo form by `Parallel`, on as many threads as there are cores.

    It is given the whole list, sizes its batches itself, and is called in a thread, since it
    blocks its caller.
    """

    def run(jobs: list[Job]) -> list[Any]:
        answers: list[Any] = parallel(delayed(solo)(job) for job in jobs)
        return answers

    with Parallel(n_jobs=CORES, backend="threading") as parallel:
        yield lambda jobs: asyncio.to_thread(run, jobs)


@peer("aiodataloader")
async def dataloader(jobs: int) -> AsyncIterator[Each]:
    """Call the batch form by `asyncio.to_thread`, for what one turn of the loop has asked for.

    One `DataLoader` a kind, without its cache.
    """

    async def load(kernel: Kernel, jobs: list[Job]) -> list[Any]:
        return await asyncio.to_thread(batch, kernel, jobs)

    loaders = {
        name: DataLoader(functools.partial(load, kernel), max_batch_size=BATCH_JOBS, cache=False)
        for name, kernel in KERNELS.items()
    }

    async def call(job: Job) -> Any:
        return await loaders[job.kind].load(job)

    yield call


@peer("batched")
async def processors(jobs: int) -> AsyncIterator[Each]:
    """Call the batch form in threads of the library's own, for what has queued up.

    One `BatchProcessor` a kind, which releases a batch by size or delay.
    """
    opened = {
        name: BatchProcessor(
            functools.partial(batch, kernel), batch_size=BATCH_JOBS, timeout_ms=BATCH_DELAY_MS
        )
        for name, kernel in KERNELS.items()
    }

    async def call(job: Job) -> Any:
        return await opened[job.kind].acall(job)

    try:
        yield call
    finally:
        for each in opened.values():
            each.shutdown()


@asynccontextmanager
async def open_router(jobs: int) -> AsyncIterator[Router]:
    """Open a router that drops nothing: it has room for all jobs, and all jobs scale."""
    config = CONFIG.replace(queue_capacity=max(jobs, CONFIG.queue_capacity))
    async with Router(config, policy=StaticPolicy()) as router:
        yield router
        stats = router.stats()
        if stats.completed != stats.submitted:
            raise AssertionError(f"every job must complete, got {stats}")


@peer("helixnb submit")
async def submit(jobs: int) -> AsyncIterator[Each]:
    """Call `router.submit` once a job, each in a task of its own."""
    async with open_router(jobs) as router:

        async def call(job: Job) -> Any:
            return (await router.submit(job)).value

        yield call


@peer("helixnb submit_many", whole=True)
async def submit_many(jobs: int) -> AsyncIterator[Whole]:
    """Call `router.submit_many` once, with the list."""
    async with open_router(jobs) as router:

        async def run(jobs: list[Job]) -> list[Any]:
            return [outcome.value for outcome in await router.submit_many(jobs)]

        yield run


def columns_of(jobs: list[Job]) -> JobColumns:
    """Return the jobs as columns, a block a kind."""
    positions = defaultdict(list)
    for i, job in enumerate(jobs):
        positions[job.kind].append(i)
    blocks = []
    for kind, own in positions.items():
        mine = [jobs[i] for i in own]
        blocks.append(
            JobBlock(
                kind,
                np.array([v for job in mine for v in job.inputs], np.uint64),
                offsets=np.cumsum([0, *(len(job.inputs) for job in mine)]),
                compute_cost=np.array([job.compute_cost for job in mine], np.uint64),
                scaling_potential=np.array([job.scaling_potential for job in mine]),
                id=np.array([job.id for job in mine], np.uint64),
            )
        )
    order = np.empty(len(jobs), np.int64)
    order[np.concatenate(list(positions.values()))] = np.arange(len(jobs))
    return JobColumns(blocks, order)


@peer("helixnb submit_many, columns", whole=True, prepare=columns_of)
async def submit_columns(jobs: int) -> AsyncIterator[Callable[[JobColumns], Awaitable[Outcomes]]]:
    """Call `router.submit_many` once, with columns at hand; the answers stay in columns."""
    async with open_router(jobs) as router:
        yield router.submit_many


# -- Measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run of one peer took; latencies are None where jobs have no end of their own."""

    wall_s: float
    p50_s: float | None
    p99_s: float | None
    lag_p99_s: float


def quantile(values: list[float], share: float) -> float:
    """Return the smallest value that at least this share of them don't exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


async def beat(lags_s: list[float], stop: asyncio.Event) -> None:
    """Sleep over and over, and note how late each time; the beat that the run ends in counts."""
    while not stop.is_set():
        due_s = time.perf_counter() + BEAT_S
        await asyncio.sleep(BEAT_S)
        lags_s.append(max(0.0, time.perf_counter() - due_s))


async def measure(peer: Peer, jobs: list[Job], expected: list[Any]) -> Run:
    """Run the jobs through a peer once, and check every answer."""
    ended_s: list[float] = [0.0] * len(jobs)
    lags_s: list[float] = []
    stop = asyncio.Event()

    async def one(run: Each, i: int, job: Job) -> Any:
        answer = await run(job)
        ended_s[i] = time.perf_counter()
        return answer

    async def all_of(run: Any, jobs: Any) -> Any:
        if peer.whole:
            return await run(jobs)
        return await asyncio.gather(*(one(run, i, job) for i, job in enumerate(jobs)))

    async with peer.open(len(jobs)) as run:
        await all_of(run, peer.prepare(jobs[:WARM_UP_JOBS]))
        given = peer.prepare(jobs)
        gc.collect()
        heart = asyncio.create_task(beat(lags_s, stop))
        await asyncio.sleep(0)
        began_s = time.perf_counter()
        answers = await all_of(run, given)
        wall_s = time.perf_counter() - began_s
        stop.set()
        await heart
    if isinstance(answers, Outcomes):
        answers = [outcome.value for outcome in answers]
    if answers != expected:
        raise AssertionError(f"{peer.name} gave other answers than solo runs")
    latencies_s = [each - began_s for each in ended_s]
    return Run(
        wall_s=wall_s,
        p50_s=None if peer.whole else quantile(latencies_s, 0.5),
        p99_s=None if peer.whole else quantile(latencies_s, 0.99),
        lag_p99_s=quantile(lags_s, 0.99),
    )


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}

Results = dict[tuple[str, str, str], list[Run]]
"""The runs of each loop, mix and peer, by their names."""


def measure_all(rounds: int) -> tuple[Results, dict[str, list[Job]]]:
    """Run everything, in interleaved rounds that go to and fro."""
    parallel_is_safe()  # chooses the threading layer: on this thread, as a router does
    warm_up(BUILT_IN)
    mixes = {name: make() for name, make in MIXES.items()}
    expected = {name: [solo(job) for job in jobs] for name, jobs in mixes.items()}
    cases = [(loop, mix, peer) for loop in LOOPS for mix in mixes for peer in PEERS]
    results: Results = {}
    for each in range(rounds):
        for loop, mix, peer in cases[:: -1 if each % 2 else 1]:
            with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
                run = runner.run(measure(peer, mixes[mix], expected[mix]))
            results.setdefault((loop, mix, peer.name), []).append(run)
    return results, mixes
