"""A router is at home wherever it is opened: it belongs to an event loop, and to no task of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio
import anyio.from_thread
import pytest
from support import (
    IN_THREADS,
    LARGE,
    Always,
    Gate,
    check_balanced,
    job,
    python,
    router,
    threads_in_use,
    wait_until,
)

from helixnb import BlockingRouter, Kernel, Router, RouterStateError, Status, Strategy
from helixnb_kernels import BUILT_IN

pytestmark = pytest.mark.anyio


class Boom(Exception):
    """What goes wrong in a test."""


async def in_a_task(function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Run a coroutine function in a task of its own, and return what it returns."""
    results: list[Any] = []

    async def run() -> None:
        results.append(await function(*args))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
    return results[0]


async def answers(r: Router) -> None:
    """Check that a router answers on each strategy."""
    policy: Any = r._policy
    for policy.strategy in Strategy:
        if policy.strategy is not Strategy.DROP:
            with anyio.fail_after(30):
                assert (await r.submit(job())).status is Status.COMPLETED


# -- Any task may open, any may close -------------------------------------------------------------


async def test_one_task_enters_and_another_leaves() -> None:
    """As fixtures of a module, and hooks for start and end, do."""
    r = router(policy=Always(Strategy.SPAWN))
    assert await in_a_task(r.__aenter__) is r
    await answers(r)
    await in_a_task(r.__aexit__, None, None, None)
    assert r.state == "closed"
    check_balanced(r.stats())


async def test_open_and_close() -> None:
    """Without a block, for what has a method to start and one to stop."""
    r = router(policy=Always(Strategy.SPAWN))
    await r.close()  # there is nothing to close
    assert await r.open() is r
    with pytest.raises(RouterStateError, match="opens once"):
        await r.open()
    await answers(r)
    await r.close()
    assert (r.state, r.is_open) == ("closed", False)
    assert (await r.submit(job())).reason == "router_closed"
    await r.close()
    with pytest.raises(RouterStateError, match="opens once"):
        await r.open()
    check_balanced(r.stats())


async def test_closing_waits_for_threads() -> None:
    """When `close` returns nothing of the router runs, although it was not left."""
    gate = Gate()
    r = await router(gate.kernel, policy=Always(Strategy.SPAWN), drain_timeout_s=0).open()
    ticket = r.submit_soon(job(1, "Gate"))
    await gate.begun()
    threading.Timer(0.05, gate.open).start()
    await r.close()
    assert ticket.done
    check_balanced(r.stats())


async def test_nested_in_any_order() -> None:
    """Routers, scopes and task groups needn't be left in the reverse order."""
    first, second = (router(policy=Always(Strategy.SPAWN)) for _ in range(2))
    tasks = anyio.create_task_group()
    await first.open()
    await tasks.__aenter__()
    with anyio.CancelScope():
        await second.open()
    await answers(second)
    await first.close()
    await answers(second)
    await tasks.__aexit__(None, None, None)
    await answers(second)
    await second.close()
    for r in (first, second):
        check_balanced(r.stats())


async def test_an_exit_stack_that_an_application_keeps() -> None:
    """It is filled in one task and closed in another."""
    stack = AsyncExitStack()
    r = router(policy=Always(Strategy.SPAWN))
    await in_a_task(stack.enter_async_context, r)
    await answers(r)
    await in_a_task(stack.aclose)
    check_balanced(r.stats())


async def test_the_opener_may_be_cancelled_later() -> None:
    """The router goes on: what it runs for itself hangs on no caller's scope."""
    r = router(policy=Always(Strategy.SPAWN))
    opened = anyio.Event()

    async def open_and_wait() -> None:
        await r.open()
        opened.set()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(open_and_wait)
        await opened.wait()
        tasks.cancel_scope.cancel()
    await answers(r)
    with anyio.move_on_after(0):
        await anyio.sleep_forever()
    await answers(r)
    await r.close()
    check_balanced(r.stats())


async def test_a_crashed_task_of_its_own_leaves_the_opener_alone() -> None:
    """It reaches who submits, drains or closes, and nobody else."""
    r = await router().open()

    async def crash() -> None:
        raise Boom

    r._lifetime.tasks.start(crash)
    await anyio.wait_all_tasks_blocked()
    for call in (r.submit(job()), r.drain(), r.submit_many([job()]), r.close(), r.close()):
        with pytest.raises(RouterStateError, match="crashed") as caught:
            await call
        assert isinstance(caught.value.__cause__, Boom)
    assert r.state == "crashed"
    check_balanced(r.stats())


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, BaseException])
async def test_nothing_escapes_on_trio(error: type[BaseException], anyio_backend_name: str) -> None:
    """Trio ends the program by what a system task raises; the router crashes by itself instead."""
    if anyio_backend_name != "trio":
        pytest.skip("asyncio gives these to whoever runs the loop")
    r = await router().open()

    async def crash() -> None:
        raise error

    r._lifetime.tasks.start(crash)
    await anyio.wait_all_tasks_blocked()
    with pytest.raises(RouterStateError, match="crashed"):
        await r.close()
    check_balanced(r.stats())


# -- Opening that is stopped ----------------------------------------------------------------------


def slow_to_compile(stages: list[str]) -> Callable[[int, int, str], None]:
    """Return a progress callback that waits at the second form, until somebody stops the rest."""

    def progress(done: int, total: int, name: str) -> None:
        stages.append(name)
        if done == 1:
            reached.release()
            assert goes_on.wait(30)

    reached, goes_on = threading.Semaphore(0), threading.Event()
    progress.reached, progress.goes_on = reached, goes_on  # type: ignore[attr-defined]
    return progress


@pytest.mark.parametrize("how", ["cancelled", "closed"])
async def test_opening_stops_after_the_form_that_compiles(how: str) -> None:
    """Neither cancellation nor `close` waits for all of them, and nothing is left."""
    stages: list[str] = []
    progress: Any = slow_to_compile(stages)
    r = Router(kernels=BUILT_IN, progress=progress)
    refused: list[str] = []

    async def open_it() -> None:
        try:
            await r.open()
        except RouterStateError as error:
            refused.append(str(error))

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_it)
            assert await anyio.to_thread.run_sync(progress.reached.acquire, True, 30)
            if how == "cancelled":
                tasks.cancel_scope.cancel()
            else:
                tasks.start_soon(r.close)
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
            progress.goes_on.set()
    assert refused == ([] if how == "cancelled" else ["the router was closed while it was opening"])
    assert r.state == "closed"
    assert len(stages) == 2
    with pytest.raises(RouterStateError, match="isn't open"):
        await r.submit(job())
    assert r.stats().submitted == 0
    await r.close()


async def test_adding_a_kernel_stops_with_the_router() -> None:
    """Who adds it is told, and no thread goes on."""
    started, goes_on = threading.Event(), threading.Event()

    class Slow(Kernel):
        def check_bound(self) -> None:
            started.set()
            assert goes_on.wait(30)

    r = await router().open()
    errors: list[str] = []

    async def add() -> None:
        with pytest.raises(RouterStateError) as caught:
            await r.add_kernel(Slow(name="Slow", solo=lambda *_: 1))
        errors.append(str(caught.value))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(add)
        assert await anyio.to_thread.run_sync(started.wait, 30)
        tasks.start_soon(r.close)
        await anyio.wait_all_tasks_blocked()
        assert r.state == "closed"
        goes_on.set()
    assert errors == ["the router is closed"]
    assert "Slow" not in r.kernels


# -- Closing that is cut short --------------------------------------------------------------------


async def test_a_cancelled_close_drops_the_queue() -> None:
    """It stops draining, and still waits for the kernels that run."""
    gate = Gate()
    r = await router(gate.kernel, policy=Always(Strategy.CPU_POOL), drain_timeout_s=60).open()
    tickets = [r.submit_soon(job(i, "Gate")) for i in range(5)]
    await gate.begun(2)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(r.close)
            await anyio.wait_all_tasks_blocked()
            assert r.state == "closing"
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
            assert r.state == "closed"
            assert sum(ticket.done for ticket in tickets) == 3
            gate.open()
    assert sorted(ticket.outcome.status for ticket in tickets if ticket.outcome) == [
        *["completed"] * 2,
        *["dropped"] * 3,
    ]
    check_balanced(r.stats())


async def test_a_second_close_waits_for_the_first() -> None:
    """Both return when all has ended, in whichever order they came."""
    gate = Gate()
    r = await router(gate.kernel, policy=Always(Strategy.SPAWN), drain_timeout_s=60).open()
    ticket = r.submit_soon(job(1, "Gate"))
    await gate.begun()
    returned: list[bool] = []

    async def close() -> None:
        await r.close()
        returned.append(ticket.done)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(close)
        await anyio.wait_all_tasks_blocked()
        assert returned == []
        gate.open()
    assert returned == [True] * 3
    check_balanced(r.stats())


async def test_a_job_cant_close_its_router() -> None:
    """It would wait for itself; so would a callable that sees its caller's context."""
    r = await router(policy=Always(Strategy.SPAWN)).open()

    def close() -> None:
        anyio.from_thread.run(r.close)

    kernel = Kernel(name="Closes", solo=lambda *_: close())
    await r.add_kernel(kernel)
    with anyio.fail_after(30):
        for outcome in (
            await r.run(close, compute_cost=LARGE),
            await r.submit(job(kind="Closes")),
            await r.submit_soon(job(kind="Closes")).wait(),
        ):
            with pytest.raises(RouterStateError, match="by one of its own jobs"):
                _ = outcome.value
        drains = await r.run(anyio.from_thread.run, r.drain, compute_cost=LARGE)
        with pytest.raises(RouterStateError, match="can't wait until none is in flight"):
            _ = drains.value
    assert r.is_open
    await r.close()


async def test_a_job_may_close_another_router() -> None:
    """Only its own would wait for it."""
    async with router(policy=Always(Strategy.SPAWN)) as one:
        other = await router().open()
        with anyio.fail_after(30):
            outcome = await one.run(anyio.from_thread.run, other.close, compute_cost=LARGE)
        assert outcome.status is Status.COMPLETED
        assert other.state == "closed"


@pytest.mark.parametrize("cut", [False, True])
async def test_reconfigured_while_it_closes(cut: bool) -> None:
    """More slots for a router that is closing send no thread into what has ended."""
    gate = Gate()
    policy = Always(Strategy.CPU_POOL)
    r = await router(gate.kernel, policy=policy, cpu_parallelism=1, drain_timeout_s=60).open()
    tickets = [r.submit_soon(job(i, "Gate")) for i in range(8)]
    await gate.begun()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(r.close)
            await anyio.wait_all_tasks_blocked()
            if cut:
                tasks.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await anyio.wait_all_tasks_blocked()
            r.reconfigure(cpu_parallelism=4)
            gate.open()
    r.reconfigure(cpu_parallelism=2)
    assert all(ticket.done for ticket in tickets)
    check_balanced(r.stats())


# -- Every call in every state --------------------------------------------------------------------


CALLS: dict[str, Callable[[Router], Any]] = {
    "submit": lambda r: r.submit(job()),
    "submit_soon": lambda r: r.submit_soon(job()),
    "submit_many": lambda r: r.submit_many([job() for _ in range(3)]),
    "submit_many, large": lambda r: r.submit_many([job()] * 20_000),
    "run": lambda r: r.run(len, "abc", compute_cost=1),
    "explain": lambda r: r.explain(job()),
    "drain": lambda r: r.drain(),
    "close": lambda r: r.close(),
    "add_kernel": lambda r: r.add_kernel(Kernel(name="Further", solo=lambda *_: 1)),
    "reconfigure": lambda r: r.reconfigure(cpu_parallelism=3),
    "stats": lambda r: r.stats(),
    "metrics": lambda r: r.metrics(),
    "watch": lambda r: r.watch().latest(),
    "config": lambda r: r.config,
    "kernels": lambda r: r.kernels,
    "hop_us": lambda r: r.hop_us,
    "stretch": lambda r: r.stretch,
}
"""Every public call of a router, but those that open it."""

ANYTIME = {"reconfigure", "stats", "metrics", "watch", "config", "kernels", "hop_us", "stretch"}
"""What can be asked of a router in any state."""


async def result_of(call: Callable[[Router], Any], r: Router) -> Any:
    """Return what a call gives, or the error by which it is refused."""
    try:
        result = call(r)
        return await result if hasattr(result, "__await__") else result
    except RouterStateError as error:
        return error


@pytest.mark.parametrize("name", CALLS)
async def test_before_it_opens(name: str) -> None:
    """What needs a router that is open says so; there is nothing to close."""
    r = router()
    result = await result_of(CALLS[name], r)
    refused = isinstance(result, RouterStateError)
    assert refused == (name not in ANYTIME | {"close"}), result
    assert r.state == "new"


def check_after_its_end(name: str, state: str, result: Any) -> None:
    """Check what a call gives on a router that takes no more jobs."""
    if state == "crashed" and name not in ANYTIME:
        assert isinstance(result, RouterStateError), name
    elif name == "add_kernel":
        assert f"the router is {state}" in str(result)
    elif name in ("submit", "run"):
        assert result.reason == "router_closed", name
    elif name == "submit_soon":
        assert result.outcome.reason == "router_closed"
    elif name.startswith("submit_many"):
        assert {outcome.reason for outcome in result} == {"router_closed"}, name
    else:
        assert not isinstance(result, RouterStateError), name


@pytest.mark.parametrize("state", ["closing", "closed", "crashed"])
async def test_after_its_end(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are dropped, or refused by a router that has crashed; and no thread is sent."""
    gate = Gate()
    r = await router(gate.kernel, policy=Always(Strategy.SPAWN), drain_timeout_s=60).open()
    tickets = [r.submit_soon(job(i, "Gate")) for i in range(2)]
    await gate.begun(2)

    async def crash() -> None:
        raise Boom

    def send(*_: Any, **__: Any) -> Any:
        raise AssertionError("a thread was sent")

    async with anyio.create_task_group() as tasks:
        if state == "crashed":
            r._lifetime.tasks.start(crash)
        else:
            tasks.start_soon(r.close)
        await anyio.wait_all_tasks_blocked()
        if state == "closed":
            gate.open()
            await r.close()
        with monkeypatch.context() as patch, anyio.fail_after(20):
            patch.setattr("anyio.to_thread.run_sync", send)
            for name in [*(CALLS.keys() - {"drain", "close"}), "drain", "close"]:
                if name == "drain":  # which waits for the threads
                    threading.Timer(0.05, gate.open).start()
                else:
                    assert r.state == state or name == "close"
                check_after_its_end(name, state, await result_of(CALLS[name], r))
    assert all(ticket.done for ticket in tickets)
    check_balanced(r.stats())


# -- Loops that end -------------------------------------------------------------------------------


LOOPS = ["asyncio", "uvloop", "trio"]


def run_on(loop: str, main: Callable[[], Any]) -> Any:
    """Run a coroutine function on an event loop of its own, by name."""
    options = {"use_uvloop": loop == "uvloop"} if loop != "trio" else {}
    return anyio.run(main, backend="trio" if loop == "trio" else "asyncio", backend_options=options)


@pytest.fixture(params=LOOPS)
def loop_name(request: pytest.FixtureRequest) -> str:
    """Run a test that runs its own loop on each of them."""
    name: str = request.param
    if name == "uvloop" and os.name == "nt":
        pytest.skip("there is no uvloop here")
    return name


@pytest.mark.parametrize("strategy", [Strategy.INLINE, *IN_THREADS])
def test_a_loop_that_ends_without_a_close(loop_name: str, strategy: Strategy) -> None:
    """The books are exact, and no thread stays behind."""
    gate = Gate()
    threads = threads_in_use()
    kept: list[Any] = []

    async def main() -> None:
        policy = Always(Strategy.SPAWN)
        r = await router(gate.kernel, policy=policy, drain_timeout_s=60).open()
        running = [r.submit_soon(job(i, "Gate")) for i in range(2)]
        await gate.begun(2)
        policy.strategy = strategy
        kept.extend([r, *running, *(r.submit_soon(job(i)) for i in range(5))])
        threading.Timer(0.05, gate.open).start()

    run_on(loop_name, main)
    r, *tickets = kept
    gate.open()
    assert all(ticket.done for ticket in tickets)
    assert r.state == "closed"
    check_balanced(r.stats(), idle=False)
    assert (r.stats().in_flight, r.stats().waiting) == (0, 0)
    wait_until(lambda: threads_in_use() <= threads)


def test_a_loop_that_is_closed_under_it() -> None:
    """Nobody cancelled its tasks, which the router finds out when it is looked at."""
    loop = asyncio.new_event_loop()
    gate = Gate()
    r = loop.run_until_complete(router(gate.kernel, policy=Always(Strategy.SPAWN)).open())

    async def submit() -> Any:
        return r.submit_soon(job(1, "Gate"))

    ticket = loop.run_until_complete(submit())
    loop.run_until_complete(gate.begun())
    gate.open()
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # said of all others, too
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    assert r.state == "closed"
    assert ticket.done
    check_balanced(r.stats(), idle=False)
    assert r.stats().in_flight == 0

    async def elsewhere() -> None:
        with pytest.raises(RouterStateError, match="another one runs here"):
            await r.submit(job())

    asyncio.run(elsewhere())


def test_a_loop_that_runs_now_and_then() -> None:
    """As in a notebook: open in one cell, use in the next ones, close in the last."""
    policy = Always(Strategy.SPAWN)
    with asyncio.Runner() as runner:
        r = runner.run(router(policy=policy).open())
        for policy.strategy in (Strategy.INLINE, *IN_THREADS):
            assert runner.run(r.submit(job())).status is Status.COMPLETED
        ticket = r.submit_soon(job())
        assert r.reconfigure(cpu_parallelism=3).cpu_parallelism == 3
        assert runner.run(ticket.wait()).status is Status.COMPLETED
        runner.run(r.close())
    check_balanced(r.stats())


@pytest.mark.parametrize("ticks", range(4))
def test_a_loop_that_ends_as_it_begins_to_open(ticks: int) -> None:
    """The program ends, even if a task of the router's was cancelled before it began."""
    routers: list[Router] = []
    tasks: list[Any] = []

    async def main() -> None:
        r = Router(kernels=[])
        routers.append(r)
        tasks.append(asyncio.create_task(r.open()))
        for _ in range(ticks):
            await asyncio.sleep(0)

    asyncio.run(main())
    assert routers[0].state in ("new", "closed")
    assert tasks[0].done()


def test_who_waits_when_a_loop_is_closed() -> None:
    """All jobs are settled, whoever waited for them on the loop that is gone."""
    loop = asyncio.new_event_loop()
    gate = Gate()
    r = loop.run_until_complete(router(gate.kernel, policy=Always(Strategy.SPAWN)).open())

    async def submit() -> list[Any]:
        waiting: list[Any] = [asyncio.create_task(r.submit(job(i, "Gate"))) for i in range(6)]
        waiting.append(asyncio.create_task(r.submit_many([job(i, "Gate") for i in range(3)])))
        await asyncio.sleep(0)
        return waiting

    waiting = loop.run_until_complete(submit())
    loop.run_until_complete(gate.begun(2))
    gate.open()
    loop.run_until_complete(loop.shutdown_default_executor())
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # said of all others, too
    loop.close()
    assert r.stats().state == "closed"
    assert r.stats().in_flight == 0
    check_balanced(r.stats(), idle=False)
    del waiting


def test_another_loop_of_the_same_thread_is_refused() -> None:
    """It would wait for ever for what the router's own loop doesn't run meanwhile."""
    one, two = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        r = one.run_until_complete(router(policy=Always(Strategy.SPAWN)).open())
        for call in (lambda: r.submit(job()), lambda: r.submit_many([job()]), r.drain, r.close):
            with pytest.raises(RouterStateError, match="another one runs here: open one router"):
                two.run_until_complete(call())
        one.run_until_complete(r.close())
        check_balanced(r.stats())
    finally:
        one.close()
        two.close()


# -- What stays of a router that is left ----------------------------------------------------------


def _fail_if(fails: bool) -> None:
    if fails:
        raise Boom


async def _left(r: Router, how: str) -> None:
    with contextlib.suppress(Boom, RouterStateError):
        async with r:
            await r.submit(job())
            _fail_if(how == "raises")
            if how == "crashes":
                r._lifetime._fail(Boom())


@pytest.mark.parametrize("how", ["left", "raises", "crashes"])
async def test_nothing_stays_of_a_router_that_was_left(how: str) -> None:
    """No thread, descriptor, task or memory, however it ended."""
    routers: list[weakref.ref[Router]] = []
    counts = []
    for i in range(12):
        r = router(policy=Always(Strategy.SPAWN))
        routers.append(weakref.ref(r))
        await _left(r, how)
        del r
        if i in (1, 11):
            await anyio.wait_all_tasks_blocked()
            counts.append((threading.active_count(), open_files(), len(anyio.get_running_tasks())))
    (threads, *rest), (later_threads, *later_rest) = counts
    assert later_rest == rest
    assert later_threads <= threads + 2  # idle ones are anyio's, who keeps some for the next call
    with anyio.fail_after(30):
        # A thread that has reported may not have let go yet.
        while still_there(routers):  # noqa: ASYNC110
            await anyio.sleep(0.001)


def still_there(routers: list[weakref.ref[Any]]) -> bool:
    """Tell whether any of these is kept alive by something."""
    gc.collect()
    return any(r() is not None for r in routers)


def open_files() -> int:
    """Count this process's file descriptors, where that is possible."""
    return len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0


@pytest.mark.parametrize("how", ["left", "raises"])
def test_nothing_stays_of_a_blocking_router(loop_name: str, how: str) -> None:
    """The same of its thread, and of what would close it with the program."""
    options: dict[str, Any] = {"backend": "trio" if loop_name == "trio" else "asyncio"}
    if loop_name == "uvloop":
        options["backend_options"] = {"use_uvloop": True}
    threads, files = threads_in_use(), open_files()
    routers = []
    for _ in range(5):
        r = BlockingRouter(policy=Always(Strategy.SPAWN), **options)
        routers.append(weakref.ref(r))
        with contextlib.suppress(Boom), r:
            r.submit(job())
            _fail_if(how == "raises")
        del r
    wait_until(lambda: not still_there(routers))
    wait_until(lambda: threads_in_use() <= threads)
    assert open_files() <= files


def test_a_job_of_a_blocking_router_cant_close_it() -> None:
    """Nor in a thread: it would wait for itself."""
    with BlockingRouter(policy=Always(Strategy.SPAWN)) as r:
        outcome = r.run(r.close, compute_cost=LARGE)
        with pytest.raises(RouterStateError, match="by one of its own jobs"):
            _ = outcome.value
        assert r.is_open


def test_a_blocking_router_that_is_closed_while_it_opens(loop_name: str) -> None:
    """By another thread: `close` returns when nothing is left, and `open` says why it failed."""
    stages: list[str] = []
    progress: Any = slow_to_compile(stages)
    backend = "trio" if loop_name == "trio" else "asyncio"
    r = BlockingRouter(progress=progress, backend=backend)

    def is_cancelled() -> bool:
        try:
            return bool(r._router._lifetime._opening.cancel_called)
        except RuntimeError:  # what trio says to other threads while it isn't
            return False

    def close() -> None:
        assert progress.reached.acquire(timeout=30)
        threading.Thread(target=go_on).start()
        r.close()
        closed.append(r.state)

    def go_on() -> None:
        wait_until(is_cancelled)
        progress.goes_on.set()

    closed: list[str] = []
    closer = threading.Thread(target=close)
    closer.start()
    with pytest.raises(RouterStateError, match="was closed while it was opening"):
        r.open()
    closer.join(20)
    assert closed == ["closed"]
    assert len(stages) == 2
    r.close()


# -- Interrupts -----------------------------------------------------------------------------------


INTERRUPTED = """if True:
    import asyncio, os, signal, sys, time
    import anyio
    from helixnb import Decision, Job, Kernel, Router, Strategy

    signal.signal(signal.SIGINT, signal.default_int_handler)

    class Inline:
        def decide(self, job, load, config, estimate):
            return Decision(Strategy.INLINE, "test")

    def spin(inputs, compute_cost, job_id):
        os.write(1, b"begun\\n")
        until = time.monotonic() + 60
        heard = False
        while time.monotonic() < until:
            if not heard and task is not None and task.cancelling():
                heard = True
                os.write(1, b"heard\\n")

    kernel = Kernel(name="Spin", solo=spin)

    task = None

    async def main():
        global task
        if sys.argv[1] == "asyncio":
            task = asyncio.current_task()
        async with Router(kernels=[kernel], policy=Inline()) as router:
            ticket = router.submit_soon(Job(id=1, kind="Spin", compute_cost=1))
            try:
                await ticket.wait()
                await anyio.sleep(30)
            finally:
                stats = router.stats()
                print(stats.submitted, stats.failed + stats.cancelled, flush=True)

    try:
        anyio.run(main, backend=sys.argv[1], backend_options=eval(sys.argv[2]))
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_an_interrupt_in_an_inline_job_of_a_ticket(loop_name: str) -> None:
    """It ends the job and reaches the program, as if the job ran in the program's own task."""
    options = {"use_uvloop": True} if loop_name == "uvloop" else {}
    backend = "trio" if loop_name == "trio" else "asyncio"
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", INTERRUPTED, backend, repr(options)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        if loop_name != "trio":  # asyncio's own handler cancels the main task first
            assert process.stdout.readline() == "heard\n"
            process.send_signal(signal.SIGINT)
        rest = process.stdout.read().split("\n")
        assert process.wait(30) == 0
    assert "interrupted" in rest


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_an_interrupt_while_a_blocking_router_opens() -> None:
    """The form that compiles is the last one, and the program goes on at once."""
    done = python(
        "-c",
        """if True:
        import os, signal, threading
        from helixnb import BlockingRouter
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stages = []
        def progress(done, total, name):
            stages.append(done)
            if done == 1:
                os.kill(os.getpid(), signal.SIGINT)
                heard.wait(20)
        heard = threading.Event()
        router = BlockingRouter(progress=progress)
        try:
            router.open()
        except KeyboardInterrupt:
            heard.set()
            router._loop.join(30)
            print(len(stages), router.state)
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "closed"]


# -- Programs that patch what a router stands on --------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("patched", ["", "thread=False", "socket=False, select=False"])
def test_gevents_green_threads_are_refused(patched: str) -> None:
    """In one line that says what to do, instead of stopping all greenlets, or waiting for ever."""
    pytest.importorskip("gevent")
    done = python(
        "-W",
        "ignore",
        "-c",
        f"""if True:
        from gevent import monkey
        monkey.patch_all({patched})
        import asyncio
        from helixnb import BlockingRouter, Router, RouterStateError
        for opening in (BlockingRouter().open, lambda: asyncio.run(Router().open())):
            try:
                opening()
            except RouterStateError as error:
                print(error)
        """,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("gevent has patched ") for line in lines)


@pytest.mark.slow
def test_loops_inside_loops() -> None:
    """Under nest_asyncio a router works, inside of a nested call too, and the program ends."""
    pytest.importorskip("nest_asyncio")
    done = python(
        "-c",
        """if True:
        import asyncio
        import nest_asyncio
        nest_asyncio.apply()
        from helixnb import Decision, Job, Router, RouterConfig, Strategy
        class Spawn:
            def decide(self, job, load, config, estimate):
                return Decision(Strategy.SPAWN, "test")
        job = Job(id=1, kind="HashMix", compute_cost=640)
        async def main():
            async with Router(RouterConfig(cpu_parallelism=2), policy=Spawn()) as router:
                print((await router.submit(job)).status)
                print(len(await router.submit_many([job] * 20_000)))
                nested = asyncio.get_running_loop().run_until_complete(router.submit(job))
                print(nested.status)
        asyncio.run(main())
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["completed", "20000", "completed"]
