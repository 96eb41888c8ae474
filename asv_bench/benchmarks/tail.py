"""Tail latency of single jobs that come at a moderate rate, whatever becomes of earlier ones."""

from __future__ import annotations

import struct
import sys
import time
from statistics import median
from typing import Any

import anyio

from helixnb import Decision, Job, Router, RouterConfig, Strategy
from helixnb_kernels import HASH_MIX, warm_up

STRATEGIES = ["inline", "spawn", "cpu_pool", "batch"]
RATE = 1_000.0  # jobs a second
COST = 64 * 55_000  # about 0.1 ms: a tenth of a core is busy with kernels
INPUTS = HASH_MIX.as_inputs([1, 2, 3])
# Arrivals come out of a process of their own: an event loop's timers go by whole milliseconds,
# and one that is held up would forget about the jobs that came meanwhile.
ARRIVALS = """
import os, random, struct, sys, time
draw, due = random.Random(0), time.perf_counter() + 0.05
for _ in range(int(sys.argv[1])):
    due += draw.expovariate(float(sys.argv[2]))
    time.sleep(max(0.0, due - time.perf_counter()))
    os.write(1, struct.pack("d", time.perf_counter()))
"""


class Always:
    """A policy that always chooses the same; estimates came with a later commit."""

    def __init__(self, strategy: str) -> None:
        self.decision = Decision(Strategy(strategy), "benchmark")

    def decide(self, job: Job, load: Any, config: Any, *estimate: Any) -> Decision:
        return self.decision


async def latencies_s(strategy: str, jobs: int) -> list[float]:
    """Return each job's latency from its arrival to its caller's next step, as they arrived."""
    latencies = [0.0] * jobs

    async def client(router: Router, job: Job, arrived_s: float) -> None:
        outcome = await router.submit(job)
        latencies[job.id] = time.perf_counter() - arrived_s
        if outcome.status != "completed":
            raise AssertionError(f"every job must complete, got {outcome}")

    config = RouterConfig(queue_capacity=jobs)
    command = [sys.executable, "-c", ARRIVALS, str(jobs), str(RATE)]
    async with (
        Router(config, kernels=[HASH_MIX], policy=Always(strategy)) as router,
        await anyio.open_process(command, stdin=None, stderr=None) as process,
        anyio.create_task_group() as tasks,
    ):
        assert process.stdout is not None
        count = 0
        async for chunk in process.stdout:
            for (arrived_s,) in struct.iter_unpack("d", chunk):
                job = Job(id=count, kind="HashMix", inputs=INPUTS, compute_cost=COST)
                tasks.start_soon(client, router, job, arrived_s)
                count += 1
    if count != jobs:
        raise AssertionError(f"{jobs} jobs must come, got {count}")
    return latencies


def percentile(values: list[float], share: float) -> float:
    """Return the value that a share of all lies below."""
    return sorted(values)[int(len(values) * share)]


class Tail:
    """Thousands of jobs of 0.1 ms, 1,000 a second, in rounds; asyncio.

    The strategies take turns, and of the rounds' figures the median counts: what else the
    machine does comes in bursts, and spoils the p99 of a round or two.
    """

    params = STRATEGIES
    param_names = ["strategy"]
    timeout = 300

    def setup_cache(self) -> dict[str, tuple[float, float]]:
        warm_up([HASH_MIX])
        rounds: dict[str, list[tuple[float, float]]] = {each: [] for each in STRATEGIES}
        for _ in range(5):
            for strategy, measured in rounds.items():
                latencies = anyio.run(latencies_s, strategy, 1_000)
                p99 = percentile(latencies, 0.99)
                measured.append((p99 * 1e3, p99 / percentile(latencies, 0.5)))
        return {
            strategy: (median(p99 for p99, _ in measured), median(over for _, over in measured))
            for strategy, measured in rounds.items()
        }

    def track_p99_ms(self, cache: dict[str, tuple[float, float]], strategy: str) -> float:
        return cache[strategy][0]

    def track_p99_over_p50(self, cache: dict[str, tuple[float, float]], strategy: str) -> float:
        return cache[strategy][1]

    track_p99_ms.unit = "ms"  # type: ignore[attr-defined]
    track_p99_over_p50.unit = "x"  # type: ignore[attr-defined]


class Clock:
    """A clock that goes on by what it is given."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class TailSamples:
    """The p99 of each round as a sample of a timing, by a clock that only p99s advance.

    So asv takes the rounds of several commits in turn, and compares them by a test of
    significance, neither of which it does with a figure that a benchmark tracks. A round's p99 is
    that of its best quarter of a second: what else the machine does only adds to it, for longer
    than that, while what the router does to one job in a hundred is there all the time.
    """

    params = STRATEGIES
    param_names = ["strategy"]
    timeout = 300
    timer = clock = Clock()
    rounds, repeat, number, warmup_time = 4, 3, 1, 0

    def setup(self, strategy: str) -> None:
        warm_up([HASH_MIX])

    def time_p99(self, strategy: str) -> None:
        latencies = anyio.run(latencies_s, strategy, 2_000)
        stretches = [latencies[i : i + 250] for i in range(0, len(latencies), 250)]
        self.clock.now_s += min(percentile(each, 0.99) for each in stretches)
