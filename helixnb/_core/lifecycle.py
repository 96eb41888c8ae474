"""The life of a job: from its entry in the books to the one place that settles it."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context
from typing import Any, Protocol

from helixnb._core.counts import Counts, Tally
from helixnb._log import SafeLogger
from helixnb._records import Decision, Job, Outcome, Status, Strategy, make_outcome

logger = SafeLogger("helixnb")


class Signal(Protocol):
    """What a job's caller waits for: an ``anyio.Event``."""

    def set(self) -> object:
        """Wake whoever waits."""
        ...

    async def wait(self) -> object:
        """Wait until it is set."""
        ...


class Span(Protocol):
    """What traces a job; see `Tracing`."""

    def end(self, outcome: Outcome, queue_ns: int | None) -> None:
        """Note how the job ended, and how long it waited if it ran."""
        ...

    def share(
        self,
        others: Sequence[Any],
        kind: str,
        cause: str,
        jobs: int,
        began_ns: int,
        ended_ns: int,
    ) -> None:
        """Note that this job and others were in one kernel call."""
        ...


class Observer(Protocol):
    """What hears of jobs that have ended, on the event loop; one that raises hears no more."""

    def __call__(
        self,
        tally: Tally,
        jobs: int,
        now_ns: int,
        latency_ns: int,
        queue_ns: int | None,
        outcome: Outcome | None,
    ) -> None:
        """Take in that so many jobs ended alike; `outcome` is that of a job taken one by one."""
        ...


class RowsInFlight(Protocol):
    """Jobs in columns, as the ledger sees them; see `Rows`."""

    pending: int

    def forget_caller(self) -> None:
        """Wake nobody any more."""
        ...

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
    begun_ns
        When it began to run, None while it hasn't.
    span
        What traces it, None where nobody asked for that.
    orphaned
        Whether its ticket is gone, so that nobody will see it fail.
    takes_turns
        Whether it may not run beside others of its sort; see `TurnEntry`.
    """

    __slots__ = (
        "arrived_ns",
        "begun_ns",
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
        "span",
        "start_by_ns",
        "strategy",
        "wait_ns",
        "work",
    )

    takes_turns = False

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
        self.begun_ns: int | None = None
        self.span: Span | None = None
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

    def expire(self) -> None:
        """Let the job be dropped, since it has waited until it was too late.

        It was let in, so it might be in time another time; when, the next try will tell.
        """
        self.reroute(Strategy.DROP, "expired")
        self.retry_after_s = 0.0


class TurnEntry(Entry):
    """A call that launches Numba's threads where two launches at once end the process."""

    __slots__ = ()

    takes_turns = True


class Ledger:
    """Every job is entered once and settled once; the counts follow from that.

    ``submitted == in_flight + completed + dropped + failed + cancelled`` at any time. Used from
    the router's event loop only, but for `begin`. Lists are indexed by the `code` of what they are
    of.

    Attributes
    ----------
    counts
        Of the jobs that have ended, and of batches.
    on_batch
        Called with the kind and the size of each batch.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        self.clock = clock
        self.beginning = threading.RLock()
        self.submitted = 0
        self._in_flight: set[Entry] = set()
        self._rows: set[RowsInFlight] = set()
        self._rows_in_flight = 0
        self.counts = Counts()
        self._tallies = self.counts.tallies
        self._observers: tuple[Observer, ...] = ()
        self.within_budget = 0
        self.decided = [0] * len(Strategy)
        self.on_idle: Callable[[], object] | None = None
        self.on_batch: Callable[[str, int], object] | None = None

    @property
    def by_status(self) -> list[int]:
        """How many jobs ended in each way."""
        totals = [0] * len(Status)
        for tally in self._folded():
            totals[tally.status.code] += tally.jobs
        return totals

    def _folded(self) -> list[Tally]:
        self.counts.fold()
        return list(self._tallies.values())

    @property
    def routed(self) -> list[int]:
        """How many jobs ended on each strategy."""
        totals = [0] * len(Strategy)
        for tally in self._folded():
            totals[tally.strategy.code] += tally.jobs
        return totals

    @property
    def dropped_by_reason(self) -> dict[str, int]:
        """How many jobs were dropped, for each reason."""
        totals: Counter[str] = Counter()
        for tally in self._folded():
            if tally.status is Status.DROPPED:
                totals[tally.reason] += tally.jobs
        return dict(totals)

    @property
    def in_flight(self) -> int:
        """How many jobs were entered and not settled yet."""
        return len(self._in_flight) + self._rows_in_flight

    def tell(self, observer: Observer) -> None:
        """Tell an observer of the jobs that end from now on. Thread-safe."""
        with self.beginning:
            self._observers = (*self._observers, observer)

    def tell_no_more(self, observer: Observer) -> None:
        """Leave an observer alone again. Thread-safe."""
        with self.beginning:
            self._observers = tuple(each for each in self._observers if each != observer)

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
        strategy, reason = decision.strategy, decision.reason
        self.decided[strategy.code] += 1
        now_ns = self.clock()
        latency_ns = now_ns - arrived_ns
        outcome = make_outcome(
            job.id,
            job.kind,
            Status.DROPPED,
            strategy,
            strategy,
            reason,
            latency_ns / 1e6,
            job.latency_budget_ms,
            None,
            None,
            retry_after_s,
        )
        tally = self._count(job.kind, strategy, Status.DROPPED, reason, latency_ns, None)
        self._say(tally, 1, now_ns, latency_ns, None, outcome)
        return outcome

    def begin(self, entries: Iterable[Entry]) -> list[Entry]:
        """Mark the jobs that a thread begins with now, and return them: not those that ended.

        Thread-safe.
        """
        now_ns = self.clock()
        with self.beginning:
            begun = [entry for entry in entries if entry.outcome is None]
            for entry in begun:
                entry.begun_ns = now_ns
        return begun

    def settle(
        self,
        entry: Entry,
        status: Status,
        *,
        value: Any = None,
        error: BaseException | None = None,
        reason: str | None = None,
        now_ns: int | None = None,
    ) -> bool:
        """End a job: record its outcome, count it, wake its caller.

        `now_ns` is for who has just read the clock.

        The first call for an entry wins; a later one does nothing and returns False, such as the
        result of a kernel whose caller has been cancelled meanwhile.
        """
        if entry.outcome is not None:
            return False
        queue = entry.queue  # read once: a worker thread may be taking the job out
        if queue is not None:
            queue.discard(entry)
        job, strategy = entry.job, entry.strategy
        if now_ns is None:
            now_ns = self.clock()
        latency_ns = now_ns - entry.arrived_ns
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
        begun_ns = entry.begun_ns
        queue_ns = None if begun_ns is None else begun_ns - entry.arrived_ns
        tally = self._count(job.kind, strategy, status, reason, latency_ns, queue_ns)
        if status is Status.COMPLETED:
            self.within_budget += outcome.met_budget
        if entry.done is not None:
            entry.done.set()
        self._check_idle()
        # From here on nobody waits for anything: what observes may raise what it likes.
        if self._observers:
            self._say(tally, 1, now_ns, latency_ns, queue_ns, outcome)
        if entry.span is not None:
            entry.span.end(outcome, queue_ns)
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
        kind: str,
        strategy: Strategy,
        status: Status,
        reason: str,
        jobs: int,
        latency_ns: int,
        within_budget: int,
        queues: Iterable[tuple[int, int]],
    ) -> list[tuple[Tally, int, int | None]]:
        """Count jobs in columns that ended alike, and at once.

        `queues` has how long some of them waited until they began to run, and how many; the others
        never did. Returns what `say_of_rows` tells observers.
        """
        self._rows_in_flight -= jobs
        if not rows.pending:
            self._rows.discard(rows)
        self.within_budget += within_budget
        tally = self.counts.tally(kind, strategy, status, reason)
        waited = list(queues)
        never_began = jobs - sum(some for _, some in waited)
        counted = [
            (tally, some, queue_ns) for queue_ns, some in [*waited, (None, never_began)] if some
        ]
        for _, some, queue_ns in counted:
            self.counts.add(tally, some, latency_ns, queue_ns)
        self._check_idle()
        return counted

    def say_of_rows(
        self, counted: Iterable[tuple[Tally, int, int | None]], now_ns: int, latency_ns: int
    ) -> None:
        """Tell observers of jobs in columns that were counted."""
        for tally, jobs, queue_ns in counted:
            self._say(tally, jobs, now_ns, latency_ns, queue_ns, None)

    def _say(
        self,
        tally: Tally,
        jobs: int,
        now_ns: int,
        latency_ns: int,
        queue_ns: int | None,
        outcome: Outcome | None,
    ) -> None:
        """Tell observers of jobs that have ended alike; one that raises isn't told any more."""
        for observe in self._observers:
            try:
                observe(tally, jobs, now_ns, latency_ns, queue_ns, outcome)
            except (KeyboardInterrupt, SystemExit):  # for the program, not for the router
                raise
            except BaseException as error:
                self.tell_no_more(observe)
                logger.error("%r raised; it hears of no more jobs", observe, exc_info=error)

    def _count(
        self,
        kind: str,
        strategy: Strategy,
        status: Status,
        reason: str,
        latency_ns: int,
        queue_ns: int | None,
    ) -> Tally:
        """Count a job that has ended."""
        tally = self._tallies.get((kind, strategy.code, status.code, reason))
        if tally is None:
            tally = self.counts.tally(kind, strategy, status, reason)
        tally.noted_latencies_ns.append(latency_ns)
        if queue_ns is not None:
            tally.noted_queues_ns.append(queue_ns)
        return tally

    def count_batch(self, kind: str, cause: str, jobs: int) -> None:
        """Count a kernel call made for a batch."""
        self.counts.release(kind, cause).record(jobs)
        if self.on_batch is not None:
            self.on_batch(kind, jobs)

    def cancel(self, entry: Entry) -> None:
        """End a job that its caller won't wait for, if it was entered."""
        if entry in self._in_flight:
            self.settle(entry, Status.CANCELLED)

    def forget_callers(self) -> None:
        """Wake nobody any more: the event loop of all who wait is closed."""
        for entry in self._in_flight:
            entry.done = None
        for rows in self._rows:
            rows.forget_caller()

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
                if begun or entry.begun_ns is None:
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
