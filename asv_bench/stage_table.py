"""Print where the time of a job goes, stage by stage, as a table in Markdown."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import anyio

from helixnb import (
    AdaptivePolicy,
    Decision,
    Job,
    Load,
    Policy,
    RouterConfig,
    StaticPolicy,
    Strategy,
)
from helixnb._core.estimate import CostModel
from helixnb._core.lifecycle import Entry, Ledger
from helixnb._core.queues import Backlog, JobQueue
from helixnb._exec.work import Chunk
from helixnb._intake import entry_of
from helixnb_kernels import HASH_MIX, warm_up

JOBS, ROUNDS = 2_000, 21
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


def each(run: Callable[[Any], object], items: Iterable[Any]) -> None:
    """Call `run` for each item."""
    for item in items:
        run(item)


async def one_round(stages: dict[str, list[float]]) -> None:
    """Take fresh jobs from their beginning to their end, and note each stage's time."""
    array = HASH_MIX.as_inputs([1, 2, 3])
    config = RouterConfig(cpu_parallelism=2)
    costs = CostModel(config)
    model = costs.of_kernel("HashMix")
    for i in range(64):
        model.learn(COST, 2_000, i)
    decision = Decision(Strategy.CPU_POOL, "stage")
    ledger, queue = Ledger(time.perf_counter_ns), JobQueue(Backlog(JOBS))
    some = range(JOBS)
    lists = [job([1, 2, 3]) for _ in some]
    jobs: list[Job] = []
    entries: list[Entry] = []
    chunks: list[Chunk] = []
    events: list[anyio.Event] = []
    solo = HASH_MIX.solo

    def note(name: str, run: Callable[[Any], object], items: Iterable[Any]) -> None:
        stages.setdefault(name, []).append(timed(lambda: each(run, items)))

    def decide(policy: Policy) -> Callable[[Entry], Decision]:
        load, estimate = Load(cpu_busy=0), model.estimate(COST, COST, 64)
        return lambda entry: policy.decide(entry.job, load, config, estimate)

    def take(_: int) -> None:
        chunks.append(Chunk(ledger, queue.take(CHUNK)))

    note("construct: `Job(...)`", lambda _: jobs.append(job(array)), some)
    note("validate, inputs a list", lambda each: entry_of(each, HASH_MIX, costs, 0), lists)
    note(
        "validate, inputs an array",
        lambda each: entries.append(entry_of(each, HASH_MIX, costs, 0)),
        jobs,
    )
    note("estimate", lambda entry: model.estimate(entry.work, entry.predicted_ns, 64), entries)
    note("decide, StaticPolicy", decide(StaticPolicy()), entries)
    note("decide, AdaptivePolicy", decide(AdaptivePolicy()), entries)
    for entry in entries:
        entry.decide(decision)
    note("enter in the ledger", ledger.enter, entries)
    note("enqueue", queue.push, entries)
    note("make an event", lambda _: events.append(anyio.Event()), some)
    note("take, 250 at once", take, range(JOBS // CHUNK))
    note("kernel, 250 at once", Chunk.run, chunks)
    note("kernel, alone", lambda job_id: solo(array, COST, job_id), some)
    note("learn", lambda entry: entry.model.learn(COST, 2_000, 64), entries)
    note("record: settle", Chunk.settle, chunks)

    async def wait(event: anyio.Event) -> None:
        await event.wait()

    async with anyio.create_task_group() as tasks:
        for event in events:
            tasks.start_soon(wait, event)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        note("fan back: set an event each", lambda event: event.set(), events)
        began = time.perf_counter()
    taken = (time.perf_counter() - began) / JOBS * 1e6
    stages.setdefault("resume: the task that waits", []).append(taken)


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
