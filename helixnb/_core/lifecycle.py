"""The life of a job: from its entry in the books to the one place that settles it."""

from __future__ import annotations

import logging
import math
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextvars import Context
from typing import Any, Protocol

from helixnb._records import Decision, Job, Outcome, Status, Strategy, make_outcome

WINDOW = 4_096
"""How many latencies a strategy keeps for its quantiles, newest first out of the ring."""

logger = logging.getLogger("helixnb")


class Signal(Protocol):
    """What a job's caller waits for: an ``anyio.Event``."""

    def set(self) -> object:
        """Wake whoever waits."""
        ...

    async def wait(self) -> object:
        """Wait until it is set."""
        ...


class RowsInFlight(Protocol):
    """Jobs in columns, as the ledger sees them; see `Rows`."""

    pending: int

    def evict(
        self, status: Status, reason: str | None, error: BaseException | None, *, begun: bool
    ) -> None:
        """Settle what hasn't begun to run, or all."""
        ...


class Entry:
    """A job on its way from a caller to its outcome.

    Attributes
    ----------
    decision, strategy, reason
        What the policy chose, and how and why the job runs in fact; set by `decide`.
    kernel, inputs, params
        What runs the job, alone or in a batch; None for a callable.
    call
        The callable of `run`, with its arguments; None for a kernel.
    context
        The caller's context variables, where the call should see them.
    work
        What the time of a job of its kind depends on, in a unit of the kind's own.
    model
        What is known of the kind.
    predicted_ns
        How long the job should take, infinite for what isn't known.
    wait_ns
        How long it was predicted to wait.
    deadline_ns, start_by_ns
        When its budget is over, and when it is too late to begin with it; infinite for never.
    retry_after_s
        When a new try may succeed, if it was dropped and that is known.
    done
        Set with the outcome; None while nobody waits.
    queue
        Where the job waits, None while it doesn't.
    started
        Whether a thread has begun with it.
    orphaned
        Whether its ticket is gone, so that nobody will see it fail.
    """

    __slots__ = (
        "arrived_ns",
        "call",
        "context",
        "deadline_ns",
        "decision",
        "done",
        "inputs",
        "job",
        "kernel",
        "model",
        "orphaned",
        "outcome",
        "params",
        "predicted_ns",
        "queue",
        "reason",
        "retry_after_s",
        "start_by_ns",
        "started",
        "strategy",
        "wait_ns",
        "work",
    )

    decision: Decision
    strategy: Strategy
    reason: str

    def __init__(
        self,
        job: Job,
        arrived_ns: int,
        kernel: Any = None,
        inputs: Any = None,
        params: Any = (),
        predicted_ns: float = math.inf,
        call: Callable[[], Any] | None = None,
        context: Context | None = None,
        work: float = 0.0,
        model: Any = None,
    ) -> None:
        self.job = job
        self.arrived_ns = arrived_ns
        self.kernel = kernel
        self.inputs = inputs
        self.params = params
        self.predicted_ns = predicted_ns
        self.work = work
        self.model = model
        self.wait_ns = 0.0
        self.deadline_ns = self.start_by_ns = math.inf
        self.retry_after_s: float | None = None
        self.call = call
        self.context = context
        self.done: Signal | None = None
        self.queue: Any = None
        self.started = False
        self.orphaned = False
        self.outcome: Outcome | None = None

    def decide(self, decision: Decision) -> None:
        """Note the policy's choice, which is how the job runs unless it is rerouted."""
        self.decision = decision
        self.strategy = decision.strategy
        self.reason = decision.reason
        self.retry_after_s = decision.retry_after_s

    def reroute(self, strategy: Strategy, reason: str) -> None:
        """Let the job run otherwise than decided."""
        self.strategy = strategy
        self.reason = reason
        self.retry_after_s = None


class LatencyWindow:
    """The latest latencies of one strategy in nanoseconds, and the sum over all of them."""

    __slots__ = ("count", "latest_ns", "sum_ns")

    def __init__(self, size: int = WINDOW) -> None:
        self.latest_ns = array("q", bytes(8 * size))
        self.count = 0
        self.sum_ns = 0

    def record(self, latency_ns: int, times: int = 1) -> None:
        """Keep a latency, of one job or of several; the oldest give way."""
        size = len(self.latest_ns)
        for i in range(self.count, self.count + min(times, size)):
            self.latest_ns[i % size] = latency_ns
        self.count += times
        self.sum_ns += latency_ns * times

    def kept_ns(self) -> array[int]:
        """Return the latencies kept, in no particular order."""
        return self.latest_ns[: min(self.count, len(self.latest_ns))]


class Ledger:
    """Every job is entered once and settled once; the counts follow from that.

    ``submitted == in_flight + completed + dropped + failed + cancelled`` at any time. Used from
    the router's event loop only, but for `begin`. Lists of counts are indexed by the `code` of what
    they count.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        self.clock = clock
        self.beginning = threading.RLock()
        self.submitted = 0
        self._in_flight: set[Entry] = set()
        self._rows: set[RowsInFlight] = set()
        self._rows_in_flight = 0
        self.by_status = [0] * len(Status)
        self.within_budget = 0
        self.decided = [0] * len(Strategy)
        self.routed = [0] * len(Strategy)
        self.dropped_by_reason: Counter[str] = Counter()
        self.latency = [LatencyWindow() for _ in Strategy]
        self.on_idle: Callable[[], object] | None = None

    @property
    def in_flight(self) -> int:
        """How many jobs were entered and not settled yet."""
        return len(self._in_flight) + self._rows_in_flight

    def enter(self, entry: Entry) -> None:
        """Count a job in."""
        self.submitted += 1
        self._in_flight.add(entry)
        self.decided[entry.decision.strategy.code] += 1

    def refuse(
        self, job: Job, arrived_ns: int, decision: Decision, retry_after_s: float | None
    ) -> Outcome:
        """Count a job in and out again: it is dropped on arrival."""
        self.submitted += 1
        self.decided[decision.strategy.code] += 1
        self.routed[decision.strategy.code] += 1
        self.by_status[Status.DROPPED.code] += 1
        self.dropped_by_reason[decision.reason] += 1
        return make_outcome(
            job.id,
            job.kind,
            Status.DROPPED,
            decision.strategy,
            decision.strategy,
            decision.reason,
            (self.clock() - arrived_ns) / 1e6,
            job.latency_budget_ms,
            None,
            None,
            retry_after_s,
        )

    def begin(self, entries: Iterable[Entry]) -> list[Entry]:
        """Mark the jobs that a thread begins with now, and return them: not those that ended.

        Thread-safe.
        """
        with self.beginning:
            begun = [entry for entry in entries if entry.outcome is None]
            for entry in begun:
                entry.started = True
        return begun

    def settle(
        self,
        entry: Entry,
        status: Status,
        *,
        value: Any = None,
        error: BaseException | None = None,
        reason: str | None = None,
    ) -> bool:
        """End a job: record its outcome, count it, wake its caller.

        The first call for an entry wins; a later one does nothing and returns False, such as the
        result of a kernel whose caller has been cancelled meanwhile.
        """
        if entry.outcome is not None:
            return False
        queue = entry.queue  # read once: a worker thread may be taking the job out
        if queue is not None:
            queue.discard(entry)
        job, strategy = entry.job, entry.strategy
        latency_ns = self.clock() - entry.arrived_ns
        retry_after_s = None
        if reason is None:
            reason = entry.reason
            retry_after_s = entry.retry_after_s
        entry.outcome = outcome = make_outcome(
            job.id,
            job.kind,
            status,
            entry.decision.strategy,
            strategy,
            reason,
            latency_ns / 1e6,
            job.latency_budget_ms,
            value,
            error,
            retry_after_s,
        )
        self._in_flight.remove(entry)
        self.by_status[status.code] += 1
        self.routed[strategy.code] += 1
        if status is Status.COMPLETED:
            self.latency[strategy.code].record(latency_ns)
            self.within_budget += outcome.met_budget
        elif status is Status.DROPPED:
            self.dropped_by_reason[reason] += 1
        if entry.done is not None:
            entry.done.set()
        self._check_idle()
        if status is Status.FAILED and entry.orphaned:
            log_unseen_failure(outcome, traceback=True)
        return True

    def _check_idle(self) -> None:
        if not self._in_flight and not self._rows_in_flight and self.on_idle is not None:
            self.on_idle()

    def enter_rows(self, rows: RowsInFlight, decided: list[int]) -> None:
        """Count jobs in columns in, by the strategies that were decided for them."""
        jobs = sum(decided)
        self.submitted += jobs
        self._rows_in_flight += jobs
        if jobs:
            self._rows.add(rows)
        for code, count in enumerate(decided):
            self.decided[code] += count

    def settle_rows(
        self,
        rows: RowsInFlight,
        status: Status,
        by_strategy: list[int],
        latency_ns: int,
        within_budget: int,
        reasons: Mapping[str, int],
    ) -> None:
        """Count jobs in columns that ended together, by the strategies that ran."""
        jobs = sum(by_strategy)
        self._rows_in_flight -= jobs
        if not rows.pending:
            self._rows.discard(rows)
        self.by_status[status.code] += jobs
        self.within_budget += within_budget
        self.dropped_by_reason.update(reasons)
        for code, count in enumerate(by_strategy):
            self.routed[code] += count
            if status is Status.COMPLETED and count:
                self.latency[code].record(latency_ns, count)
        self._check_idle()

    def evict(
        self,
        status: Status,
        *,
        reason: str | None = None,
        error: BaseException | None = None,
        begun: bool = False,
    ) -> None:
        """Settle every job that hasn't begun to run, wherever it is, or with `begun` those too."""
        with self.beginning:
            for entry in list(self._in_flight):
                if begun or not entry.started:
                    self.settle(entry, status, reason=reason, error=error)
            for rows in list(self._rows):
                rows.evict(status, reason, error, begun=begun)


def log_unseen_failure(outcome: Outcome, *, traceback: bool) -> None:
    """Log a failure that nobody will read from an outcome."""
    logger.error(
        "job %d of kind %s failed, and nobody waits for it: %r",
        outcome.job_id,
        outcome.kind,
        outcome.error,
        exc_info=outcome.error if traceback else None,
    )
