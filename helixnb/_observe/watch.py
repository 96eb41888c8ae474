"""What became of the latest jobs, for whoever watches."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from helixnb._core.counts import Tally
from helixnb._core.lifecycle import Ledger
from helixnb._records import Outcome, Status, Strategy


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job that has ended, or several jobs of one `submit_many` that ended alike.

    Attributes
    ----------
    number
        Counts the records of one watch, from 0.
    at_ns
        When, by the router's clock, in nanoseconds.
    job_id
        The job's; None for several.
    kind, decided, strategy, status, reason
        As of its `Outcome`; `decided` is None for several.
    jobs
        How many.
    latency_ms
        From submit to outcome, in milliseconds.
    queue_ms
        From submit to when it began to run, None if it never did.
    latency_budget_ms
        The job's budget; None for no budget, and for several.
    """

    number: int
    at_ns: int
    job_id: int | None
    kind: str
    decided: Strategy | None
    strategy: Strategy
    status: Status
    reason: str
    jobs: int
    latency_ms: float
    queue_ms: float | None
    latency_budget_ms: float | None


class Watch:
    """Keeps the latest records of jobs, in a context; see `Router.watch`.

    Attributes
    ----------
    seen
        How many records there were; those that aren't kept any more included.
    """

    def __init__(self, ledger: Ledger, capacity: int) -> None:
        self._ledger = ledger
        self._latest: deque[tuple[Any, ...]] = deque(maxlen=capacity)
        self._watches = False
        self.seen = 0

    def __enter__(self) -> Self:
        if self._watches:
            raise RuntimeError("this watch was entered already")
        self._watches = True
        self._ledger.tell(self._note)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._watches = False
        self._ledger.tell_no_more(self._note)

    def _note(
        self,
        tally: Tally,
        jobs: int,
        now_ns: int,
        latency_ns: int,
        queue_ns: int | None,
        outcome: Outcome | None,
    ) -> None:
        number = self.seen
        self.seen = number + 1
        # A record is made of it if somebody asks. An outcome isn't kept: its value may be large.
        if outcome is None:
            known: tuple[Any, ...] = (tally.kind, None, tally.reason, None, None)
        else:  # whose kind and reason are counted as others if there are too many
            known = (
                outcome.kind,
                outcome.decided,
                outcome.reason,
                outcome.job_id,
                outcome.latency_budget_ms,
            )
        self._latest.append((number, now_ns, known, tally, jobs, latency_ns, queue_ns))

    def latest(self, since: int = 0) -> list[JobRecord]:
        """Return what is kept, from record number `since` on, oldest first.

        Where the first one's number is higher, those between were lost.
        """
        return [_record_of(*told) for told in self._latest.copy() if told[0] >= since]


def _record_of(
    number: int,
    at_ns: int,
    known: tuple[Any, ...],
    tally: Tally,
    jobs: int,
    latency_ns: int,
    queue_ns: int | None,
) -> JobRecord:
    kind, decided, reason, job_id, budget_ms = known
    return JobRecord(
        number,
        at_ns,
        job_id,
        kind,
        decided,
        tally.strategy,
        tally.status,
        reason,
        jobs,
        latency_ns / 1e6,
        None if queue_ns is None else queue_ns / 1e6,
        budget_ms,
    )
