"""Run parallel functions of a user's own through routers, then in a forked child; print JSON.

A program of its own, since what it does aborts the process where it isn't prevented.
"""

from __future__ import annotations

import functools
import json
import os
import threading
import warnings
from typing import Any

import anyio
import numba
import numpy as np

from helixnb import (
    BlockingRouter,
    Decision,
    Job,
    Router,
    RouterConfig,
    RouterStateError,
    Status,
    Strategy,
)
from helixnb_kernels import MONTE_CARLO, threading_layer

ARRAY = np.arange(200_000.0)
TOTAL = float(ARRAY.sum())
LARGE = 10**6


@numba.njit(parallel=True, nogil=True)
def total(x: Any) -> Any:
    """Add numbers up, on several threads."""
    result = 0.0
    for i in numba.prange(len(x)):
        result += x[i]
    return result


@functools.wraps(total)
def decorated(x: Any) -> Any:
    return total(x)


class Model:
    total = total

    def score(self) -> Any:
        return total(ARRAY)


CALLS: list[tuple[Any, ...]] = [
    (total, ARRAY),
    (functools.partial(total, ARRAY),),
    (Model().score,),
    (decorated, ARRAY),
    (lambda: total(ARRAY),),
]


class Eager:
    """A policy that has kernels batched, and wants callables on the event loop."""

    def decide(self, job: Job, load: Any, config: Any, estimate: Any) -> Decision:
        return Decision(Strategy.BATCH if job.kind == "MonteCarlo" else Strategy.INLINE, "test")


async def call_together() -> dict[str, Any]:
    """Make calls by eight tasks of one router, two of another, and batches beside them."""
    outcomes = []
    threads = set()

    def note() -> Any:
        threads.add(threading.get_ident())
        return total(ARRAY)

    async def call(router: Router, rounds: int) -> None:
        for _ in range(rounds):
            for function, *args in (*CALLS, (note,)):
                outcomes.append(await router.run(function, *args, compute_cost=1))

    async def batches(router: Router) -> None:
        jobs = [Job(id=i, kind="MonteCarlo", compute_cost=400_000) for i in range(32)]
        for _ in range(4):
            done = await router.submit_many(jobs)
            assert {each.status for each in done} == {Status.COMPLETED}

    config = RouterConfig(cpu_parallelism=2)
    one = Router(config, kernels=[MONTE_CARLO], policy=Eager())
    other = Router(config, kernels=(), policy=Eager())
    async with one, other, anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(call, one, 4)
        for _ in range(2):
            tasks.start_soon(call, other, 4)
        tasks.start_soon(batches, one)
    return {
        "calls": len(outcomes),
        "wrong": sum(float(each.value) != TOTAL for each in outcomes),
        "here": threading.get_ident() in threads,
        "strategies": sorted({each.strategy.value for each in outcomes}),
        "turns": sum(each.reason == "one_at_a_time" for each in outcomes),
    }


def call_from_a_call() -> bool:
    """Let a call, which is one of these itself, wait for another one."""
    with BlockingRouter(RouterConfig(cpu_parallelism=2), kernels=()) as router:

        def ask() -> Any:
            return router.run(total, ARRAY, compute_cost=LARGE).value + 0 * total(ARRAY[:1])

        return bool(router.run(ask, compute_cost=LARGE).value == TOTAL)


async def call_in_child() -> str:
    async with Router(kernels=()) as router:
        try:
            outcome = await router.run(total, ARRAY, compute_cost=LARGE)
        except RouterStateError as error:
            plain = await router.run(ARRAY.sum, compute_cost=LARGE)
            return str(error) if plain.value == TOTAL else "wrong"
        return "right" if outcome.value == TOTAL else "wrong"


def in_child() -> str:
    """Return what a forked child says of a call, or how it ended."""
    receiver, sender = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads, on purpose
        child = os.fork()
    if child == 0:
        os.write(sender, anyio.run(call_in_child).encode())
        os._exit(0)
    os.close(sender)
    with os.fdopen(receiver) as answer:
        said = answer.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return said if status == 0 else f"{said} ended by {status}"


def main() -> None:
    report: dict[str, Any] = anyio.run(call_together)
    report["layer"] = threading_layer()
    report["nested"] = call_from_a_call()
    if hasattr(os, "fork"):
        report["child"] = in_child()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
