"""Callers that go away: nothing leaks, and what has not begun never runs."""

from __future__ import annotations

import anyio
import pytest
from support import IN_THREADS, Always, Gate, check_balanced, job, router

from helixnb import JobCancelled, Router, Status, Strategy

pytestmark = pytest.mark.anyio


async def submit_and_cancel(r: Router, count: int) -> None:
    """Submit jobs, wait until they are where they wait, and cancel their callers."""
    async with anyio.create_task_group() as tasks:
        for i in range(count):
            tasks.start_soon(r.submit, job(100 + i, "Gate"))
        await anyio.wait_all_tasks_blocked()
        assert r.stats().in_flight >= count
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("strategy", IN_THREADS)
async def test_cancelled_while_running(strategy: Strategy) -> None:
    """The caller leaves at once; the slot is free when the thread has ended, not before."""
    gate = Gate()
    async with router(gate.kernel, policy=Always(strategy)) as r:
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(r.submit, job(1, "Gate"))
                await gate.begun()
                tasks.cancel_scope.cancel()
        stats = r.stats()
        assert (stats.cancelled, stats.in_flight, stats.cpu_busy) == (1, 0, 1)
        gate.open()
        outcome = await r.submit(job(2, "Gate"))
        assert outcome.value == 2
    assert gate.ran == [1, 2]
    check_balanced(r.stats())


@pytest.mark.parametrize("strategy", IN_THREADS)
async def test_cancelled_while_queued(strategy: Strategy) -> None:
    """Jobs whose callers went away leave the queue at once and never run."""
    gate = Gate()
    policy = Always(Strategy.SPAWN)
    async with router(gate.kernel, policy=policy, batch_max_jobs=8) as r:
        holders = [r.submit_soon(job(i, "Gate")) for i in range(2)]
        await gate.begun(2)
        policy.strategy = strategy
        await submit_and_cancel(r, 5)
        stats = r.stats()
        assert (stats.cancelled, stats.waiting, stats.in_flight) == (5, 0, 2)
        survivor = r.submit_soon(job(50, "Gate"))
        gate.open()
        assert (await survivor.wait()).value == 50
        for ticket in holders:
            await ticket.wait()
    assert sorted(gate.ran) == [0, 1, 50]
    check_balanced(r.stats())


async def test_cancelled_while_a_batch_gathers() -> None:
    """A cancelled entry leaves the batch: the others are released without it."""
    gate = Gate()
    gate.open()
    async with router(
        gate.kernel, policy=Always(Strategy.BATCH), batch_max_jobs=3, batch_max_delay_ms=60_000
    ) as r:
        first = r.submit_soon(job(1, "Gate"))
        gone = r.submit_soon(job(2, "Gate"))
        assert gone.cancel()
        second = r.submit_soon(job(3, "Gate"))
        await anyio.wait_all_tasks_blocked()
        assert not first.done  # two jobs, not three: the batch still gathers
        third = r.submit_soon(job(4, "Gate"))
        with anyio.fail_after(30):
            values = [(await ticket.wait()).value for ticket in (first, second, third)]
    assert values == gate.ran == [1, 3, 4]
    check_balanced(r.stats())


async def test_cancelled_in_a_chunk_before_its_turn() -> None:
    """A job that a thread holds but hasn't begun with doesn't run any more."""
    gate = Gate(ns_per_work=1.0)
    policy = Always(Strategy.SPAWN)
    blocker = Gate("Blocker")
    async with router(gate.kernel, blocker.kernel, policy=policy, cpu_parallelism=1) as r:
        r.submit_soon(job(0, "Blocker"))
        await blocker.begun()
        policy.strategy = Strategy.CPU_POOL
        tickets = [r.submit_soon(job(i, "Gate")) for i in (1, 2, 3)]
        blocker.open()
        await gate.begun()  # all three are in one thread; the first holds it
        assert r.stats().waiting == 0
        assert tickets[1].cancel()
        gate.open()
        assert (await tickets[2].wait()).value == 3
    assert gate.ran == [1, 3]
    check_balanced(r.stats())


async def test_a_ticket_can_be_cancelled() -> None:
    """The outcome is there at once; a second cancel, or one too late, says so."""
    gate = Gate()
    async with router(gate.kernel, policy=Always(Strategy.SPAWN)) as r:
        ticket = r.submit_soon(job(1, "Gate"))
        await gate.begun()
        assert ticket.cancel()
        assert not ticket.cancel()
        assert ticket.done
        outcome = await ticket.wait()
        assert outcome.status is Status.CANCELLED
        with pytest.raises(JobCancelled, match="job 1 was cancelled"):
            _ = outcome.value
        gate.open()
        finished = r.submit_soon(job(2, "Gate"))
        await finished.wait()
        assert not finished.cancel()
    check_balanced(r.stats())


async def test_a_ticket_outlives_who_waits_for_it() -> None:
    """Cancelling a wait leaves the job as it is."""
    gate = Gate()
    async with router(gate.kernel, policy=Always(Strategy.CPU_POOL)) as r:
        ticket = r.submit_soon(job(1, "Gate"))
        await gate.begun()
        with anyio.move_on_after(0.01):
            await ticket.wait()
        assert not ticket.done
        gate.open()
        assert (await ticket.wait()).value == 1
    check_balanced(r.stats())


async def test_a_queued_inline_ticket_can_be_cancelled() -> None:
    """An inline job that hasn't had its turn on the loop never runs."""
    gate = Gate()
    gate.open()
    async with router(gate.kernel, policy=Always(Strategy.INLINE)) as r:
        gone, kept = r.submit_soon(job(1, "Gate")), r.submit_soon(job(2, "Gate"))
        assert gate.ran == []  # nothing runs inside submit_soon
        assert gone.cancel()
        assert (await kept.wait()).value == 2
    assert gate.ran == [2]
    check_balanced(r.stats())


@pytest.mark.parametrize("strategy", IN_THREADS)
async def test_cancelled_submit_many(strategy: Strategy) -> None:
    """All jobs of a cancelled call are cancelled, queued ones without running."""
    gate = Gate()
    async with router(gate.kernel, policy=Always(strategy), batch_max_jobs=2) as r:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(r.submit_many, [job(i, "Gate") for i in range(9)])
            await gate.begun(1)
            tasks.cancel_scope.cancel()
        assert r.stats().cancelled == 9
        gate.open()
        await r.submit(job(20, "Gate"))
    assert len(gate.ran) <= 2 * 2 + 1  # two slots, of up to two jobs each, and the last job
    check_balanced(r.stats())


async def test_cancelled_before_it_began() -> None:
    """Under a cancelled scope a job is cancelled, or not even taken in."""
    gate = Gate()
    async with router(gate.kernel, policy=Always(Strategy.CPU_POOL)) as r:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await r.submit(job(1, "Gate"))
        assert scope.cancelled_caught
        gate.open()
    assert gate.ran == []
    check_balanced(r.stats())


async def test_a_deadline_frees_the_caller_but_not_the_slot() -> None:
    """fail_after around submit works although the thread can't be stopped."""
    gate = Gate()

    async def expire() -> None:
        await gate.begun()
        deadline.deadline = anyio.current_time()

    async with router(gate.kernel, policy=Always(Strategy.SPAWN), cpu_parallelism=1) as r:
        async with anyio.create_task_group() as tasks:
            with pytest.raises(TimeoutError), anyio.fail_after(30) as deadline:
                tasks.start_soon(expire)
                await r.submit(job(1, "Gate"))
        assert r.stats().cpu_busy == 1
        waiting = r.submit_soon(job(2, "Gate"))
        await anyio.wait_all_tasks_blocked()
        assert gate.ran == [1]  # the second never ran beside the first
        gate.open()
        assert (await waiting.wait()).value == 2
    check_balanced(r.stats())
