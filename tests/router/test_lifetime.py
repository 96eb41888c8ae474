"""Opening, draining, closing, and leaving by every door."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import anyio
import pytest
from support import IN_THREADS, Always, Gate, check_balanced, job, router

from helixnb import JobDropped, KernelError, Router, RouterStateError, Status, Strategy, kernel
from helixnb._exec.lanes import BatchLane, PoolLane
from helixnb_kernels import HASH_MIX, Kernel

pytestmark = pytest.mark.anyio


class Boom(Exception):
    """What a body raises."""


async def test_a_router_isnt_open_before_it_is_entered() -> None:
    """Every call says how to open it, and nothing is counted."""
    r = router()
    for call in (r.submit(job()), r.submit_many([job()]), r.run(len, "", compute_cost=1)):
        with pytest.raises(RouterStateError, match="isn't open: use it in `async with router:`"):
            await call
    with pytest.raises(RouterStateError, match="isn't open"):
        r.submit_soon(job())
    assert (r.stats().state, r.stats().submitted) == ("new", 0)


async def test_a_router_opens_once() -> None:
    """A closed router can't be entered again, nor an open one twice."""
    r = router()
    async with r:
        assert r.stats().state == "open"
        with pytest.raises(RouterStateError, match="opens once"):
            async with r:
                pass
        assert (await r.submit(job())).status is Status.COMPLETED
    assert r.stats().state == "closed"
    with pytest.raises(RouterStateError, match="opens once"):
        async with r:
            pass


async def test_a_closed_router_drops() -> None:
    """Jobs that come too late have an outcome: dropped, router_closed."""
    async with router() as r:
        await r.close()
        outcome = await r.submit(job())
        assert (outcome.status, outcome.reason) == (Status.DROPPED, "router_closed")
        assert (await r.submit_soon(job()).wait()).reason == "router_closed"
        assert (await r.run(len, "", compute_cost=1)).reason == "router_closed"
    assert (await r.submit(job())).reason == "router_closed"
    with pytest.raises(JobDropped):
        _ = (await r.submit(job())).value
    check_balanced(r.stats())


@pytest.mark.parametrize("strategy", IN_THREADS)
async def test_leaving_waits_for_jobs_in_flight(strategy: Strategy) -> None:
    """What was taken in before the end is answered."""
    gate = Gate()
    async with router(gate.kernel, policy=Always(strategy)) as r:
        tickets = [r.submit_soon(job(i, "Gate")) for i in range(7)]
        await gate.begun()
        threading.Timer(0.05, gate.open).start()
    assert [(await ticket.wait()).value for ticket in tickets] == list(range(7))
    check_balanced(r.stats())


@pytest.mark.parametrize("strategy", IN_THREADS)
async def test_the_drain_timeout_drops_what_is_queued(strategy: Strategy) -> None:
    """Running kernels end and are answered; queued jobs are dropped and never run."""
    gate = Gate()
    policy = Always(Strategy.SPAWN)
    async with router(gate.kernel, policy=policy, drain_timeout_s=0.05, batch_max_jobs=2) as r:
        running = [r.submit_soon(job(i, "Gate")) for i in range(2)]
        await gate.begun(2)
        policy.strategy = strategy
        queued = [r.submit_soon(job(i, "Gate")) for i in range(2, 6)]
        gate.open_once(lambda: all(ticket.done for ticket in queued))
    assert [(await ticket.wait()).value for ticket in running] == [0, 1]
    for ticket in queued:
        outcome = await ticket.wait()
        assert (outcome.status, outcome.reason) == (Status.DROPPED, "router_closed")
    assert sorted(gate.ran) == [0, 1]
    check_balanced(r.stats())


async def test_a_caller_in_another_task_is_answered_when_the_router_closes() -> None:
    """Nobody waits for ever on a router that is gone."""
    gate = Gate()
    outcomes = []

    async def call(number: int) -> None:
        outcomes.append(await r.submit(job(number, "Gate")))

    async with (
        anyio.create_task_group() as tasks,
        router(
            gate.kernel, policy=Always(Strategy.CPU_POOL), cpu_parallelism=1, drain_timeout_s=0.05
        ) as r,
    ):
        for number in range(3):
            tasks.start_soon(call, number)
        await gate.begun()
        gate.open_once(lambda: r.stats().dropped == 2)
    assert sorted(outcome.status for outcome in outcomes) == ["completed", "dropped", "dropped"]
    check_balanced(r.stats())


@pytest.mark.parametrize("strategy", IN_THREADS)
async def test_an_exception_of_the_body_leaves_as_itself(strategy: Strategy) -> None:
    """It isn't wrapped in a group, and what is queued isn't waited for."""
    gate = Gate()
    policy = Always(Strategy.SPAWN)
    with pytest.raises(Boom) as caught:
        async with router(gate.kernel, policy=policy, drain_timeout_s=60) as r:
            running = [r.submit_soon(job(i, "Gate")) for i in range(2)]
            await gate.begun(2)
            policy.strategy = strategy
            queued = r.submit_soon(job(2, "Gate"))
            gate.open_once(lambda: queued.done)
            raise Boom
    assert type(caught.value) is Boom
    assert [(await ticket.wait()).status for ticket in running] == [Status.COMPLETED] * 2
    assert (await queued.wait()).reason == "router_closed"
    check_balanced(r.stats())


async def test_a_cancelled_body() -> None:
    """Cancellation ends the router without a drain, and goes on to where it belongs."""
    gate = Gate()
    after = False
    with anyio.CancelScope() as scope:
        async with router(gate.kernel, policy=Always(Strategy.SPAWN), drain_timeout_s=60) as r:
            tickets = [r.submit_soon(job(i, "Gate")) for i in range(3)]
            await gate.begun(2)
            threading.Timer(0.05, gate.open).start()
            scope.cancel()
            await anyio.sleep_forever()
        after = True
    assert scope.cancelled_caught
    assert not after
    assert [ticket.done for ticket in tickets] == [True] * 3
    check_balanced(r.stats())


async def test_cancelled_while_it_drains() -> None:
    """A drain can be cut short from outside; every job still gets an outcome."""
    gate = Gate()

    async def cancel_the_drain() -> None:
        await anyio.wait_all_tasks_blocked()
        assert r.state == "closing"
        scope.cancel()

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            async with router(gate.kernel, policy=Always(Strategy.SPAWN), drain_timeout_s=60) as r:
                tickets = [r.submit_soon(job(i, "Gate")) for i in range(3)]
                await gate.begun(2)
                gate.open_once(lambda: tickets[2].done)
                tasks.start_soon(cancel_the_drain)
    assert scope.cancelled_caught
    assert [ticket.done for ticket in tickets] == [True] * 3
    check_balanced(r.stats())


async def test_a_native_timeout_of_asyncio(anyio_backend_name: str) -> None:
    """Asyncio's own cancellation of the task that holds the router is honoured too."""
    if anyio_backend_name != "asyncio":
        pytest.skip("asyncio.timeout is asyncio's")
    gate = Gate()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as timeout:
            async with router(gate.kernel, policy=Always(Strategy.SPAWN)) as r:
                ticket = r.submit_soon(job(1, "Gate"))
                gate.open_once(lambda: r.state == "closed")
                timeout.reschedule(asyncio.get_running_loop().time())
                await anyio.sleep_forever()
    assert ticket.done
    check_balanced(r.stats())


async def test_drain_waits_and_leaves_the_router_open() -> None:
    """After a drain nothing is in flight, and jobs are taken as before."""
    gate = Gate()
    async with router(gate.kernel, policy=Always(Strategy.CPU_POOL)) as r:
        await r.drain()
        tickets = [r.submit_soon(job(i, "Gate")) for i in range(5)]
        await gate.begun(1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(r.drain)
            tasks.start_soon(r.drain)
            await anyio.wait_all_tasks_blocked()
            assert not any(ticket.done for ticket in tickets)
            gate.open()
        assert all(ticket.done for ticket in tickets)
        assert (await r.submit(job(9, "Gate"))).value == 9
    check_balanced(r.stats())


async def test_close_may_be_called_again() -> None:
    """Closing is for shutdown hooks, which may run twice."""
    async with router() as r:
        await r.close()
        await r.close()
        assert r.stats().state == "closed"


async def test_another_thread_cant_use_it() -> None:
    """A call from another thread is refused, instead of corrupting the router."""
    async with router() as r:

        def misuse() -> None:
            with pytest.raises(RouterStateError, match="belongs to the thread of the event loop"):
                r.submit_soon(job())

        await anyio.to_thread.run_sync(misuse)
        assert r.stats().submitted == 0


@pytest.mark.parametrize("lane", [PoolLane, BatchLane])
async def test_a_crashed_lane_fails_who_waits_and_closes_intake(
    lane: type, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of the router's own is loud, answers everybody, and is raised at the end."""

    def crash(*_: Any, **__: Any) -> None:
        raise Boom("own fault")

    monkeypatch.setattr(lane, "take", crash)
    strategy = Strategy.CPU_POOL if lane is PoolLane else Strategy.BATCH
    with (
        caplog.at_level(logging.ERROR, "helixnb"),
        pytest.raises(RouterStateError, match="the router crashed") as caught,
    ):
        async with router(policy=Always(strategy)) as r:
            await anyio.wait_all_tasks_blocked()
            outcome = await r.submit(job())
            assert outcome.status is Status.FAILED
            with pytest.raises(RouterStateError, match="own fault"):
                _ = outcome.value
            with pytest.raises(RouterStateError, match="crashed and takes no jobs"):
                await r.submit(job())
            assert r.stats().state == "crashed"
            check_balanced(r.stats(), idle=False)  # a second thread may be about to crash, too
    check_balanced(r.stats())
    assert isinstance(caught.value.__cause__, Boom)
    assert "the router crashed" in caplog.text


async def test_two_routers_in_one_process() -> None:
    """They share nothing but the process: each answers and counts its own."""
    jobs = [job(i, "MonteCarlo", [i]) for i in range(60)]
    async with router(policy=Always(Strategy.BATCH)) as one:
        async with router(policy=Always(Strategy.CPU_POOL)) as two:
            results: dict[Router, Any] = {}

            async def drive(r: Router) -> None:
                results[r] = [outcome.value for outcome in await r.submit_many(jobs)]

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(drive, one)
                tasks.start_soon(drive, two)
        assert (await one.submit(job())).status is Status.COMPLETED
    assert results[one] == results[two]
    assert (one.stats().submitted, two.stats().submitted) == (61, 60)
    check_balanced(one.stats())
    check_balanced(two.stats())


async def test_kernel_names_are_unique() -> None:
    """A second kernel of one name is refused, when the router is made or later."""
    with pytest.raises(KernelError, match="unique in a router, got a second 'HashMix'"):
        Router(kernels=[HASH_MIX, HASH_MIX])
    with pytest.raises(TypeError, match=r"must be a helixnb_kernels\.Kernel, got <function"):
        Router(kernels=[lambda: None])  # type: ignore[list-item]
    async with router() as r:
        with pytest.raises(KernelError, match="a second 'HashMix'"):
            await r.add_kernel(HASH_MIX)


async def test_a_kernel_can_be_added_to_an_open_router() -> None:
    """Its kind is unknown before, and runs on every strategy after."""
    gate = Gate()
    gate.open()
    policy = Always(Strategy.INLINE)
    async with router(policy=policy) as r:
        with pytest.raises(ValueError, match=r"kind must be one of HashMix, .*, got 'Gate'"):
            await r.submit(job(1, "Gate"))
        await r.add_kernel(gate.kernel)
        for strategy in (Strategy.INLINE, *IN_THREADS):
            policy.strategy = strategy
            assert (await r.submit(job(1, "Gate"))).value == 1
    check_balanced(r.stats())


async def test_a_router_whose_kernel_cant_be_compiled_doesnt_open() -> None:
    """The compiler's error leaves as itself."""

    @kernel(returns="uint64")
    def wrong(inputs):  # type: ignore[no-untyped-def]
        return inputs.nothing

    r = Router(kernels=[wrong])
    with pytest.raises(KernelError, match="can't compile"):
        await r.open()
    assert r.state == "closed"
    await r.close()


async def test_a_router_without_kernels_runs_callables() -> None:
    """No kernels is a legal choice."""
    async with Router(kernels=[]) as r:
        assert (await r.run(sum, [1, 2], compute_cost=1)).value == 3
        with pytest.raises(ValueError, match="kind must be one of none, got 'HashMix'"):
            await r.submit(job())


async def test_plain_python_kernels_need_no_compiler() -> None:
    """A kernel may be any callable."""
    kernel = Kernel(name="Plain", solo=lambda inputs, cost, job_id: inputs.tolist())
    async with Router(kernels=[kernel]) as r:
        assert (await r.submit(job(kind="Plain", inputs=[3, 4]))).value == [3, 4]


async def test_a_router_whose_opener_is_cancelled_goes_on() -> None:
    """Its lanes hang on no caller: in the body's shielded clean-up jobs are answered as before."""
    gate = Gate()
    gate.open()
    policy = Always(Strategy.CPU_POOL)
    with anyio.CancelScope() as scope:
        async with router(gate.kernel, policy=policy) as r:
            try:
                scope.cancel()
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True), anyio.fail_after(30):
                    await anyio.wait_all_tasks_blocked()
                    for policy.strategy in IN_THREADS:
                        assert (await r.submit(job(1, "Gate"))).value == 1
    check_balanced(r.stats())


async def test_leaving_releases_a_batch_that_gathers() -> None:
    """Jobs that wait for company only run at once, since no more will come."""
    with anyio.fail_after(30):
        async with router(
            policy=Always(Strategy.BATCH), batch_max_delay_ms=60_000, drain_timeout_s=60
        ) as r:
            ticket = r.submit_soon(job())
            await anyio.wait_all_tasks_blocked()
    assert (await ticket.wait()).status is Status.COMPLETED


async def test_leaving_stops_a_batch_without_a_batch_form_between_jobs() -> None:
    """Such jobs run one by one, so those that haven't begun are dropped at the drain timeout."""
    gate = Gate()
    async with router(
        gate.kernel, policy=Always(Strategy.BATCH), batch_max_jobs=5, drain_timeout_s=0.02
    ) as r:
        tickets = [r.submit_soon(job(i, "Gate")) for i in range(5)]
        await gate.begun()
        gate.open_once(lambda: all(ticket.done for ticket in tickets[1:]))
    statuses = [(await ticket.wait()).status for ticket in tickets]
    assert statuses == [Status.COMPLETED] + [Status.DROPPED] * 4
    assert gate.ran == [0]
    check_balanced(r.stats())


async def test_a_closing_router_takes_no_kernels() -> None:
    """There is no lane for them any more."""
    gate = Gate()
    async with router() as r:
        await r.close()
        with pytest.raises(RouterStateError, match="the router is closed and takes no kernels"):
            await r.add_kernel(gate.kernel)
        assert "Gate" not in r.kernels


async def test_work_that_fails_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that a thread has in hand are answered with what went wrong, and the router goes on."""

    def fail(*_: Any) -> None:
        raise Boom

    async with router(policy=Always(Strategy.CPU_POOL)) as r:
        with monkeypatch.context() as patch, anyio.fail_after(30):
            patch.setattr("helixnb._exec.work.Chunk.run", fail)
            with pytest.raises(Boom):
                _ = (await r.submit(job())).value
        assert (await r.submit(job())).status is Status.COMPLETED
    check_balanced(r.stats())


@pytest.mark.parametrize("strategy", IN_THREADS)
async def test_a_thread_that_cant_be_started(
    strategy: Strategy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The jobs that it would have taken fail with the reason, and the router goes on."""

    async def refuse(*_: Any, **__: Any) -> None:
        await anyio.lowlevel.checkpoint()
        raise RuntimeError("can't start new thread")

    async with router(policy=Always(strategy)) as r:
        with monkeypatch.context() as patch, anyio.fail_after(30):
            patch.setattr("anyio.to_thread.run_sync", refuse)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                _ = (await r.submit(job())).value
        assert (await r.submit(job())).status is Status.COMPLETED
    check_balanced(r.stats())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": 5}, "config must be a RouterConfig, got 5"),
        ({"policy": 5}, "policy must have a method decide, got 5"),
        ({"kernels": HASH_MIX}, "kernels must be a list of kernels, got the kernel HashMix alone"),
    ],
)
def test_a_router_that_cant_be(arguments: dict[str, Any], message: str) -> None:
    """Parts of a wrong type are refused when the router is made."""
    with pytest.raises(TypeError, match=message):
        Router(**arguments)


def test_killing_all_tasks_leaves_no_job_in_flight() -> None:
    """Asyncio's own way to end a program: threads run on, but every job has its outcome."""
    gate = Gate()

    async def main() -> None:
        async with router(gate.kernel, policy=Always(Strategy.SPAWN)) as r:
            tickets.append(r.submit_soon(job(1, "Gate")))
            await gate.begun()
            gate.open_once(lambda: r.state == "closed")
            for task in asyncio.all_tasks():
                task.cancel()
            routers.append(r)
            await asyncio.sleep(60)

    tickets: list[Any] = []
    routers: list[Router] = []
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert tickets[0].done
    check_balanced(routers[0].stats(), idle=False)
    assert routers[0].stats().in_flight == 0
