"""The router: how much of a slot is used while the event loop is idle, busy or saturated."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import anyio
import trio

from helixnb import Decision, Job, Router, RouterConfig, Strategy
from helixnb_kernels import HASH_MIX, warm_up

BACKENDS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}
COST = 64 * 550_000  # about 1 ms


class Pooled:
    """A policy that pools every job."""

    def decide(self, job: Job, load: Any, config: Any, *estimate: Any) -> Decision:
        return Decision(Strategy.CPU_POOL, "benchmark")


def kernel_seconds(inputs: Any) -> float:
    """Return how long the kernel takes alone: the median of many runs."""
    taken = []
    for _ in range(100):
        began = time.perf_counter()
        HASH_MIX.solo(inputs, COST, 1)
        taken.append(time.perf_counter() - began)
    return median(taken)


async def slot_use(backend: str, ready_tasks: int) -> float:
    """Return the share of a slot's time that 1 ms kernels run in, beside tasks that never wait."""
    inputs = HASH_MIX.as_inputs([1])
    kernel_s = kernel_seconds(inputs)
    done = 0
    turn = trio.lowlevel.checkpoint if backend == "trio" else functools.partial(asyncio.sleep, 0)

    async def client(router: Router) -> None:
        nonlocal done
        while True:
            await router.submit(Job(id=1, kind="HashMix", inputs=inputs, compute_cost=COST))
            done += 1

    async def spin() -> None:
        while True:
            await turn()

    config = RouterConfig(cpu_parallelism=1)
    async with Router(config, policy=Pooled()) as router, anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(client, router)
        for _ in range(ready_tasks):
            tasks.start_soon(spin)
        began = time.perf_counter()
        await anyio.sleep(1.5)
        used = done * kernel_s / (time.perf_counter() - began)
        tasks.cancel_scope.cancel()
    return used


class SlotUtilisation:
    """One slot, four clients in turn, 1 ms kernels, and tasks that are always ready."""

    params = [list(BACKENDS), [0, 20, 200]]
    param_names = ["backend", "ready_tasks"]
    timeout = 120

    def setup(self, backend: str, ready_tasks: int) -> None:
        warm_up([HASH_MIX])

    def track_slot_use(self, backend: str, ready_tasks: int) -> float:
        used: float = anyio.run(slot_use, backend, ready_tasks, **BACKENDS[backend])
        return used

    def track_slot_time_over_kernel_time(self, backend: str, ready_tasks: int) -> float:
        """Give the inverse, since asv takes less for better."""
        return 1 / max(self.track_slot_use(backend, ready_tasks), 1e-6)

    track_slot_use.unit = "ratio"  # type: ignore[attr-defined]
    track_slot_time_over_kernel_time.unit = "x"  # type: ignore[attr-defined]


class Fixed:
    """A policy that always chooses the same."""

    def __init__(self, strategy: Strategy) -> None:
        self.decision = Decision(strategy, "benchmark")

    def decide(self, job: Job, load: Any, config: Any, *estimate: Any) -> Decision:
        return self.decision


async def submit_seconds(
    strategy: str,
    jobs: int,
    prepare: Callable[[Router], object] = lambda _: None,
    given: dict[str, Any] | None = None,
    **settings: Any,
) -> float:
    """Return how long so many tasks take that submit one tiny job each, all at once.

    `given` and `settings` are the router's and its configuration's; `prepare` is called before.
    """
    # Batches gather while threads are on their way, and for nothing else.
    config = RouterConfig(queue_capacity=max(jobs, 1), batch_max_delay_ms=0, **settings)
    work = [Job(id=i, kind="HashMix", inputs=INPUTS, compute_cost=640) for i in range(jobs)]
    async with Router(config, policy=Fixed(Strategy(strategy)), **(given or {})) as router:
        prepare(router)
        began = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for each in work:
                tasks.start_soon(router.submit, each)
        taken = time.perf_counter() - began
        if router.stats().completed != jobs:
            raise AssertionError("every job must complete")
    return taken


async def bare_inline_seconds(jobs: int) -> float:
    """Return the same for tasks that only call the kernel."""

    async def call(job_id: int) -> int:
        value: int = HASH_MIX.solo(INPUTS, 640, job_id)
        return value

    began = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for i in range(jobs):
            tasks.start_soon(call, i)
    return time.perf_counter() - began


async def bare_event_seconds(jobs: int) -> float:
    """Return the same for tasks that only wait for an event each, set by another task."""
    events = [anyio.Event() for _ in range(jobs)]

    async def set_all() -> None:
        for event in events:
            event.set()

    began = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for event in events:
            tasks.start_soon(event.wait)
        tasks.start_soon(set_all)
    return time.perf_counter() - began


INPUTS = HASH_MIX.as_inputs([1, 2, 3])


class Submit:
    """What `submit` costs over a bare task: one that calls the kernel, or waits for an event."""

    params = [list(BACKENDS), ["inline", "cpu_pool", "batch"], [100, 1_000, 20_000]]
    param_names = ["backend", "strategy", "jobs"]
    timeout = 300

    def setup(self, backend: str, strategy: str, jobs: int) -> None:
        warm_up([HASH_MIX])

    def track_over_bare_task(self, backend: str, strategy: str, jobs: int) -> float:
        bare = bare_inline_seconds if strategy == "inline" else bare_event_seconds
        ratios = []
        for _ in range(5):
            base = anyio.run(bare, jobs, **BACKENDS[backend])
            ratios.append(anyio.run(submit_seconds, strategy, jobs, **BACKENDS[backend]) / base)
        return median(ratios)

    def track_microseconds_per_job(self, backend: str, strategy: str, jobs: int) -> float:
        taken = [anyio.run(submit_seconds, strategy, jobs, **BACKENDS[backend]) for _ in range(5)]
        return median(taken) / jobs * 1e6

    track_over_bare_task.unit = "x"  # type: ignore[attr-defined]
    track_microseconds_per_job.unit = "us"  # type: ignore[attr-defined]
