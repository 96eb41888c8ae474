"""Spans of jobs, of the kernel calls that they share, and of calls with columns."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, TypeVar, cast

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.trace import Link, Span, StatusCode, TracerProvider

from helixnb._core.lifecycle import Entry
from helixnb._core.rows import Rows
from helixnb._log import SafeLogger
from helixnb._records import Outcome, Status
from helixnb._version import __version__

logger = SafeLogger("helixnb")

_Note = TypeVar("_Note", bound=Callable[..., None])

_failed = False


def _warn(error: BaseException) -> None:
    global _failed
    if not _failed:
        _failed = True
        logger.warning("a span wasn't recorded; further ones aren't logged: %r", error)


def _guarded(note: _Note) -> _Note:
    """Keep what an SDK raises from the router."""

    @functools.wraps(note)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            note(*args, **kwargs)
        except (KeyboardInterrupt, SystemExit):  # for the program, not for the router
            raise
        except BaseException as error:
            _warn(error)

    return cast("_Note", guarded)


def new_tracing(clock: Callable[[], int], provider: TracerProvider | None) -> Tracing:
    """Return what begins spans; none are recorded if the provider fails."""
    try:
        return Tracing(clock, provider)
    except Exception as error:
        logger.warning("spans of jobs won't be recorded: %r", error)
        return Tracing(clock, trace.NoOpTracerProvider())


class Tracing:
    """Begins spans, for routers that are asked for them."""

    def __init__(self, clock: Callable[[], int], provider: TracerProvider | None) -> None:
        self.clock = clock
        self._tracer = trace.get_tracer("helixnb", __version__, provider)

    @_guarded
    def begin(self, entry: Entry) -> None:
        """Begin the span of a job, below what is current for its caller.

        What a callable or a kernel in plain Python traces is below it in turn.
        """
        job = entry.job
        span = self._tracer.start_span(
            f"job {job.kind}",
            attributes={"kind": job.kind, "helixnb.job.id": str(job.id)},  # beyond 64 bits signed
            start_time=self.wall_ns(entry.arrived_ns),
        )
        if span.is_recording():
            entry.span = JobSpan(self, span)
        is_plain = entry.kernel is None or not entry.kernel.is_compiled
        if is_plain and span.get_span_context().is_valid:  # sampled or not
            if entry.context is None:
                entry.context = copy_context()
            entry.context.run(contexts.attach, trace.set_span_in_context(span))

    @contextmanager
    def call(self, arrived_ns: int) -> Iterator[CallSpan | None]:
        """Trace a call with columns."""
        span = None
        try:
            span = self._tracer.start_span("submit_many", start_time=self.wall_ns(arrived_ns))
        except Exception as error:
            _warn(error)
        if span is None or not span.get_span_context().is_valid:
            yield None
            return
        traced = CallSpan(self, span)
        try:
            yield traced
        except Exception as error:
            traced.fail(error)
            raise
        finally:
            traced.end()

    def batch(self, kind: str, began_ns: int, **given: Any) -> Span:
        """Begin the span of a kernel call that several jobs share."""
        start_time = self.wall_ns(began_ns)
        return self._tracer.start_span(f"batch {kind}", start_time=start_time, **given)

    def wall_ns(self, at_ns: int) -> int:
        """Return nanoseconds since the epoch for a time of the router's clock."""
        return time.time_ns() - self.clock() + at_ns


class JobSpan:
    """The span of a job."""

    __slots__ = ("_tracing", "span")

    def __init__(self, tracing: Tracing, span: Span) -> None:
        self._tracing = tracing
        self.span = span

    @_guarded
    def end(self, outcome: Outcome, queue_ns: int | None) -> None:
        """Note how the job ended, and how long it waited if it ran."""
        span = self.span
        span.set_attributes(
            {
                "strategy": outcome.strategy.value,
                "outcome": outcome.status.value,
                "reason": outcome.reason,
                "helixnb.job.decided": outcome.decided.value,
            }
        )
        if outcome.latency_budget_ms is not None:
            span.set_attribute("helixnb.job.budget", outcome.latency_budget_ms / 1e3)
        if queue_ns is not None:
            span.set_attribute("helixnb.queue.duration", queue_ns / 1e9)
        try:
            if outcome.error is not None:
                _fail(span, outcome.error)
        finally:
            span.end()

    @_guarded
    def share(
        self,
        others: Sequence[Any],
        kind: str,
        cause: str,
        jobs: int,
        began_ns: int,
        ended_ns: int,
    ) -> None:
        """Note that this job and others were in one kernel call: it is linked to all of them."""
        spans: list[Span] = [self.span, *(other.span for other in others)]
        call = self._tracing.batch(
            kind,
            began_ns,
            context=contexts.Context(),  # of several callers: below none of them
            links=[Link(span.get_span_context()) for span in spans],
            attributes=_of_batch(kind, cause, jobs),
        )
        try:
            for span in spans:
                span.add_link(call.get_span_context())
        finally:
            call.end(self._tracing.wall_ns(ended_ns))


class CallSpan:
    """The span of a call with columns."""

    def __init__(self, tracing: Tracing, span: Span) -> None:
        self._tracing = tracing
        self.span = span
        self.books: Sequence[Rows] = ()

    @_guarded
    def share(self, kind: str, cause: str, jobs: int, began_ns: int, ended_ns: int) -> None:
        """Note that some of its jobs were in one kernel call, which is below it."""
        call = self._tracing.batch(
            kind,
            began_ns,
            context=trace.set_span_in_context(self.span, contexts.Context()),
            attributes=_of_batch(kind, cause, jobs),
        )
        call.end(self._tracing.wall_ns(ended_ns))

    @_guarded
    def fail(self, error: Exception) -> None:
        """Note what the call raises."""
        _fail(self.span, error)

    @_guarded
    def end(self) -> None:
        """Note how many jobs it had, and how they ended, if it has come so far."""
        try:
            if self.books:
                jobs = sum(len(rows.status) for rows in self.books)
                self.span.set_attribute("helixnb.jobs", jobs)
                for status in Status:
                    ended = sum(int((rows.status == status.code).sum()) for rows in self.books)
                    self.span.set_attribute(f"helixnb.jobs.{status.value}", ended)
        finally:
            self.span.end()

    def below(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """Return a function that runs another with this span as the current one."""
        return functools.partial(copy_context().run, self._run, run)

    def _run(self, run: Callable[[], Any]) -> Any:
        contexts.attach(trace.set_span_in_context(self.span))
        return run()


def _of_batch(kind: str, cause: str, jobs: int) -> dict[str, str | int]:
    return {"kind": kind, "reason": cause, "helixnb.jobs": jobs}


def _fail(span: Span, error: BaseException) -> None:
    error_type = type(error)
    name = error_type.__qualname__
    if error_type.__module__ != "builtins":
        name = f"{error_type.__module__}.{name}"
    span.set_attribute("error.type", name)
    span.set_status(StatusCode.ERROR, f"{error_type.__name__}: {error}")
    span.record_exception(error)
