"""Print where the time of a job goes, stage by stage, as a table in Markdown."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import anyio

from helixnb import Decision, Job, Load, RouterConfig, StaticPolicy, Strategy
from helixnb._core.lifecycle import Entry, Ledger
from helixnb._core.queues import Backlog, JobQueue
from helixnb._exec.work import Chunk
from helixnb._intake import entry_of
from helixnb_kernels import HASH_MIX, warm_up

JOBS, ROUNDS = 2_000, 21
KERNELS = {"HashMix": HASH_MIX}
COST = 640
CHUNK = 250


def job(inputs: Any) -> Job:
    """Make a tiny job: ten rounds of HashMix."""
    return Job(id=1, kind="HashMix", inputs=inputs, compute_cost=COST)


def timed(run: Callable[[], object], jobs: int = JOBS) -> float:
    """Return the microseconds a job that `run` takes for all of them."""
    began = time.perf_counter()
    run()
    return (time.perf_counter() - began) / jobs * 1e6


def drain(calls: Iterable[object]) -> None:
    """Go through what is computed as it is asked for."""
    for _ in calls:
        pass


async def one_round(stages: dict[str, list[float]]) -> None:
    """Take fresh jobs from their beginning to their end, and note each stage's time."""
    array = HASH_MIX.as_inputs([1, 2, 3])
    policy, config = StaticPolicy(), RouterConfig(cpu_parallelism=2)
    decision = Decision(Strategy.CPU_POOL, "stage")
    ledger, queue = Ledger(time.perf_counter_ns), JobQueue(Backlog(JOBS))
    some = range(JOBS)
    note: Callable[[str, float], None] = lambda name, us: stages.setdefault(name, []).append(us)  # noqa: E731
    jobs: list[Job] = []
    entries: list[Entry] = []
    chunks: list[Chunk] = []
    events: list[anyio.Event] = []
    note("construct: `Job(...)`", timed(lambda: jobs.extend(job(array) for _ in some)))
    note(
        "validate, inputs an array",
        timed(lambda: entries.extend(entry_of(j, KERNELS, 0) for j in jobs)),
    )
    lists = [job([1, 2, 3]) for _ in some]
    note(
        "validate, inputs a list",
        timed(lambda: drain(entry_of(each, KERNELS, 0) for each in lists)),
    )
    note("decide", timed(lambda: drain(policy.decide(j, Load(cpu_busy=0), config) for j in jobs)))
    for entry in entries:
        entry.decide(decision)
    note("enter in the ledger", timed(lambda: drain(ledger.enter(entry) for entry in entries)))
    note("enqueue", timed(lambda: drain(queue.push(entry) for entry in entries)))
    note("make an event", timed(lambda: events.extend(anyio.Event() for _ in some)))
    note(
        "take, a chunk of 250",
        timed(
            lambda: chunks.extend(Chunk(ledger, queue.take(CHUNK)) for _ in range(JOBS // CHUNK))
        ),
    )
    note("kernel, in the chunk", timed(lambda: drain(chunk.run() for chunk in chunks)))
    solo = HASH_MIX.solo
    note("kernel, alone", timed(lambda: drain(solo(array, COST, i) for i in some)))
    note("record: settle", timed(lambda: drain(chunk.settle() for chunk in chunks)))

    async def wait(event: anyio.Event) -> None:
        await event.wait()

    async with anyio.create_task_group() as tasks:
        for event in events:
            tasks.start_soon(wait, event)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        note("fan back: set an event each", timed(lambda: drain(event.set() for event in events)))
        began = time.perf_counter()
    note("resume: the task that waits", (time.perf_counter() - began) / JOBS * 1e6)


async def hops(stages: dict[str, list[float]]) -> None:
    """Note what a thread costs: the hop there and back, alone."""
    for _ in range(20):
        began = time.perf_counter()
        await anyio.to_thread.run_sync(time.perf_counter)
        taken = (time.perf_counter() - began) * 1e6
        stages.setdefault("hop, for all jobs of a visit", []).append(taken)


async def main() -> None:
    """Measure and print."""
    warm_up([HASH_MIX])
    stages: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        await one_round(stages)
        await hops(stages)
    width = max(map(len, stages))
    print(f"| {'stage':{width}} | us a job |\n|{'-' * (width + 2)}|--:|")
    for name, seen in stages.items():
        print(f"| {name:{width}} | {median(seen):.2f} |")


if __name__ == "__main__":
    anyio.run(main)
