"""The books of jobs in columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helixnb import Status, Strategy
from helixnb._core.counts import WINDOW, LatencyWindow
from helixnb._core.lifecycle import Ledger
from helixnb._core.rows import Rows


class Books:
    """A ledger with a clock that is set by hand, and rows in it."""

    def __init__(self, jobs: int, budgets: Any = np.nan) -> None:
        self.now_ns = 0
        self.settled = 0
        self.ledger = Ledger(lambda: self.now_ns)
        self.rows = Rows(
            self.ledger,
            0,
            self._count,
            kind="HashMix",
            job_id=np.arange(jobs),
            latency_budget_ms=np.full(jobs, budgets),
            decided=np.full(jobs, Strategy.BATCH.code, np.uint8),
            reason=np.zeros(jobs, np.int32),
            reasons=["scales"],
            values=np.zeros(jobs),
        )
        self.rows.enter()

    def _count(self) -> None:
        self.settled += 1

    @property
    def ended(self) -> list[int]:
        """How many ended in each way, in the order of `Status`."""
        return self.ledger.by_status


def test_the_first_settlement_wins() -> None:
    """A row that was cancelled stays so when its kernel ends; each is counted once."""
    books = Books(4)
    books.rows.settle(np.array([1, 2]), Status.CANCELLED)
    books.now_ns = 5_000_000
    books.rows.complete(np.array([0, 1, 2]), np.array([10.0, 11.0, 12.0]))
    assert books.ended == [1, 0, 0, 2]
    assert books.rows.values.tolist() == [10.0, 0.0, 0.0, 0.0]
    assert (books.ledger.in_flight, books.settled) == (1, 0)
    books.rows.fail(np.arange(4), ZeroDivisionError())
    assert books.ended == [1, 0, 1, 2]
    assert list(books.rows.errors) == [3]
    assert (books.ledger.in_flight, books.settled) == (0, 1)
    assert books.ledger.counts.windows[Strategy.BATCH.code].kept_ns().tolist() == [5_000_000]


def test_a_budget_is_met_or_missed_row_by_row() -> None:
    """No budget is always met."""
    books = Books(3, [1.0, np.nan, 3.0])
    books.now_ns = 2_000_000
    books.rows.complete(np.arange(3), np.zeros(3))
    assert books.ledger.within_budget == 2


def test_dropped_rows_are_counted_by_their_reason() -> None:
    """Each by the latest reason that was noted for it."""
    books = Books(5)
    books.rows.reroute(np.array([0, 3]), Strategy.DROP, "queue_full")
    books.rows.settle(np.array([0, 3, 4]), Status.DROPPED)
    assert books.ledger.dropped_by_reason == {"queue_full": 2, "scales": 1}
    assert books.ledger.routed[Strategy.DROP.code] == 2


@pytest.mark.parametrize("error", [None, ZeroDivisionError("x")])
def test_evicting_leaves_what_a_thread_has_begun_with(error: Exception | None) -> None:
    """Rows that were put back, to run alone, can be evicted again."""
    books = Books(4)
    assert books.rows.begin(np.array([0, 1, 2])).tolist() == [0, 1, 2]
    books.rows.put_back(np.array([1]))
    status = Status.DROPPED if error is None else Status.FAILED
    books.ledger.evict(status, reason="router_closed", error=error)
    assert np.flatnonzero(books.rows.status == status.code).tolist() == [1, 3]
    assert books.rows.begin(np.arange(4)).tolist() == [0, 2]
    books.rows.settle(np.arange(4), Status.COMPLETED)
    assert books.ledger.in_flight == 0


@pytest.mark.parametrize("times", [1, 3, WINDOW - 1, WINDOW, 3 * WINDOW + 5])
def test_a_latency_may_be_that_of_many(times: int) -> None:
    """As if it were noted so many times."""
    one, many = LatencyWindow(), LatencyWindow()
    for window in (one, many):
        window.record(7)
    many.record(9, times)
    for _ in range(times):
        one.record(9)
    assert sorted(one.kept_ns()) == sorted(many.kept_ns())
    assert (one.count, one.sum_ns) == (many.count, many.sum_ns)
    one.record(11)
    many.record(11)
    assert sorted(one.kept_ns()) == sorted(many.kept_ns())
