"""Worker threads: what they take at once, and their turn at the GIL."""

from __future__ import annotations

import threading
import time
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from support import Always, Gate, check_balanced, job, router, submit_all

from helixnb import Kernel, Router, RouterConfig, StaticPolicy, Status, Strategy
from helixnb._exec.gil import own_clock, waits, yield_gil
from helixnb._exec.slots import Lease, Slots
from helixnb_kernels import HASH_MIX, warm_up

pytestmark = pytest.mark.anyio


def counting(name: str, calls: list[str]) -> Kernel:
    """Return a kernel that notes how it is called."""

    def solo(inputs: Any, compute_cost: int, job_id: int) -> int:
        calls.append(f"{name} alone")
        return job_id

    def serial(
        inputs: Any, offsets: Any, parts: Any, costs: Any, ids: Any, failed: Any, out: Any
    ) -> None:
        calls.append(f"{name} {len(ids)}")
        out[:] = ids

    return Kernel(name=name, solo=solo, serial=serial, returns="uint64")


async def test_many_jobs_of_a_kernel_share_a_call_in_a_chunk() -> None:
    """A few run one by one, and each kind is on its own; the answers are each job's."""
    calls: list[str] = []
    gate = Gate()
    policy = Always(Strategy.SPAWN)
    kernels = [gate.kernel, counting("Many", calls), counting("Few", calls)]
    async with router(*kernels, policy=policy, cpu_parallelism=1) as r:
        r.submit_soon(job(0, "Gate"))
        await gate.begun()
        policy.strategy = Strategy.CPU_POOL
        jobs = [job(i, "Few" if i % 10 == 0 else "Many", compute_cost=1) for i in range(50)]
        tickets = [r.submit_soon(each) for each in jobs]
        gate.open()
        assert [(await ticket.wait()).value for ticket in tickets] == list(range(50))
        assert r.stats().batches == 0
    assert sorted(calls) == ["Few alone"] * 5 + ["Many 45"]
    check_balanced(r.stats())


async def test_a_thread_goes_on_while_there_is_work() -> None:
    """It serves spawned, pooled and batched jobs in one visit, without a hop for each."""
    threads: list[int] = []

    def where(inputs: Any, compute_cost: int, job_id: int) -> int:
        threads.append(threading.get_ident())
        return job_id

    gate = Gate()
    kernel = Kernel(name="Where", solo=where, ns_per_work=1e5)
    policy = Always(Strategy.SPAWN)
    async with router(gate.kernel, kernel, policy=policy, cpu_parallelism=1) as r:
        r.submit_soon(job(0, "Gate"))
        await gate.begun()
        tickets = []
        for policy.strategy in (Strategy.CPU_POOL, Strategy.SPAWN, Strategy.BATCH):
            tickets += [r.submit_soon(job(i, "Where")) for i in range(20)]
        gate.open()
        for ticket in tickets:
            await ticket.wait()
    assert len(threads) == 60
    assert len(set(threads)) == 1


async def test_callers_that_share_an_event_each_wait_for_their_own_job() -> None:
    """Jobs that were to be taken together may be taken apart, cancelled or run in any order."""
    gate = Gate(ns_per_work=1.0)
    blocker = Gate("Blocker")
    policy = Always(Strategy.SPAWN)
    async with router(gate.kernel, blocker.kernel, policy=policy) as r:
        for i in range(2):
            r.submit_soon(job(i, "Blocker"))
        await blocker.begun(2)
        policy.strategy = Strategy.CPU_POOL
        values: list[int] = []

        async def submit(number: int) -> None:
            values.append((await r.submit(job(number, "Gate"))).value)

        async with anyio.create_task_group() as tasks:
            for number in range(60):
                tasks.start_soon(submit, number)
            with anyio.move_on_after(0.01) as scope:
                await submit(99)
            assert scope.cancelled_caught
            blocker.open()
            await gate.begun(1)
            policy.strategy = Strategy.INLINE
            gate.open()
            await submit(100)
    assert sorted(values) == [*range(60), 100]
    check_balanced(r.stats())


async def test_leaving_frees_the_sockets() -> None:
    """However a router ends, it leaves no file descriptor behind; warnings are errors here."""
    for _ in range(3):
        async with router(policy=Always(Strategy.CPU_POOL)) as r:
            await submit_all(r, [job(i) for i in range(10)])
        assert r._workers._receiver.fileno() == -1
        assert r._workers._sender.fileno() == -1


def test_a_thread_that_stands_still_is_told_from_one_that_computes() -> None:
    """By its CPU clock; one without a clock may always wait, one that has ended never does."""
    warm_up([HASH_MIX])
    clocks: dict[str, int | None] = {}
    stop = threading.Event()

    def compute() -> None:
        clocks["computes"] = own_clock()
        inputs = HASH_MIX.as_inputs([1])
        while not stop.is_set():
            HASH_MIX.solo(inputs, 64 * 1_000_000, 1)

    def stand() -> None:
        clocks["stands"] = own_clock()
        stop.wait()

    def end() -> None:
        clocks["ended"] = own_clock()

    threads = [threading.Thread(target=each) for each in (compute, stand, end)]
    for thread in threads:
        thread.start()
    threads[2].join()
    deadline = time.monotonic() + 30
    while len(clocks) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    try:
        assert waits(None)
        if own_clock() is None:
            pytest.skip("this platform has no clocks of other threads")
        assert all(waits(clocks["stands"]) for _ in range(20))
        while waits(clocks["ended"]) and time.monotonic() < deadline:
            time.sleep(0.001)  # `join` returns a little before the system's thread has ended
        assert not waits(clocks["ended"])
        # A CPU may be busy with something else, but not for ever.
        while waits(clocks["computes"]):
            assert time.monotonic() < deadline
    finally:
        stop.set()
        for thread in threads:
            thread.join()


async def test_routers_of_a_loop_do_not_watch_each_other() -> None:
    """Each looks at its threads while the loop is busy, and stops when it no longer is."""
    looks = 0

    def one_waits() -> bool:
        nonlocal looks
        looks += 1
        return False

    async def be_busy(total: int) -> None:
        while looks < total:
            assert time.monotonic() < deadline, "nobody watches a busy loop"
            await anyio.lowlevel.checkpoint()

    deadline = time.monotonic() + 20
    async with anyio.create_task_group() as tasks:
        for each in (1, 2):
            slots = Slots(2)
            slots.take(Lease())
            tasks.start_soon(yield_gil, slots, one_waits, lambda: None)
            await be_busy(1_000 * each)
        before = -1
        while before != looks:
            assert time.monotonic() < deadline, "they watch an idle loop"
            before = looks
            await anyio.sleep(0.2)
        tasks.cancel_scope.cancel()


async def test_one_job_after_the_other_finds_the_router_idle() -> None:
    """A slot is free when its job has its outcome, or the static policy would drop the next one."""
    async with Router(RouterConfig(cpu_parallelism=2), policy=StaticPolicy()) as r:
        for i in range(200):
            outcome = await r.submit(job(i, compute_cost=20_000))
            assert outcome.strategy is Strategy.SPAWN
            assert outcome.status is Status.COMPLETED
    check_balanced(r.stats())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Strategy.SPAWN, Strategy.CPU_POOL),
        (Strategy.SPAWN, Strategy.BATCH),
        (Strategy.CPU_POOL, Strategy.BATCH),
        (Strategy.BATCH, Strategy.CPU_POOL),
    ],
)
async def test_lanes_send_threads_each_for_itself(first: Strategy, second: Strategy) -> None:
    """A job that comes right behind another lane's has the other slot at once."""
    gate = Gate()
    policy = Always(first)
    async with router(gate.kernel, policy=policy, batch_max_delay_ms=0) as r:
        held = r.submit_soon(job(1, "Gate"))
        policy.strategy = second
        with anyio.fail_after(30):
            assert (await r.submit(job(2))).status is Status.COMPLETED
        assert not held.done
        gate.open()
    check_balanced(r.stats())


async def test_spawned_jobs_keep_their_slot_when_there_are_fewer() -> None:
    """They were promised one; only what comes later finds the router smaller."""
    gate = Gate()
    gate.open()
    async with router(gate.kernel, policy=Always(Strategy.SPAWN), cpu_parallelism=4) as r:
        tickets = [r.submit_soon(job(i, "Gate")) for i in range(4)]
        r.reconfigure(cpu_parallelism=1)
        with anyio.fail_after(30):
            assert [(await ticket.wait()).value for ticket in tickets] == [0, 1, 2, 3]
    check_balanced(r.stats())


who = ContextVar("who", default="nobody")


@pytest.mark.parametrize("strategy", [Strategy.SPAWN, Strategy.CPU_POOL, Strategy.BATCH])
async def test_no_job_sees_the_variables_of_another_caller(strategy: Strategy) -> None:
    """A thread that one caller's job has woken runs those of others too."""
    seen: list[str] = []
    kernel = Kernel(name="Who", solo=lambda inputs, cost, job_id: seen.append(who.get()))
    async with router(kernel, policy=Always(strategy), cpu_parallelism=1) as r:

        async def submit(name: str) -> None:
            who.set(name)
            await r.submit(job(1, "Who"))

        async with anyio.create_task_group() as tasks:
            for name in "abcdef":
                tasks.start_soon(submit, name)
    assert seen == ["nobody"] * 6


async def test_a_batch_that_fails_as_a_whole_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its jobs are answered all the same, but what was to make them fast is broken."""

    def serial(*_: Any) -> None:
        raise RuntimeError("broken")

    kernel = Kernel(
        name="Broken", solo=lambda inputs, cost, job_id: 1, serial=serial, returns="uint64"
    )
    async with router(kernel, policy=Always(Strategy.BATCH), batch_max_jobs=2) as r:
        await submit_all(r, [job(i, "Broken") for i in range(6)])
    messages = [each.getMessage() for each in caplog.records if each.name == "helixnb"]
    assert messages == [
        "a batch of kernel Broken raised RuntimeError('broken') as a whole; its jobs run one by one"
    ]
