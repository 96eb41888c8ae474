"""Callables that launch Numba's threads, where they must do so one at a time."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import anyio
import numba
import pytest
from support import LARGE, Always, check_balanced, router

from helixnb import BlockingRouter, RouterConfig, Status, Strategy
from helixnb_kernels import _threads

pytestmark = pytest.mark.anyio


@numba.njit(parallel=True)
def launch() -> None:
    """Stand for a parallel function; it is never called here."""


@pytest.fixture(autouse=True)
def workqueue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let things be as under Numba's workqueue layer, whichever this process has."""
    monkeypatch.setattr(_threads, "launches_are_safe", lambda: False)


class Held:
    """Calls that are taken for parallel ones, and wait until they are let go."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self._begun = threading.Semaphore(0)
        self._go = threading.Semaphore(0)

    def __call__(self, name: str) -> int:
        self.events.append(f"{name} begins")
        self._begun.release()
        if not self._go.acquire(timeout=30):
            raise TimeoutError("nobody let the call go")
        self.events.append(f"{name} ends")
        return threading.get_ident()

    __wrapped__ = staticmethod(launch)

    def let_go(self, calls: int = 1) -> None:
        self._go.release(calls)

    async def begun(self) -> None:
        if not await anyio.to_thread.run_sync(self._begun.acquire, True, 30):
            raise TimeoutError("no call began")


def noted(outcomes: list[Any], run: Callable[..., Any], *args: Any, **fields: Any) -> Any:
    """Return a coroutine function that runs a call and keeps its outcome."""

    async def call() -> None:
        outcomes.append(await run(*args, **{"compute_cost": LARGE, **fields}))

    return call


@pytest.mark.parametrize("strategy", [Strategy.INLINE, Strategy.SPAWN, Strategy.CPU_POOL])
async def test_one_at_a_time_and_the_others_hold_no_slot(strategy: Strategy) -> None:
    """Whatever was decided, and however cheap they are said to be; other jobs pass them by."""
    held = Held()
    outcomes: list[Any] = []
    async with router(policy=Always(strategy)) as r, anyio.create_task_group() as tasks:
        for name in "abc":
            tasks.start_soon(noted(outcomes, r.run, held, name, compute_cost=1))
        await held.begun()
        await anyio.wait_all_tasks_blocked()
        assert (r.stats().cpu_busy, r.stats().waiting) == (1, 2)
        assert (await r.run(len, "four", compute_cost=LARGE)).value == 4
        held.let_go(3)
    assert sorted(held.events[::2]) == ["a begins", "b begins", "c begins"]
    for begins, ends in zip(held.events[::2], held.events[1::2], strict=True):
        assert begins.split()[0] == ends.split()[0]
    assert {each.strategy for each in outcomes} == {Strategy.CPU_POOL}
    reason = "test" if strategy is Strategy.CPU_POOL else "one_at_a_time"
    assert {each.reason for each in outcomes} == {reason}
    assert threading.get_ident() not in {each.value for each in outcomes}
    check_balanced(r.stats())


async def test_a_waiting_one_that_is_cancelled_never_runs() -> None:
    """And the one after it has its turn."""
    held = Held()
    outcomes: list[Any] = []
    async with router(policy=Always(Strategy.SPAWN)) as r, anyio.create_task_group() as tasks:
        tasks.start_soon(noted(outcomes, r.run, held, "first"))
        await held.begun()
        async with anyio.create_task_group() as gone:
            gone.start_soon(noted(outcomes, r.run, held, "gone"))
            await anyio.wait_all_tasks_blocked()
            gone.cancel_scope.cancel()
        tasks.start_soon(noted(outcomes, r.run, held, "last"))
        held.let_go(2)
    assert held.events == ["first begins", "first ends", "last begins", "last ends"]
    assert (r.stats().cancelled, r.stats().completed) == (1, 2)
    check_balanced(r.stats())


async def test_a_waiting_one_expires() -> None:
    """It is held to its budget, as what waits for a slot is."""
    held = Held()
    outcomes: list[Any] = []
    policy: Any = Always(Strategy.SPAWN)
    policy.adaptive = True  # so that budgets are kept
    async with router(policy=policy) as r, anyio.create_task_group() as tasks:
        tasks.start_soon(noted(outcomes, r.run, held, "first"))
        await held.begun()
        late = await r.run(held, "late", compute_cost=LARGE, latency_budget_ms=1)
        assert (late.status, late.reason) == (Status.DROPPED, "expired")
        held.let_go()
    assert held.events == ["first begins", "first ends"]
    check_balanced(r.stats())


async def test_those_that_wait_when_the_router_closes_are_dropped() -> None:
    """The one that runs is waited for."""
    held = Held()
    outcomes: list[Any] = []
    r = router(policy=Always(Strategy.SPAWN), drain_timeout_s=0.0)
    await r.open()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(noted(outcomes, r.run, held, "first"))
        await held.begun()
        tasks.start_soon(noted(outcomes, r.run, held, "late"))
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(r.close)
        await anyio.wait_all_tasks_blocked()
        held.let_go()
    assert held.events == ["first begins", "first ends"]
    assert {each.reason for each in outcomes if each.status is Status.DROPPED} == {"router_closed"}
    check_balanced(r.stats())


async def test_one_that_raises_lets_the_next_begin() -> None:
    """Its error is its own."""
    held = Held()
    outcomes: list[Any] = []
    async with router(policy=Always(Strategy.SPAWN)) as r, anyio.create_task_group() as tasks:
        tasks.start_soon(noted(outcomes, r.run, held, "first"))
        await held.begun()
        tasks.start_soon(noted(outcomes, r.run, functools.wraps(launch)(lambda: 1 // 0)))
        tasks.start_soon(noted(outcomes, r.run, held, "last"))
        held.let_go(2)
    assert held.events == ["first begins", "first ends", "last begins", "last ends"]
    assert [each.status for each in outcomes].count(Status.FAILED) == 1
    check_balanced(r.stats())


async def test_they_count_against_the_queue() -> None:
    """What finds it full is dropped."""
    held = Held()
    outcomes: list[Any] = []
    r = router(policy=Always(Strategy.SPAWN), queue_capacity=1)
    async with r, anyio.create_task_group() as tasks:
        tasks.start_soon(noted(outcomes, r.run, held, "first"))
        await held.begun()
        tasks.start_soon(noted(outcomes, r.run, held, "second"))
        await anyio.wait_all_tasks_blocked()
        dropped = await r.run(held, "third", compute_cost=LARGE)
        assert (dropped.status, dropped.reason) == (Status.DROPPED, "queue_full")
        held.let_go(2)
    check_balanced(r.stats())


async def test_routers_of_a_process_take_turns() -> None:
    """The layer is the process's, and so is the turn."""
    held = Held()
    outcomes: list[Any] = []
    one, other = router(policy=Always(Strategy.SPAWN)), router(policy=Always(Strategy.SPAWN))
    async with one, other, anyio.create_task_group() as tasks:
        tasks.start_soon(noted(outcomes, one.run, held, "one"))
        await held.begun()
        tasks.start_soon(noted(outcomes, other.run, held, "other"))
        await anyio.wait_all_tasks_blocked()
        held.let_go(2)
    assert held.events == ["one begins", "one ends", "other begins", "other ends"]


def test_a_call_may_wait_for_another() -> None:
    """By a blocking router, of whose turn it is in already."""
    with BlockingRouter(RouterConfig(cpu_parallelism=2), kernels=()) as r:

        @functools.wraps(launch)
        def inner() -> int:
            return 7

        @functools.wraps(launch)
        def outer() -> Any:
            return r.run(inner, compute_cost=LARGE).value

        assert r.run(outer, compute_cost=LARGE).value == 7


async def test_where_no_thread_can_be_started_the_next_has_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The call fails with the reason."""
    async with router(policy=Always(Strategy.SPAWN)) as r:
        quiet = functools.wraps(launch)(lambda: 3)
        with monkeypatch.context() as broken:

            async def refuse(*args: Any, **options: Any) -> None:
                raise RuntimeError("can't start new thread")

            broken.setattr(anyio.to_thread, "run_sync", refuse)
            failed = await r.run(quiet, compute_cost=LARGE)
            assert failed.status is Status.FAILED
            assert "can't start" in str(failed.error)
        assert (await r.run(quiet, compute_cost=LARGE)).value == 3
    check_balanced(r.stats())
