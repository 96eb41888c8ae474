"""From opening to closed: a router's state, and the tasks and threads that it ends with."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import anyio

from helixnb._core.lifecycle import Ledger
from helixnb._errors import RouterStateError
from helixnb._exec.detached import Detached, is_inside, loop_finder, mark_inside, outlast
from helixnb._exec.green import check_threads
from helixnb._log import SafeLogger
from helixnb._records import Status

T = TypeVar("T")

logger = SafeLogger("helixnb")

NOWHERE = object()
"""Stands for the event loop of a router that takes no jobs, which never runs."""


MOST_CONVERTING = 40
"""How many threads convert inputs at once: they compute, or wait for a file."""


class Lifetime:
    """The life of a router: new, opening, open, closing, closed; or crashed.

    It belongs to an event loop and to no task of it: any task may open it, and any may close it.
    What runs for it runs in detached tasks, the last of which says that all has ended.

    Parameters
    ----------
    ledger
        Whose jobs are drained and evicted.
    on_closing
        Called when intake has stopped, before the jobs in flight are waited for.
    on_ended
        Called when no task is left, whatever ended them.

    Attributes
    ----------
    state
        ``new``, ``opening``, ``open``, ``closing``, ``closed`` or ``crashed``.
    has_opened
        Whether it was ever open.
    tasks
        Those of the router's own; there from opening on.
    """

    tasks: Detached

    def __init__(
        self,
        ledger: Ledger,
        on_closing: Callable[[], object],
        on_ended: Callable[[], object],
    ) -> None:
        self.state = "new"
        self.has_opened = False
        self._ledger = ledger
        self._on_closing = on_closing
        self._on_ended = on_ended
        self._crash: BaseException | None = None
        self._find_loop: Callable[[], object] = lambda: None
        self._home: object = NOWHERE
        self._takes_jobs: object = NOWHERE  # the loop, while it has not crashed
        self._thread = 0
        self._stops: set[threading.Event] = set()

    # -- Opening ------------------------------------------------------------------------------

    async def open(self, set_up: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begin, by what `set_up` does; cancelling this, or `close` meanwhile, stops it.

        Raises
        ------
        RouterStateError
            It isn't new, threads are green here, or it was closed meanwhile.
        Exception
            Whatever `set_up` raises. It is closed then.
        """
        if self.state != "new":
            raise RouterStateError("a router opens once; make a new one")
        check_threads()
        self.state = "opening"
        self._find_loop = loop_finder()
        self._home = self._find_loop()
        self._thread = threading.get_ident()
        self._idle, self._leaving, self._closed = anyio.Event(), anyio.Event(), anyio.Event()
        self._opening, self._draining = anyio.CancelScope(), anyio.CancelScope()
        self._one = anyio.CapacityLimiter(1)
        self._converting = anyio.CapacityLimiter(MOST_CONVERTING)
        self._ledger.on_idle = self._idle_now
        self.tasks = Detached(self._fail, self._shut, self._end)
        self.tasks.start(self._live)
        try:
            with self._opening:
                await set_up()
        except BaseException:
            await self._give_up()
            raise
        if self._opening.cancel_called or self.state != "opening":
            await self._give_up()
            raise RouterStateError("the router was closed while it was opening")
        self._takes_jobs = self._home
        self.has_opened = True
        self.state = "open"

    async def _give_up(self) -> None:
        self._shut()
        self._leaving.set()
        await outlast(self._closed)

    async def aside(
        self,
        serve: Callable[[], Coroutine[Any, Any, T]],
        on_cancelled: Callable[[], object] | None = None,
    ) -> T:
        """Return what a coroutine function returns, from a task of the router's own.

        anyio's threads end with the outermost task that needed them. So what needs one runs here,
        and no thread hangs on a task of the caller's.

        Parameters
        ----------
        on_cancelled
            Called if this is cancelled; `serve` is waited for all the same.

        Raises
        ------
        RouterStateError
            The router has ended.
        Exception
            Whatever `serve` raises.
        """
        done = anyio.Event()
        results: list[T] = []
        errors: list[Exception] = []

        async def run() -> None:
            try:
                results.append(await serve())
            except Exception as error:
                errors.append(error)

        if self.tasks.start(run, on_end=done.set):
            try:
                await done.wait()
            except BaseException:
                if on_cancelled is not None:
                    on_cancelled()
                await outlast(done)
                raise
        if errors:
            raise errors[0]
        if not results:
            raise RouterStateError(f"the router is {self.state}")
        return results[0]

    async def in_thread(
        self, function: Callable[[], T], on_cancelled: Callable[[], object] | None = None
    ) -> T:
        """Return what a function returns that takes a while, from a thread; see `aside`."""

        def call() -> T:
            mark_inside(self.tasks)
            return function()

        # One thread at a time; anyio's own may all be used by those who wait for the router.
        limiter = self._one if on_cancelled is None else anyio.CapacityLimiter(1)
        return await self.aside(
            lambda: anyio.to_thread.run_sync(call, limiter=limiter), on_cancelled
        )

    async def abandonable(self, function: Callable[[], T]) -> T:
        """Return what a function returns that runs code of somebody else's, from a thread.

        Nobody waits for it when the caller is cancelled: the thread goes on, unheard.

        Raises
        ------
        Exception
            Whatever it raises, as a RuntimeError if that isn't for a thread, as a SystemExit.
        """
        results: list[T] = []
        errors: list[BaseException] = []

        def call() -> None:
            mark_inside(self.tasks)
            try:
                results.append(function())
            except BaseException as error:
                errors.append(error)

        await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._converting)
        if not errors:
            return results[0]
        if isinstance(errors[0], Exception):
            raise errors[0]
        raise RuntimeError(f"{type(errors[0]).__name__}: {errors[0]}") from errors[0]

    async def until_stopped(self, function: Callable[[Callable[[], bool]], object]) -> None:
        """Call what takes seconds in a thread, with a function that tells whether it should stop.

        It should as soon as this is cancelled, or the router is closed.

        Raises
        ------
        RouterStateError
            The router was closed.
        """
        stop = threading.Event()
        self._stops.add(stop)
        try:
            await self.in_thread(lambda: function(stop.is_set), stop.set)
        finally:
            self._stops.discard(stop)
        if stop.is_set():
            raise RouterStateError(f"the router is {self.state}")

    # -- Closing ------------------------------------------------------------------------------

    async def close(self, drain_timeout_s: float) -> None:
        """Stop intake, drain, drop what is still queued, and wait for what runs.

        Parameters
        ----------
        drain_timeout_s
            For how long jobs in flight are waited for from now on, at most; threads that run are
            waited for as long as they take. A further call may shorten it.

        Raises
        ------
        RouterStateError
            The router has crashed, is another event loop's, or one of its own jobs calls this.
        """
        if self.state == "new":
            return
        self._check_home()
        if self.runs_this:
            raise RouterStateError(
                "a router can't be closed by one of its own jobs, which it would wait for"
            )
        self.stop_opening()
        if self.state == "open":
            self.state = "closing"
        ends_s = anyio.current_time() + drain_timeout_s
        self._draining.deadline = min(self._draining.deadline, ends_s)
        if self.state != "opening":
            self._leaving.set()
        try:
            await self._closed.wait()
        except BaseException:
            self._draining.cancel()
            await outlast(self._closed)  # its threads can't be stopped
            raise
        if self._crash is not None:
            raise RouterStateError("the router crashed; the cause is chained") from self._crash

    @property
    def runs_this(self) -> bool:
        """Whether the calling code is part of a job that one of the router's threads runs."""
        return self.state != "new" and is_inside(self.tasks)

    def stop_opening(self) -> None:
        """Let `open` raise, if it is under way."""
        if self.state == "opening":
            self._opening.cancel()

    async def _live(self) -> None:
        """Wait until it is time to close, and do it."""
        try:
            await self._leaving.wait()
            self._stop_threads()
            if self.state == "closing":
                self._on_closing()
                with self._draining:
                    await self._drained()
        finally:
            self._shut()
            self.tasks.end()

    def _shut(self) -> None:
        """Take no more jobs, and drop those that no thread has begun with."""
        if self.state != "crashed":
            self.state = "closed"
        self._stop_threads()
        self._ledger.evict(Status.DROPPED, reason="router_closed")

    def _stop_threads(self) -> None:
        for stop in self._stops:
            stop.set()

    def _end(self) -> None:
        """Settle and free all that is left: no task is, so that nobody else will."""
        try:
            self._shut()
            # None is, unless the tasks were killed while their threads ran.
            self._ledger.evict(Status.DROPPED, reason="router_closed", begun=True)
        finally:
            try:
                self._on_ended()
            finally:
                self._closed.set()

    def bury(self) -> None:
        """Notice that the event loop was closed without an end of this. Thread-safe."""
        if self.state in ("opening", "open", "closing", "crashed") and self.tasks.is_orphaned:
            self.tasks.abandon()
            self._ledger.forget_callers()  # who are of that loop, too
            with contextlib.suppress(RuntimeError):
                self._end()

    # -- Crashes ------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        """Answer all who wait, since a task of the router's own raised."""
        self.state = "crashed"
        self._crash = error
        self._takes_jobs = NOWHERE
        failure = RouterStateError(f"the router crashed: {error!r}")
        failure.__cause__ = error
        try:
            self._ledger.evict(Status.FAILED, error=failure)
        finally:
            logger.error("the router crashed; it takes no more jobs", exc_info=error)

    # -- What may be done now -----------------------------------------------------------------

    async def drain(self) -> None:
        """Wait until no job is in flight.

        Raises
        ------
        RouterStateError
            It isn't open, is another event loop's, has crashed, or one of its own jobs calls this.
        """
        self.check_loop()
        if self.runs_this:
            raise RouterStateError("one of a router's own jobs can't wait until none is in flight")
        await self._drained()
        if self._crash is not None:
            raise RouterStateError("the router crashed; the cause is chained") from self._crash

    async def _drained(self) -> None:
        while self._ledger.in_flight:
            if self._idle.is_set():
                self._idle = anyio.Event()
            await self._idle.wait()

    def _idle_now(self) -> None:
        self._idle.set()
        if self.state == "closed":  # so that no heartbeat does it
            self._ledger.counts.fold()

    def check_open(self) -> None:
        """Raise unless jobs may be submitted here, if only to be dropped by a closed router."""
        if self._find_loop() is not self._takes_jobs:
            self.check_loop()
            if self.state == "crashed":
                raise RouterStateError("the router has crashed and takes no jobs") from self._crash

    def check_loop(self) -> None:
        """Raise unless it has opened, and this is its event loop."""
        if not self.has_opened:
            raise RouterStateError("the router isn't open: use it in `async with router:`")
        self._check_home()

    def _check_home(self) -> None:
        loop = self._find_loop()
        if loop is self._home:
            return
        if threading.get_ident() != self._thread:
            raise RouterStateError("a router belongs to the thread of the event loop it opened on")
        if loop is not None:  # calls that don't wait may come between two runs of its loop
            raise RouterStateError(
                "a router belongs to the event loop it opened on, and another one runs here: "
                "open one router for each loop"
            )
