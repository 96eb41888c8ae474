"""Tasks that hang on no caller: they live as long as a router, whoever opened it."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any

import anyio

Serve = Callable[..., Coroutine[Any, Any, object]]


def _trio() -> Any:
    """Return the module trio where this is one of its tasks, else None."""
    trio = sys.modules.get("trio")
    return trio if trio is not None and trio.lowlevel.in_trio_task() else None


def loop_finder() -> Callable[[], object]:
    """Return a function that returns the event loop running in this thread, None for none.

    Call this on the loop. What it returns takes 0.03 us on asyncio, since each job asks it.
    """
    trio = _trio()
    if trio is None:
        return asyncio._get_running_loop  # noqa: SLF001  # made for event loops
    current_token: Callable[[], object] = trio.lowlevel.current_trio_token

    def find() -> object:
        try:
            return current_token()
        except RuntimeError:  # no loop runs here
            return None

    return find


async def outlast(event: anyio.Event) -> None:
    """Wait for an event that is sure to come, whatever cancels this task meanwhile."""
    with anyio.CancelScope(shield=True):
        while not event.is_set():
            try:
                await event.wait()
            except asyncio.CancelledError:  # a shield doesn't keep off asyncio's own `cancel`
                continue


class Detached:
    """Tasks of one event loop that are started one by one and ended together.

    anyio has no task without a task group, and a task group belongs to the task that entered it.
    So each of these is a system task of trio's, or a task of asyncio's that this object holds.
    Nothing that a task raises leaves it: trio would end the program. A task sees the context
    variables of whoever made this object, not those of who calls `start`.

    Parameters
    ----------
    on_crash
        Called with what a task raised.
    on_lost
        Called when somebody else cancels a task, as an event loop does that ends.
    on_ended
        Called when no task is left.
    """

    def __init__(
        self,
        on_crash: Callable[[BaseException], object],
        on_lost: Callable[[], object],
        on_ended: Callable[[], object],
    ) -> None:
        self._on_crash = on_crash
        self._on_lost = on_lost
        self._on_ended = on_ended
        self._context = copy_context()
        self._trio = _trio()
        self._loop = None if self._trio else asyncio.get_running_loop()
        # By their scopes; on asyncio, which would forget it, each task itself, and None on trio.
        self._tasks: dict[anyio.CancelScope, object] = {}
        self._ends = False

    @property
    def is_orphaned(self) -> bool:
        """Whether the event loop was closed while there were tasks."""
        return bool(self._tasks) and self._loop is not None and self._loop.is_closed()

    def start(self, serve: Serve, *args: Any, on_end: Callable[[], object] = int) -> bool:
        """Run a coroutine function in a task; returns False, and runs nothing, after `end`.

        Parameters
        ----------
        on_end
            Called when the task has ended, even if it was cancelled before it began.
        """
        if self._ends:
            return False
        scope = anyio.CancelScope()
        self._tasks[scope] = None
        context = self._context.copy()
        run = self._run(scope, serve, args)
        try:
            if self._loop is None:
                spawn = self._trio.lowlevel.spawn_system_task
                spawn(self._run_on_trio, scope, run, on_end, context=context)
            else:
                # Not by the parameter `context`, which task factories may not know.
                task = self._tasks[scope] = context.run(self._loop.create_task, run)
                # Not in `_run`, which never begins in a task that is cancelled before.
                task.add_done_callback(lambda _: self._forget(scope, on_end))
        except RuntimeError:  # the loop has ended, and takes no tasks any more
            run.close()
            del self._tasks[scope]
            self._lose()
            return False
        return True

    async def _run_on_trio(
        self,
        scope: anyio.CancelScope,
        run: Coroutine[Any, Any, None],
        on_end: Callable[[], object],
    ) -> None:
        try:
            await run
        finally:
            self._forget(scope, on_end)

    async def _run(self, scope: anyio.CancelScope, serve: Serve, args: Any) -> None:
        try:
            with scope:
                if self._ends:
                    scope.cancel()
                await serve(*args)
        except (anyio.get_cancelled_exc_class(), GeneratorExit):
            self._lose()
            raise
        except BaseException as error:
            self._on_crash(error)
            # asyncio gives these to whoever runs the loop; trio would end the program.
            if self._loop is not None and isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise

    def _lose(self) -> None:
        if not self._ends:
            self.end()
            self._on_lost()

    def _forget(self, scope: anyio.CancelScope, on_end: Callable[[], object]) -> None:
        on_end()
        if self._tasks.pop(scope, scope) is not scope and not self._tasks:
            self._lose()
            self._on_ended()

    def abandon(self) -> None:
        """Forget all tasks, which never run again: their event loop is closed."""
        self._ends = True
        self._tasks.clear()

    def end(self) -> None:
        """Cancel all tasks, and start none any more; those that wait for a thread wait on."""
        self._ends = True
        for scope in list(self._tasks):
            scope.cancel()


_inside: ContextVar[tuple[Detached, ...]] = ContextVar("helixnb_inside", default=())
"""Of which routers a job runs in this thread, or in a task that it began."""


def is_inside(tasks: Detached) -> bool:
    """Tell whether this is part of a job that runs in a thread of some router's."""
    return tasks in _inside.get()


def mark_inside(tasks: Detached) -> None:
    """Note in the context of this thread that it is one of some router's."""
    if tasks not in _inside.get():
        _inside.set((*_inside.get(), tasks))


def carry_inside(context: Context) -> None:
    """Note the same in another context, in which a job of this thread will run."""
    if inside := _inside.get():
        context.run(_inside.set, inside)


def interrupt_program() -> None:
    """Give a KeyboardInterrupt that was caught on an event loop to whoever runs the loop.

    A user interrupts the main thread. In another one, the job raised it by itself.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if _trio() is None:
        asyncio.get_running_loop().call_soon(_interrupt)
    else:
        signal.raise_signal(signal.SIGINT)  # which trio gives to its main task


def _interrupt() -> None:
    raise KeyboardInterrupt


def uninterrupted(*functions: Callable[..., Any]) -> None:
    """Let Ctrl-C wait on trio until these have returned: what they write must not be half done.

    They are marked for good, and for all routers. asyncio's own handler of signals raises nothing.
    """
    trio = _trio()
    if trio is not None:
        for function in functions:
            trio.lowlevel.enable_ki_protection(function)


def interruptible(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that Ctrl-C interrupts in system tasks of trio, too.

    `function` is marked for good, so it must not be called elsewhere.
    """
    trio = _trio()
    return function if trio is None else trio.lowlevel.disable_ki_protection(function)
