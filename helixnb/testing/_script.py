"""What a test says: steps, which jobs take one by one, and jobs that are held."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import anyio

from helixnb._records import Decision, Job, Strategy
from helixnb_kernels import Kernel
from helixnb_kernels._values import shown

REASON = "scripted"
"""The reason of all decisions but drops."""

LONGEST_HOLD_S = 30.0
"""For how long a job is held that nobody releases."""


class Hold:
    """Jobs that wait in their threads until they are released; `Script.hold` gives one.

    Also a context manager, which releases them when it is left. Thread-safe.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._news = threading.Condition()
        self._begun = 0
        self._released = False

    def release(self) -> None:
        """Let these jobs go on, and those that come later."""
        with self._news:
            self._released = True
            self._news.notify_all()

    def wait_begun(self, jobs: int = 1, *, timeout_s: float = 10.0) -> None:
        """Block this thread until so many jobs have begun to wait, counted from the start.

        Raises
        ------
        TimeoutError
            They have not within `timeout_s` seconds.
        """
        with self._news:
            if not self._news.wait_for(lambda: self._begun >= jobs, timeout_s):
                raise TimeoutError(
                    f"{jobs} held jobs were to begin within {timeout_s:g} s, "
                    f"and {self._begun} did: was one submitted, and is a CPU slot free?"
                )

    async def begun(self, jobs: int = 1, *, timeout_s: float = 10.0) -> None:
        """Wait likewise, in a coroutine."""
        wait = functools.partial(self.wait_begun, jobs, timeout_s=timeout_s)
        await anyio.to_thread.run_sync(wait, abandon_on_cancel=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def _pass(self) -> None:
        """Wait in a job's thread."""
        limit_s = LONGEST_HOLD_S if self._seconds is None else self._seconds
        ends_s = time.monotonic() + limit_s
        with self._news:
            self._begun += 1
            self._news.notify_all()
            while not self._released and (left_s := ends_s - time.monotonic()) > 0:
                self._news.wait(left_s)
            if self._seconds is None and not self._released:
                raise TimeoutError(f"nobody released this held job within {limit_s:g} s")


@dataclass(slots=True, kw_only=True, eq=False)
class Step:
    """What becomes of the next jobs of a kind.

    Attributes
    ----------
    kind
        None for any.
    left
        Of how many more; None for all that come.
    """

    what: str
    kind: str | None
    decision: Decision
    left: int | None = 1
    error: Exception | None = None
    hold: Hold | None = None

    def __str__(self) -> str:
        times = "" if self.left == 1 else f", {self.left} times"
        return f"{self.what} {self.kind or 'any kind'}{times}"

    @property
    def acts(self) -> bool:
        """Whether it does something to the job's run."""
        return self.error is not None or self.hold is not None

    def perform(self, run: Callable[[], Any]) -> Any:
        """Do it, in the place of a job's run."""
        if self.hold is not None:
            self.hold._pass()  # noqa: SLF001  # of this module's own class
        if self.error is not None:
            raise self.error
        return run()


class Script:
    """What becomes of the next jobs of a router.

    Each job takes the first step that is there for its kind, in the order in which jobs are
    submitted, by whichever call. A job for which there is no step runs by `strategy`, whatever the
    load, and has the value that it always has. What the router refuses by itself takes no step:
    jobs that don't fit their kernel, and those that come when it is closed.

    As a context manager, ``with router.script as script:``, it begins empty, and ends so; what is
    held is released. Steps that no job has taken are an ``AssertionError`` then. Thread-safe.

    Parameters
    ----------
    strategy
        How jobs run for which there is no step; any but ``drop``.

    Attributes
    ----------
    jobs
        The jobs that came so far, in order; those of `Router.run` have their callable's kind. For
        assertions on what a service has submitted.

    Raises
    ------
    ValueError
        `strategy` can't be.
    """

    def __init__(self, strategy: Strategy = Strategy.CPU_POOL) -> None:
        self.jobs: list[Job] = []
        self._default = Step(what="run", kind=None, decision=decision_of(strategy), left=None)
        self._steps: list[Step] = []
        self._holds: list[Hold] = []
        self._lock = threading.Lock()

    # -- Steps --------------------------------------------------------------------------------

    def drop(
        self,
        kind: str | Kernel | None = None,
        *,
        reason: str = "infeasible",
        retry_after_s: float | None = None,
        times: int | None = 1,
    ) -> None:
        """Let jobs be dropped.

        Parameters
        ----------
        kind
            Of what kind; None for any.
        reason, retry_after_s
            As of an `Outcome`.
        times
            How many jobs; None for all that come, until `clear`.

        Raises
        ------
        TypeError, ValueError
            An argument can't be.
        """
        decision = Decision(Strategy.DROP, reason, retry_after_s)
        self._add("drop", kind, times, decision=decision)

    def fail(
        self,
        kind: str | Kernel | None = None,
        error: Exception | None = None,
        *,
        times: int | None = 1,
        strategy: Strategy | None = None,
    ) -> None:
        """Let jobs fail, as if their kernel raised `error`.

        Parameters
        ----------
        error
            A ``RuntimeError`` by default.
        strategy
            By which they run until then; the script's own by default.
        kind, times
            As of `drop`.

        Raises
        ------
        TypeError, ValueError
            An argument can't be.
        """
        error = RuntimeError("the script lets this job fail") if error is None else error
        if not isinstance(error, Exception):
            raise TypeError(f"error must be an exception, got {shown(error)}")
        self._add("fail", kind, times, decision=self._decision(strategy), error=error)

    def hold(
        self,
        kind: str | Kernel | None = None,
        seconds: float | None = None,
        *,
        times: int | None = 1,
        strategy: Strategy = Strategy.SPAWN,
    ) -> Hold:
        """Let jobs be slow: each waits in its thread until it is released, and runs then.

        It has its CPU slot meanwhile, so that no more jobs are held at a time than there are
        slots; others wait for one.

        Parameters
        ----------
        seconds
            How long each waits at most; None for as long as nobody releases it. It fails then after
            30 s, with a ``TimeoutError``, so that no test hangs.
        strategy
            ``spawn``, ``cpu_pool`` or ``batch``: what runs inline would hold the event loop.
        kind, times
            As of `drop`.

        Raises
        ------
        TypeError, ValueError
            An argument can't be.
        """
        decision = decision_of(strategy)
        if decision.strategy is Strategy.INLINE:
            raise ValueError("a job that runs inline can't be held: it would hold the event loop")
        if seconds is not None and not seconds >= 0:
            raise ValueError(f"seconds must be 0 or more, or None, got {shown(seconds)}")
        hold = Hold(seconds)
        self._add("hold", kind, times, decision=decision, hold=hold)
        with self._lock:
            self._holds.append(hold)
        return hold

    def route(
        self, kind: str | Kernel | None, strategy: Strategy, *, times: int | None = 1
    ) -> None:
        """Let jobs run by a strategy.

        Parameters
        ----------
        strategy
            Any but ``drop``.
        kind, times
            As of `drop`.

        Raises
        ------
        TypeError, ValueError
            An argument can't be.
        """
        self._add("route", kind, times, decision=decision_of(strategy))

    def _add(self, what: str, kind: str | Kernel | None, times: int | None, **fields: Any) -> None:
        name = kind.name if isinstance(kind, Kernel) else kind
        if not (name is None or isinstance(name, str)):
            raise TypeError(
                f"kind must be the name of a kernel, a kernel, or None, got {shown(kind)}"
            )
        if times is not None and (type(times) is not int or times < 1):
            raise ValueError(f"times must be an integer of at least 1, or None, got {shown(times)}")
        with self._lock:
            self._steps.append(Step(what=what, kind=name, left=times, **fields))

    def _decision(self, strategy: Strategy | None) -> Decision:
        return self._default.decision if strategy is None else decision_of(strategy)

    @property
    def pending(self) -> tuple[str, ...]:
        """The steps that no job has taken so far, in words; none of those for all jobs."""
        with self._lock:
            return tuple(str(step) for step in self._steps if step.left is not None)

    def release(self) -> None:
        """Release all that is held."""
        with self._lock:
            holds, self._holds = self._holds, []
        for hold in holds:
            hold.release()

    def clear(self) -> None:
        """Begin anew: no steps, no jobs, and nothing held."""
        self.release()
        with self._lock:
            self._steps.clear()
            self.jobs.clear()

    def __enter__(self) -> Self:
        self.clear()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pending = self.pending
        self.clear()
        if exc is None and pending:
            raise AssertionError(f"no job came for what the script had: {'; '.join(pending)}")

    # -- Jobs that come -------------------------------------------------------------------------

    def _take(self, job: Job) -> Step:
        """Return the step for a job that comes now, which counts as taken once more."""
        with self._lock:
            self.jobs.append(job)
            step = self._first(job.kind)
            if step.left is not None:
                step.left -= 1
                if not step.left:
                    self._steps.remove(step)
            return step

    def _peek(self, job: Job) -> Step:
        """Return what `_take` would, and leave it there."""
        with self._lock:
            return self._first(job.kind)

    def _first(self, kind: str) -> Step:
        return next((step for step in self._steps if step.kind in (None, kind)), self._default)


def decision_of(strategy: Strategy) -> Decision:
    decision = Decision(strategy, REASON)
    if decision.strategy is Strategy.DROP:
        raise ValueError("strategy must be a way to run: `Script.drop` lets jobs be dropped")
    return decision
