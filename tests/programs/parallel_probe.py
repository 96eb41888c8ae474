"""Launch parallel code from several threads, then fork; print what happened as JSON.

A program of its own, since what it provokes aborts the process where it isn't prevented.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import warnings
from typing import Any

import anyio
import numba
import numpy as np

from helixnb import Decision, Job, Router, RouterConfig, Strategy
from helixnb_kernels import MONTE_CARLO, reference, threading_layer, warm_up

IDS = list(range(12))
COSTS = [4_000_000] * len(IDS)
INPUTS = [np.array([i], np.uint64) for i in IDS]
EXPECTED = {i: reference.monte_carlo_job([i], COSTS[0], i) for i in (0, 11)}


@numba.njit(parallel=True, nogil=True)
def foreign(out: Any) -> None:
    """Stand for another library's parallel code."""
    for i in numba.prange(len(out)):
        out[i] = i


def right(values: list[Any]) -> bool:
    return all(values[i] == answer for i, answer in EXPECTED.items())


def launch_from_threads(with_foreign: bool) -> dict[str, Any]:
    """Run batches from four threads at once, beside one thread of somebody else's."""
    wrong: list[Any] = []
    parallel: list[bool] = []
    stop = threading.Event()

    def batches() -> None:
        for _ in range(15):
            result = MONTE_CARLO.run_batch(INPUTS, COSTS, IDS, threads=2)
            parallel.append(result.parallel)
            if not right(result.values):
                wrong.append(result)

    def others() -> None:
        out = np.zeros(1_000)
        while not stop.is_set():
            foreign(out)

    threads = [threading.Thread(target=batches) for _ in range(4)]
    other = threading.Thread(target=others)
    if with_foreign:
        other.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    if with_foreign:
        other.join()
    return {"batches": len(parallel), "parallel": sum(parallel), "wrong": len(wrong)}


class Batch:
    def decide(self, job: Job, load: Any, config: Any, estimate: Any) -> Decision:
        return Decision(Strategy.BATCH, "test")


async def route() -> dict[str, Any]:
    """Run a batch through a router."""
    jobs = [
        Job(id=i, kind="MonteCarlo", inputs=[i], compute_cost=cost)
        for i, cost in zip(IDS, COSTS, strict=True)
    ]
    config = RouterConfig(cpu_parallelism=2, batch_max_jobs=len(jobs))
    async with Router(config, policy=Batch()) as router:
        tickets = [router.submit_soon(job) for job in jobs]
        outcomes = [await ticket.wait() for ticket in tickets]
        stats = router.stats()
    return {
        "right": right([outcome.value for outcome in outcomes]),
        "parallel": stats.parallel_launches,
        "layer": stats.threading_layer,
    }


def in_child(generations: int) -> bool:
    """Run a batch in a forked child, or in a child's child; tell whether it did."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads, on purpose
        child = os.fork()
    if child == 0:
        if generations > 1:
            os._exit(0 if in_child(generations - 1) else 1)
        try:
            answer = anyio.run(route)
            direct = MONTE_CARLO.run_batch(INPUTS, COSTS, IDS, threads=2)
            os._exit(0 if answer["right"] and right(direct.values) else 1)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(2)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False


def main() -> None:
    warm_up([MONTE_CARLO])
    foreign(np.zeros(2))
    layer = threading_layer()
    report: dict[str, Any] = {"layer": layer}
    # Under workqueue nobody may launch from two threads; the other library alone may.
    report["threads"] = launch_from_threads(with_foreign=True)
    report["router"] = anyio.run(route)
    if hasattr(os, "fork"):
        report["child"] = in_child(1)
        report["grandchild"] = in_child(2)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
