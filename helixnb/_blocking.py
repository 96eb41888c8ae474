"""The router for code without an event loop: it has one of its own, in a thread of its own."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Any, Self

import anyio
from anyio.from_thread import BlockingPortal

from helixnb._config import RouterConfig
from helixnb._decider import Explanation
from helixnb._errors import RouterStateError
from helixnb._exec.green import check_threads
from helixnb._observe.metrics import Reading
from helixnb._observe.stats import Stats
from helixnb._observe.watch import Watch
from helixnb._records import Job, Outcome
from helixnb._router import Router
from helixnb._ticket import Ticket
from helixnb.columns import JobColumns, Outcomes
from helixnb_kernels import Kernel, parallel_is_safe


class BlockingRouter:
    """A `Router` whose calls wait: for threads, scripts and notebooks.

    Used as ``with BlockingRouter() as router``, or with `open` and `close` where it shall outlive
    a block. Calls may come from any thread, and see its context variables; each takes two hops
    between threads, about 0.1 ms, so many jobs are better submitted by one `submit_many`. In a
    coroutine a call would block the event loop: use `Router` there. A router that is still open
    when the main thread ends is closed then.

    Parameters
    ----------
    config, given
        As of `Router`.
    backend, backend_options
        The event loop: ``"asyncio"`` or ``"trio"``, and its options as of ``anyio.run``.

    Raises
    ------
    KernelError
        As `Router`.
    """

    def __init__(
        self,
        config: RouterConfig | None = None,
        *,
        backend: str = "asyncio",
        backend_options: dict[str, Any] | None = None,
        **given: Any,
    ) -> None:
        self._router = Router(config, **given)
        self._lifetime = self._router._lifetime  # noqa: SLF001  # of this package
        self._backend = backend
        self._backend_options = backend_options
        self._portal: BlockingPortal | None = None
        self._loop = threading.Thread(target=self._run, name="helixnb event loop")
        self._ready = threading.Event()
        self._leaving: anyio.Event | None = None
        self._stops = self._hurries = self._has_opened = False
        self._opening = threading.Lock()
        self._pid = 0
        self._failure: BaseException | None = None

    # -- Lifetime -----------------------------------------------------------------------------

    def open(self) -> Self:
        """Compile the kernels, or read them from the disk cache, and take jobs from then on.

        Raises
        ------
        KernelError
            A kernel can't be compiled, or its shared arrays aren't bound.
        RouterStateError
            It was opened before, was closed while it was opening, or threads are green here, as
            gevent's.
        """
        with self._opening:
            if self._pid:
                raise RouterStateError("a router opens once; make a new one")
            check_threads()  # before there is one
            if self._router.config.parallel_kernels == "auto":
                # Chooses the threading layer here: if it were in the loop's thread, TBB would print
                # a warning at every later fork.
                parallel_is_safe()
            self._pid = os.getpid()
            _open.add(self)
            self._loop.start()
        try:
            self._ready.wait()
        except BaseException:  # somebody is impatient; the kernel that compiles is the last one
            self._stop_soon()
            raise
        if not self._has_opened:
            self._loop.join()
            raise self._failure or RouterStateError("the router was closed while it was opening")
        return self

    def close(self) -> None:
        """Stop intake, drain up to ``drain_timeout_s``, drop what is still queued, and end.

        Jobs submitted meanwhile are dropped (``router_closed``), kernels that are running are
        waited for, and calls that wait have their outcomes. A router that is closed stays so.

        Raises
        ------
        RouterStateError
            The router has crashed, or this is called by one of its own jobs.
        """
        if not self._pid:
            return
        self._check_process()
        if threading.current_thread() is self._loop:
            raise RouterStateError("a router can't be closed by its own event loop")
        if self._lifetime.runs_this:
            raise RouterStateError("a router can't be closed by one of its own jobs")
        self._stop_soon()
        self._loop.join()
        failure, self._failure = self._failure, None
        if failure is not None and self._has_opened:  # else it is `open` that raises it
            raise failure

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is None:
            self.close()
            return
        self._hurries = True
        with contextlib.suppress(Exception):  # as `Router`: the body's exception is what matters
            self.close()

    def _run(self) -> None:
        try:
            anyio.run(self._serve, backend=self._backend, backend_options=self._backend_options)
        except BaseException as error:
            self._failure = error
        finally:
            self._portal = None
            _open.discard(self)
            self._ready.set()

    async def _serve(self) -> None:
        async with BlockingPortal() as portal:
            self._leaving = anyio.Event()
            self._portal = portal
            try:
                if self._stops:
                    return
                await self._router.open()
                self._has_opened = True
                self._ready.set()
                await self._leaving.wait()
                await (self._lifetime.close(0.0) if self._hurries else self._router.close())
            except Exception as error:  # kept from the portal, which would wrap it
                self._failure = error

    def _stop_soon(self) -> None:
        self._stops = True
        portal = self._portal
        if portal is not None:
            with contextlib.suppress(RuntimeError):  # it ends already
                portal.start_task_soon(self._stop)

    def _stop(self) -> None:
        assert self._leaving is not None  # there as long as the portal
        self._leaving.set()
        self._lifetime.stop_opening()

    # -- Calls --------------------------------------------------------------------------------

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise RouterStateError(
                "the router was opened in the process that this one was forked from; make a new one"
            )

    def _begin(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Begin a call on the event loop."""
        if not self._pid:
            raise RouterStateError("the router isn't open: use it in `with router:`, or open it")
        self._check_process()
        portal = self._portal
        if portal is None:
            raise RouterStateError("the router is closed")
        if threading.current_thread() is self._loop:
            raise RouterStateError("a job on the router's event loop can't wait for another")
        try:
            return portal.start_task_soon(function, *args)
        except RuntimeError as error:  # it has ended meanwhile
            raise RouterStateError("the router is closed") from error

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Make a call on the event loop, which is cancelled if this thread is interrupted."""
        return wait_for(self._begin(function, *args), None)

    def submit(self, job: Job) -> Outcome:
        """Run a job by the strategy that fits it now, and wait for its outcome.

        See `Router.submit`. An interrupt (`KeyboardInterrupt`) cancels the job.
        """
        outcome: Outcome = self._call(self._router.submit, job)
        return outcome

    def submit_soon(self, job: Job) -> BlockingTicket:
        """Take a job in and return at once; see `Router.submit_soon`."""

        async def take() -> Ticket:
            return self._router.submit_soon(await self._router._converted(job))  # noqa: SLF001  # of this package

        return BlockingTicket(self._call(take), self._begin)

    def submit_many(self, jobs: JobColumns | Iterable[Job]) -> Outcomes:
        """Run jobs by the thousand, and wait for all outcomes; see `Router.submit_many`."""
        outcomes: Outcomes = self._call(self._router.submit_many, jobs)
        return outcomes

    def run(
        self,
        function: Callable[..., Any],
        /,
        *args: Any,
        compute_cost: int,
        scaling_potential: float = 0.0,
        latency_budget_ms: float | None = None,
        kind: str | None = None,
    ) -> Outcome:
        """Run any callable under the same policy, and wait for its outcome; see `Router.run`."""
        outcome: Outcome = self._call(
            functools.partial(
                self._router.run,
                compute_cost=compute_cost,
                scaling_potential=scaling_potential,
                latency_budget_ms=latency_budget_ms,
                kind=kind,
            ),
            function,
            *args,
        )
        return outcome

    def explain(self, job: Job) -> Explanation:
        """Say what would be decided of a job now, and why; see `Router.explain`."""

        async def explain() -> Explanation:
            return self._router.explain(await self._router._converted(job))  # noqa: SLF001  # of this package

        explanation: Explanation = self._call(explain)
        return explanation

    def drain(self) -> None:
        """Wait until no job is in flight. Intake stays open."""
        self._call(self._router.drain)

    # -- Kernels, settings and what is seen -----------------------------------------------------

    def add_kernel(self, kernel: Kernel) -> None:
        """Compile a further kernel, then take jobs of its kind; see `Router.add_kernel`."""
        self._call(self._router.add_kernel, kernel)

    def replace_kernel(self, kernel: Kernel) -> None:
        """Compile a kernel, then let it take the place of that of its name.

        See `Router.replace_kernel`.
        """
        self._call(self._router.replace_kernel, kernel)

    def reconfigure(self, /, **changes: Any) -> RouterConfig:
        """Change settings: all of them, or none; see `Router.reconfigure`."""
        change = functools.partial(self._router.reconfigure, **changes)
        config: RouterConfig = self._call(change) if self._pid else change()
        return config

    def stats(self) -> Stats:
        """Return a snapshot of the router's counts; see `Stats`."""
        read = self._router.stats
        stats: Stats = read() if self._portal is None else self._call(read)
        return stats

    def metrics(self) -> list[Reading]:
        """Read all metrics; see `Router.metrics`."""
        return self._router.metrics()

    def watch(self, capacity: int = 256) -> Watch:
        """Return what keeps the latest jobs that end; see `Router.watch`."""
        return self._router.watch(capacity)

    @property
    def config(self) -> RouterConfig:
        """The configuration in force."""
        return self._router.config

    @property
    def kernels(self) -> tuple[str, ...]:
        """The kinds of jobs that this router takes."""
        return self._router.kernels

    @property
    def hop_us(self) -> float:
        """What it takes to send a thread or to hear from one, in microseconds."""
        return self._router.hop_us

    @property
    def state(self) -> str:
        """``new``, ``opening``, ``open``, ``closing``, ``closed`` or ``crashed``."""
        return self._router.state

    @property
    def is_open(self) -> bool:
        """Whether jobs are taken."""
        return self._router.is_open


class BlockingTicket:
    """A job on its way; `BlockingRouter.submit_soon` gives one. See `Ticket`."""

    __slots__ = ("_begin", "_ticket")

    def __init__(self, ticket: Ticket, begin: Callable[..., Future[Any]]) -> None:
        self._ticket = ticket
        self._begin = begin

    def __repr__(self) -> str:
        return f"<Blocking{repr(self._ticket)[1:]}"

    @property
    def done(self) -> bool:
        """Whether the outcome is there."""
        return self._ticket.done

    def wait(self, timeout_s: float | None = None) -> Outcome:
        """Wait for the outcome, for up to `timeout_s` seconds. The job doesn't depend on it.

        Raises
        ------
        TimeoutError
            There is no outcome by then.
        RouterStateError
            There is none, and the router's event loop is gone.
        """
        outcome = self._ticket.outcome
        if outcome is None:
            outcome = wait_for(self._begin(self._ticket.wait), timeout_s)
        assert outcome is not None
        return outcome

    def cancel(self) -> bool:
        """Cancel the job; returns whether that was in time. See `Ticket.cancel`."""
        cancelled: bool = not self.done and wait_for(self._begin(self._ticket.cancel), None)
        return cancelled


def wait_for(future: Future[Any], timeout_s: float | None) -> Any:
    """Return what a call on the event loop returns; it is cancelled if nobody waits any more."""
    try:
        return future.result(timeout_s)
    except CancelledError as error:
        raise RouterStateError("the router's event loop has ended") from error
    except BaseException:
        future.cancel()
        raise


_open: weakref.WeakSet[BlockingRouter] = weakref.WeakSet()


def _close_with_program() -> None:
    """Close what is open when the main thread ends, which then waits for the event loops."""
    for router in list(_open):
        router._stop_soon()  # noqa: SLF001  # of this module's own class


# `atexit` comes after the wait; this is what `concurrent.futures` ends its threads by.
threading._register_atexit(_close_with_program)  # type: ignore[attr-defined]  # noqa: SLF001
