"""The books balance after anything: random traffic with failures, cancellations and changes."""

from __future__ import annotations

import random
import time
from typing import Any

import anyio
import pytest
from support import PICKY, Always, check_balanced, job, router

from helixnb import Decision, Estimate, Job, Kernel, Load, Router, RouterConfig, Status, Strategy

pytestmark = pytest.mark.anyio

STRATEGIES = tuple(Strategy)


class Dice:
    """A policy that chooses at random, by a seed."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw

    def decide(self, job: Job, load: Load, config: RouterConfig, estimate: Estimate) -> Decision:
        return Decision(self._draw.choice(STRATEGIES), "dice")


def nap(inputs: Any, compute_cost: int, job_id: int) -> int:
    time.sleep(job_id % 4 / 2_000)
    return job_id


NAP = Kernel(name="Nap", solo=nap, ns_per_work=1_000.0)
KINDS = ("HashMix", "PrimeCount", "MonteCarlo", "Nap", "Picky")


def check_answer(status: Status, kind: str, job_id: int, value: Any) -> None:
    if kind == "Nap" and status is Status.COMPLETED:
        assert value == job_id
    if kind == "Picky":
        assert status is not (Status.FAILED if job_id % 3 else Status.COMPLETED)


async def act(r: Router, draw: random.Random, number: int) -> None:
    """Do one thing that a service might do to a router."""
    made = job(number, draw.choice(KINDS), [number], compute_cost=draw.randint(0, 50_000))
    match draw.randrange(8):
        case 0 | 1 | 2:
            outcome = await r.submit(made)
            check_answer(outcome.status, made.kind, number, outcome.value_or(None))
        case 3:
            with anyio.move_on_after(draw.random() * 0.004):
                await r.submit(made)
        case 4:
            ticket = r.submit_soon(made)
            await anyio.sleep(draw.random() * 0.002)
            ticket.cancel()
            assert (await ticket.wait()).job_id == number
        case 5:
            with anyio.move_on_after(draw.random() * 0.02):
                jobs = [job(i, draw.choice(KINDS)) for i in range(draw.randrange(40))]
                outcomes = await r.submit_many(jobs)
                assert [outcome.job_id for outcome in outcomes] == list(range(len(jobs)))
        case 6:
            with anyio.move_on_after(draw.random() * 0.004):
                await r.run(divmod, number, draw.randrange(3), compute_cost=number)
        case 7:
            r.reconfigure(
                cpu_parallelism=draw.randint(1, 4),
                queue_capacity=draw.randint(1, 40),
                batch_max_jobs=draw.randint(1, 20),
                batch_max_delay_ms=draw.choice([0, 0.5, 2]),
            )


@pytest.mark.parametrize("seed", range(6))
async def test_random_traffic(seed: int) -> None:
    """Two routers under random traffic lose nothing, leak nothing, and answer rightly."""
    draw = random.Random(seed)
    routers = [router(NAP, PICKY, policy=Dice(draw)) for _ in range(2)]

    async def client(r: Router, first: int) -> None:
        for number in range(first, first + 12):
            await act(r, draw, number)

    with anyio.fail_after(50):
        async with routers[0] as one, routers[1] as two:
            async with anyio.create_task_group() as tasks:
                for i in range(16):
                    tasks.start_soon(client, (one, two)[i % 2], i * 100)
            for r in routers:
                await r.drain()
                # A cancelled job's thread may still be running, so a slot may still be busy.
                check_balanced(r.stats(), idle=False)
                assert (r.stats().in_flight, r.stats().waiting) == (0, 0)
    for r in routers:
        assert r.stats().submitted > 50
        check_balanced(r.stats())


@pytest.mark.parametrize("seed", range(6))
async def test_left_in_the_middle_of_traffic(seed: int) -> None:
    """A router that is left while clients still submit gives every job an outcome."""
    draw = random.Random(seed)
    r = router(NAP, PICKY, policy=Dice(draw), drain_timeout_s=0.02)

    async def client(first: int) -> None:
        for number in range(first, first + 40):
            await act(r, draw, number)

    with anyio.fail_after(50):
        async with anyio.create_task_group() as tasks, r:
            for i in range(12):
                tasks.start_soon(client, i * 100)
            await anyio.sleep(0.03)
            if seed % 2:
                tasks.cancel_scope.cancel()
    check_balanced(r.stats())
    assert r.stats().state == "closed"


async def test_an_open_loop_overload() -> None:
    """Far more than fits arrives at once: all is answered, dropped by reason, or both."""
    async with router(NAP, policy=Always(Strategy.CPU_POOL), queue_capacity=20) as r:
        tickets = [r.submit_soon(job(i, "Nap")) for i in range(500)]
        outcomes = [await ticket.wait() for ticket in tickets]
    stats = r.stats()
    assert stats.completed >= 20
    assert stats.dropped_by_reason == {"queue_full": stats.dropped}
    assert stats.dropped == sum(o.status is Status.DROPPED for o in outcomes) > 0
    check_balanced(stats)
