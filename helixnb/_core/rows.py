"""The life of jobs in columns: one block of one call, with an element a job in each array."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from helixnb._core.counts import Tally
from helixnb._core.lifecycle import Ledger
from helixnb._records import Array, Status, Strategy

STRATEGIES = tuple(Strategy)

PENDING = 255
"""The status code of a job that hasn't ended."""

WAITING = -1
"""What stands for how long a job waited until it began to run, while it hasn't."""


class Rows:
    """Jobs of one kind on their way to their outcomes.

    Used from the router's event loop only, but for `begin`.

    Attributes
    ----------
    kind, job_id, latency_budget_ms
        The jobs' own; no budget is NaN.
    decided, strategy, reason
        What was chosen for each job, and how and why it runs: codes, `reason` into `reasons`.
    reasons
        What the reason codes mean; shared by all blocks of a call.
    status
        Codes of `Status`, or `PENDING`.
    latency_ns
        From the call to the outcome.
    deadline_ns
        When it is too late for each job, infinite for never; None where no budget is held to.
    retry_after_s
        When a new try may succeed for each job that was dropped, NaN where nothing is known; None
        for all of them.
    values
        Of those that completed.
    probes
        Positions of those that run although they seem infeasible, so that something is learnt.
    errors
        What the kernel raised for those that failed.
    pending
        How many haven't ended.
    """

    def __init__(
        self,
        ledger: Ledger,
        arrived_ns: int,
        on_settled: Callable[[], object],
        *,
        kind: str,
        job_id: Array,
        latency_budget_ms: Array,
        decided: Array,
        reason: Array,
        reasons: list[str],
        values: Array,
        retry_after_s: Array | None = None,
        hold: bool = False,
    ) -> None:
        jobs = len(job_id)
        self.kind = kind
        self.job_id = job_id
        self.latency_budget_ms = latency_budget_ms
        self.decided = decided
        self.strategy = decided.copy()
        self.reason = reason
        self.reasons = reasons
        self.values = values
        self.status = np.full(jobs, PENDING, np.uint8)
        self.latency_ns = np.zeros(jobs, np.int64)
        self.probes = np.empty(0, np.int64)
        self.errors: dict[int, BaseException] = {}
        self.retry_after_s = retry_after_s
        self.deadline_ns: Array | None = None
        if hold:
            budgets_ns = np.where(np.isnan(latency_budget_ms), np.inf, latency_budget_ms * 1e6)
            self.deadline_ns = arrived_ns + budgets_ns
        self.pending = jobs
        self._queue_ns = np.full(jobs, WAITING, np.int64)
        self._arrived_ns = arrived_ns
        self._on_settled = on_settled
        self._ledger = ledger

    @property
    def clock(self) -> Callable[[], int]:
        """The ledger's clock."""
        return self._ledger.clock

    def enter(self) -> None:
        """Count the jobs in."""
        decided = np.bincount(self.decided, minlength=len(Strategy)).tolist()
        self._ledger.enter_rows(self, decided)

    def reroute(self, rows: Array, strategy: Strategy, reason: str) -> None:
        """Let some jobs run otherwise than decided."""
        self.strategy[rows] = strategy.code
        self.reason[rows] = self._code(reason)
        if self.retry_after_s is not None:
            self.retry_after_s[rows] = np.nan

    def _code(self, reason: str) -> int:
        if reason not in self.reasons:
            self.reasons.append(reason)
        return self.reasons.index(reason)

    def begin(self, rows: Array) -> Array:
        """Mark those of some jobs that a thread begins with, and return them.

        Those that ended aren't among them, nor those for which it is too late; `expire` settles
        these. Thread-safe.
        """
        with self._ledger.beginning:
            now_ns = self._ledger.clock()
            begun: Array = rows[self.status[rows] == PENDING]
            if self.deadline_ns is not None:
                begun = begun[self.deadline_ns[begun] >= now_ns]
            self._queue_ns[begun] = now_ns - self._arrived_ns
        return begun

    def expire(self, rows: Array) -> None:
        """Drop those of some jobs that wait and for which it is too late."""
        if self.deadline_ns is None:
            return
        with self._ledger.beginning:
            late = rows[(self.status[rows] == PENDING) & (self._queue_ns[rows] == WAITING)]
            late = late[self.deadline_ns[late] < self._ledger.clock()]
            self.reroute(late, Strategy.DROP, "expired")
            if len(late):
                if self.retry_after_s is None:
                    self.retry_after_s = np.full(len(self.status), np.nan)
                self.retry_after_s[late] = 0.0  # as `Entry.expire`
        self.settle(late, Status.DROPPED)

    def put_back(self, rows: Array) -> None:
        """Mark jobs as not begun: they will run another time."""
        self._queue_ns[rows] = WAITING

    def waits(self, at: int) -> bool:
        """Tell whether a job hasn't ended."""
        return bool(self.status[at] == PENDING)

    def complete(self, rows: Array, values: Array) -> None:
        """Settle some jobs with their values."""
        waiting = self.status[rows] == PENDING
        self.values[rows[waiting]] = values[waiting]
        self.settle(rows, Status.COMPLETED)

    def fail(self, rows: Array, error: BaseException) -> None:
        """Settle some jobs with what their kernel, or what should have run them, raised."""
        rows = rows[self.status[rows] == PENDING]
        self.errors |= dict.fromkeys(rows.tolist(), error)
        self.settle(rows, Status.FAILED)

    def settle(self, rows: Array, status: Status, reason: str | None = None) -> None:
        """End those of some jobs that haven't ended: record how, and count them."""
        rows = rows[self.status[rows] == PENDING]
        if not len(rows):
            return
        now_ns = self._ledger.clock()
        latency_ns = now_ns - self._arrived_ns
        self.status[rows] = status.code
        self.latency_ns[rows] = latency_ns
        if reason is not None:
            self.reason[rows] = self._code(reason)
        self.pending -= len(rows)
        alike = self.reason[rows] * len(Strategy) + self.strategy[rows]
        counted: list[tuple[Tally, int, int | None]] = []
        for code in np.flatnonzero(np.bincount(alike)).tolist():
            counted += self._count(rows[alike == code], status, latency_ns)
        if not self.pending:
            self._on_settled()
        self._ledger.say_of_rows(counted, now_ns, latency_ns)

    def _count(
        self, rows: Array, status: Status, latency_ns: int
    ) -> list[tuple[Tally, int, int | None]]:
        """Count jobs with one strategy and one reason that ended together."""
        within = 0
        if status is Status.COMPLETED:  # a comparison with NaN is false: no budget is never missed
            within = len(rows) - int((latency_ns / 1e6 > self.latency_budget_ms[rows]).sum())
        begun_ns = self._queue_ns[rows]
        queues_ns, jobs = np.unique(begun_ns[begun_ns != WAITING], return_counts=True)
        first = rows[0]
        return self._ledger.settle_rows(
            self,
            self.kind,
            STRATEGIES[self.strategy[first]],
            status,
            self.reasons[self.reason[first]],
            len(rows),
            latency_ns,
            within,
            list(zip(queues_ns.tolist(), jobs.tolist(), strict=True)),
        )

    def forget_caller(self) -> None:
        """Wake nobody any more: the event loop of who waits is closed."""
        self._on_settled = int

    def evict(
        self, status: Status, reason: str | None, error: BaseException | None, *, begun: bool
    ) -> None:
        """Settle what hasn't begun to run, or all. The ledger's `beginning` is held."""
        rows = np.flatnonzero((self.status == PENDING) & (begun | (self._queue_ns == WAITING)))
        if error is not None:
            self.fail(rows, error)
        else:
            self.settle(rows, status, reason)
