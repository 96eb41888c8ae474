"""submit_soon, submit_many, run and reconfigure; and what they refuse."""

from __future__ import annotations

import contextvars
import functools
import gc
import logging
import threading
import traceback
from collections.abc import Callable
from typing import Any

import anyio
import numpy as np
import pytest
from support import (
    IN_THREADS,
    LARGE,
    PICKY,
    Always,
    Gate,
    check_balanced,
    job,
    router,
)

from helixnb import (
    ConfigError,
    Job,
    JobError,
    Kernel,
    Outcome,
    Router,
    RouterConfig,
    RouterStateError,
    Status,
    Strategy,
    UnknownKindError,
)
from helixnb.workload import asian_call

pytestmark = pytest.mark.anyio

who = contextvars.ContextVar("who", default="nobody")


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (job(kind="Nope"), UnknownKindError, "kind must be one of HashMix, PrimeCount, MonteCarlo"),
        (job(5, inputs=[1.5]), JobError, r"job 5 of kind HashMix: inputs\[0\] must be an integer"),
        (job(inputs=[-1]), JobError, r"inputs\[0\] must lie in 0 .. 2\*\*64-1, got -1"),
        (job(inputs=np.ones((2, 2), np.uint64)), JobError, "inputs must have one dimension"),
        (job(inputs=np.ones(2)), JobError, "inputs must have an integer dtype, got float64"),
        (job(inputs="12"), JobError, "inputs must be a sequence or array of integers"),
        ({"id": 1}, TypeError, r"job must be a helixnb.Job, got {'id': 1}"),
    ],
)
async def test_wrong_jobs_are_refused_before_any_work(
    wrong: Any, error: type[Exception], message: str
) -> None:
    """Each way to submit raises, even for one job among many, and nothing has run."""
    gate = Gate()
    gate.open()
    async with router(gate.kernel, policy=Always(Strategy.INLINE)) as r:
        with pytest.raises(error, match=message):
            await r.submit(wrong)
        with pytest.raises(error, match=message):
            r.submit_soon(wrong)
        with pytest.raises(error, match=message):
            await r.submit_many([job(1, "Gate"), wrong])
        assert r.stats().submitted == 0
    assert gate.ran == []


@pytest.mark.parametrize("strategy", [Strategy.INLINE, *IN_THREADS, Strategy.DROP])
async def test_submit_soon(strategy: Strategy) -> None:
    """A ticket comes at once, the outcome when it is there; the text says which."""
    async with router(policy=Always(strategy)) as r:
        ticket = r.submit_soon(job(3))
        dropped = strategy is Strategy.DROP
        assert ticket.done is dropped
        state = "dropped" if dropped else "pending"
        assert repr(ticket) == f"<Ticket job_id=3 kind=HashMix {state}>"
        outcome = await ticket.wait()
        assert outcome is await ticket.wait()
        assert outcome.strategy is strategy
        assert ticket.done
    check_balanced(r.stats())


async def test_submit_soon_is_bounded_for_inline_jobs_too() -> None:
    """A flood of tickets is dropped at the queue's capacity, whatever the strategy."""
    async with router(policy=Always(Strategy.INLINE), queue_capacity=10) as r:
        tickets = [r.submit_soon(job(i)) for i in range(15)]
        outcomes = [await ticket.wait() for ticket in tickets]
    assert [o.status for o in outcomes] == [Status.COMPLETED] * 10 + [Status.DROPPED] * 5
    assert r.stats().dropped_by_reason == {"queue_full": 5}
    check_balanced(r.stats())


@pytest.mark.parametrize("strategy", [Strategy.INLINE, *IN_THREADS])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_failure_that_nobody_waits_for_is_logged(
    strategy: Strategy, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether the ticket goes before the failure or after it, the log has it once."""
    async with router(PICKY, policy=Always(strategy)) as r:
        with caplog.at_level(logging.ERROR, "helixnb"):
            ticket = r.submit_soon(job(3, "Picky"))
            if when == "before":
                del ticket
                gc.collect()
                await r.drain()
            else:
                await r.drain()
                del ticket
                gc.collect()
    assert caplog.text.count("job 3 of kind Picky failed, and nobody waits for it") == 1
    assert r.stats().failed == 1


async def test_a_failure_that_was_seen_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Who waited for the outcome has it."""
    async with router(PICKY, policy=Always(Strategy.CPU_POOL)) as r:
        ticket = r.submit_soon(job(3, "Picky"))
        assert (await ticket.wait()).status is Status.FAILED
        del ticket
        gc.collect()
    assert "nobody waits" not in caplog.text


@pytest.mark.parametrize("strategy", [Strategy.INLINE, Strategy.SPAWN, Strategy.CPU_POOL])
async def test_tickets_carry_the_callers_context(strategy: Strategy) -> None:
    """A plain-Python kernel sees the context variables of who submitted it."""
    kernel = Kernel(name="Who", solo=lambda inputs, cost, job_id: who.get())
    async with router(kernel, policy=Always(strategy)) as r:
        token = who.set("alice")
        ticket = r.submit_soon(job(kind="Who"))
        who.reset(token)
        assert (await ticket.wait()).value == "alice"


async def test_submit_many_keeps_the_order() -> None:
    """Outcomes come in the order of the jobs, whatever each one's strategy."""
    policy_order = (Strategy.INLINE, *IN_THREADS, Strategy.DROP)

    class Turns:
        def decide(self, job: Job, load: Any, config: Any, estimate: Any) -> Any:
            return Always(policy_order[job.id % 5]).decide(job, load, config, estimate)

    async with router(policy=Turns()) as r:
        outcomes = await r.submit_many(job(i, inputs=[i]) for i in range(200))
        assert list(await r.submit_many([])) == []
    assert [outcome.job_id for outcome in outcomes] == list(range(200))
    assert [outcome.status is Status.DROPPED for outcome in outcomes] == [
        i % 5 == 4 for i in range(200)
    ]
    check_balanced(r.stats())


@pytest.mark.parametrize("strategy", [Strategy.CPU_POOL, Strategy.BATCH])
async def test_submit_many_without_budgets_is_paced(strategy: Strategy) -> None:
    """Jobs without a budget wait for room in the queue; those with one are dropped."""
    async with router(policy=Always(strategy), queue_capacity=16, batch_max_jobs=8) as r:
        outcomes = await r.submit_many([job(i) for i in range(500)])
        assert {outcome.status for outcome in outcomes} == {Status.COMPLETED}
        hurried = await r.submit_many([job(i, latency_budget_ms=50) for i in range(500)])
        reasons = {outcome.reason for outcome in hurried if outcome.status is Status.DROPPED}
        assert reasons == {"queue_full"}
    check_balanced(r.stats())


@pytest.mark.parametrize("strategy", [Strategy.INLINE, *IN_THREADS])
async def test_run_takes_any_callable(strategy: Strategy) -> None:
    """A callable runs under the policy, but is never batched."""
    async with router(policy=Always(strategy)) as r:
        outcome = await r.run(divmod, 17, 5, compute_cost=100, latency_budget_ms=1e6)
        assert outcome.value == (3, 2)
        assert outcome.kind == "divmod"
        named = await r.run(lambda: 1, compute_cost=100, kind="one")
        assert (named.kind, named.value) == ("one", 1)
        bound = await r.run(functools.partial(int, "ff", base=16), compute_cost=1)
        assert (bound.kind, bound.value) == ("int", 255)
    expected = Strategy.CPU_POOL if strategy is Strategy.BATCH else strategy
    assert outcome.strategy is expected
    assert outcome.decided is strategy
    assert outcome.reason == ("not_batchable" if strategy is Strategy.BATCH else "test")
    check_balanced(r.stats())


async def test_run_is_inline_only_if_declared_cheap() -> None:
    """A policy that says inline for a large callable is overruled."""
    async with router(policy=Always(Strategy.INLINE), inline_max_cost=50) as r:
        cheap = await r.run(threading.get_ident, compute_cost=50)
        large = await r.run(threading.get_ident, compute_cost=51)
    assert cheap.value == threading.get_ident()
    assert large.value != threading.get_ident()
    assert (large.strategy, large.reason) == (Strategy.SPAWN, "not_declared_cheap")


async def test_run_sees_the_callers_context_and_fails_as_a_job() -> None:
    """Context variables are the caller's; an error is the outcome's."""

    def fail() -> None:
        raise ZeroDivisionError(who.get())

    who.set("bob")
    async with router(policy=Always(Strategy.CPU_POOL)) as r:
        outcome = await r.run(fail, compute_cost=LARGE)
        assert outcome.status is Status.FAILED
        with pytest.raises(ZeroDivisionError, match="bob"):
            _ = outcome.value
    check_balanced(r.stats())


class _AsyncCallable:
    async def __call__(self) -> None: ...


async def _coroutine_function() -> None: ...


async def _generator() -> Any:
    yield 1


@pytest.mark.parametrize(
    "function",
    [
        _coroutine_function,
        _AsyncCallable(),
        functools.partial(_coroutine_function),
        functools.partial(_AsyncCallable()),
        _generator,
    ],
)
async def test_run_refuses_coroutine_functions(function: Callable[..., Any]) -> None:
    """A coroutine function would give a coroutine that nobody awaits."""
    async with router() as r:
        with pytest.raises(TypeError, match="must not be a coroutine function"):
            await r.run(function, compute_cost=1)
        with pytest.raises(TypeError, match="must be callable, got 3"):
            await r.run(3, compute_cost=1)  # type: ignore[arg-type]
        with pytest.raises(JobError, match="compute_cost must lie in"):
            await r.run(len, "", compute_cost=-1)
        with pytest.raises(TypeError, match=r"a kernel: submit AsianCall.job\(\.\.\.\) instead"):
            await r.run(functools.partial(asian_call, [1.0]), compute_cost=1)
        assert r.stats().submitted == 0


async def test_reconfigure_resizes_slots_and_queue() -> None:
    """More slots let waiting jobs run at once; fewer take effect as jobs end."""
    gate = Gate()
    async with router(gate.kernel, policy=Always(Strategy.CPU_POOL), cpu_parallelism=1) as r:
        tickets = [r.submit_soon(job(i, "Gate")) for i in range(3)]
        await gate.begun(1)
        await anyio.wait_all_tasks_blocked()
        assert (r.stats().cpu_busy, r.stats().waiting) == (1, 2)
        assert r.reconfigure(cpu_parallelism=2, queue_capacity=1).cpu_parallelism == 2
        await gate.begun(1)
        assert r.stats().cpu_busy == 2
        tickets += [r.submit_soon(job(3, "Gate")) for _ in range(2)]
        assert r.stats().dropped_by_reason["queue_full"] >= 1
        r.reconfigure(cpu_parallelism=1)
        assert (r.stats().cpu_busy, r.stats().cpu_parallelism) == (2, 1)
        gate.open()
        for ticket in tickets:
            await ticket.wait()
    check_balanced(r.stats())


async def test_reconfigure_reaches_a_batch_that_gathers() -> None:
    """A shorter delay or a smaller size releases what has gathered already."""
    async with router(policy=Always(Strategy.BATCH), batch_max_delay_ms=60_000) as r:
        for change in ({"batch_max_delay_ms": 1}, {"batch_max_jobs": 2}):
            tickets = [r.submit_soon(job(i)) for i in range(2)]
            await anyio.wait_all_tasks_blocked()
            assert not any(ticket.done for ticket in tickets)
            r.reconfigure(**change)
            with anyio.fail_after(30):
                for ticket in tickets:
                    await ticket.wait()
            r.reconfigure(batch_max_delay_ms=60_000)


async def test_reconfigure_is_all_or_nothing() -> None:
    """One wrong setting leaves the configuration as it was."""
    async with router(cpu_parallelism=2) as r:
        before = r.config
        with pytest.raises(ConfigError, match="batch_max_jobs must be at least 1"):
            r.reconfigure(cpu_parallelism=4, batch_max_jobs=0)
        with pytest.raises(ConfigError, match="no setting is named 'workers'"):
            r.reconfigure(cpu_parallelism=4, workers=1)
        assert r.config is before
        assert r.stats().cpu_parallelism == 2


async def test_reconfigure_changes_decisions() -> None:
    """The next decision is made with the new thresholds."""
    async with Router(RouterConfig(cpu_parallelism=2)) as r:
        assert (await r.submit(job(compute_cost=9_000))).decided is Strategy.SPAWN
        r.reconfigure(inline_max_cost=9_000)
        assert (await r.submit(job(compute_cost=9_000))).decided is Strategy.INLINE


async def test_run_fails_what_returns_a_coroutine() -> None:
    """What can't be told beforehand fails afterwards, instead of passing for an answer."""
    async with router() as r:
        outcome = await r.run(lambda: _coroutine_function(), compute_cost=1)  # noqa: PLW0108
        with pytest.raises(TypeError, match="returned a coroutine, which nobody would await"):
            _ = outcome.value


async def test_a_foreign_thread_changes_nothing() -> None:
    """Every call from another thread is refused before it does anything."""
    async with router(queue_capacity=7) as r:
        ticket = r.submit_soon(job())

        def misuse() -> None:
            for call in (lambda: r.reconfigure(queue_capacity=1), ticket.cancel):
                with pytest.raises(RouterStateError, match="belongs to the thread"):
                    call()

        await anyio.to_thread.run_sync(misuse)
        assert r.config.queue_capacity == r.stats().queue_capacity == 7
        assert (await ticket.wait()).status is Status.COMPLETED


async def test_reading_a_failure_again_doesnt_lengthen_its_traceback() -> None:
    """Each read raises from where the kernel raised."""

    def frames(outcome: Outcome) -> int:
        with pytest.raises(ZeroDivisionError) as caught:
            _ = outcome.value
        return len(list(traceback.walk_tb(caught.value.__traceback__)))

    async with router() as r:
        outcome = await r.run(lambda: 1 // 0, compute_cost=1)
        assert frames(outcome) == frames(outcome) == frames(outcome)


async def test_work_that_raises_is_the_jobs_error_before_any_work() -> None:
    """The kernel's author's `work` runs when jobs are checked, not when some have run."""
    ran: list[int] = []

    def solo(inputs: Any, compute_cost: int, job_id: int) -> int:
        ran.append(job_id)
        return job_id

    kernel = Kernel(name="K", solo=solo, work=lambda cost, inputs: 1 / (cost - 7))
    async with router(kernel, policy=Always(Strategy.INLINE)) as r:
        with pytest.raises(JobError, match="job 1 of kind K: division by zero"):
            await r.submit_many([job(0, "K"), job(1, "K", compute_cost=7)])
        assert r.stats().submitted == 0
    assert ran == []
