"""The ledger: one entry, one settlement, and counts that follow."""

from __future__ import annotations

import logging

import anyio
import pytest
from support import job

from helixnb import Decision, JobCancelled, JobDropped, Status, Strategy
from helixnb._core.lifecycle import Entry, Ledger
from helixnb._core.queues import Backlog, JobQueue


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_ns = 1_000

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(clock: Clock) -> Ledger:
    return Ledger(clock)


def enter(ledger: Ledger, budget: float | None = None) -> Entry:
    entry = Entry(job(7, latency_budget_ms=budget), 1_000, call=lambda: None)
    entry.done = anyio.Event()
    entry.decide(Decision(Strategy.CPU_POOL, "large"))
    ledger.enter(entry)
    return entry


def test_a_completed_job(ledger: Ledger, clock: Clock) -> None:
    """Its outcome says what ran and how long it took, and its caller wakes."""
    entry = enter(ledger, budget=2)
    clock.now_ns += 1_500_000
    assert ledger.settle(entry, Status.COMPLETED, value=42)
    outcome = entry.outcome
    assert outcome is not None
    assert outcome.value == outcome.value_or(0) == 42
    assert (outcome.job_id, outcome.kind, outcome.latency_ms) == (7, "HashMix", 1.5)
    assert outcome.met_budget
    assert isinstance(entry.done, anyio.Event)
    assert entry.done.is_set()
    assert (ledger.submitted, ledger.in_flight, ledger.within_budget) == (1, 0, 1)
    ledger.counts.fold()
    assert ledger.counts.windows[Strategy.CPU_POOL.code].kept_ns().tolist() == [1_500_000]


def test_the_first_settlement_wins(ledger: Ledger) -> None:
    """A job that was cancelled stays so when its kernel ends."""
    entry = enter(ledger)
    assert ledger.settle(entry, Status.CANCELLED)
    assert not ledger.settle(entry, Status.COMPLETED, value=1)
    assert ledger.by_status[Status.COMPLETED.code] == 0
    assert ledger.by_status[Status.CANCELLED.code] == 1
    with pytest.raises(JobCancelled):
        _ = entry.outcome.value  # type: ignore[union-attr]  # settled above


def test_a_late_answer_completes_but_misses_its_budget(ledger: Ledger, clock: Clock) -> None:
    """The budget is judged by the latency; the answer is there all the same."""
    entry = enter(ledger, budget=1)
    clock.now_ns += 1_000_001
    ledger.settle(entry, Status.COMPLETED, value=1)
    assert entry.outcome is not None
    assert not entry.outcome.met_budget
    assert ledger.within_budget == 0


def test_a_dropped_job_cant_pass_for_an_answer(ledger: Ledger) -> None:
    """Its value raises, with the reason and the hint; the explicit way out gives a default."""
    entry = Entry(job(), 0, call=lambda: None)
    entry.decide(Decision(Strategy.DROP, "queue_full", 0.25))
    ledger.enter(entry)
    ledger.settle(entry, Status.DROPPED)
    assert entry.outcome is not None
    assert entry.outcome.value_or(None) is None
    assert not entry.outcome.met_budget
    with pytest.raises(JobDropped, match=r"job dropped: queue_full; retry after 0.25 s") as caught:
        _ = entry.outcome.value
    assert (caught.value.reason, caught.value.retry_after_s) == ("queue_full", 0.25)
    assert ledger.dropped_by_reason == {"queue_full": 1}


def test_a_failed_job_raises_what_its_kernel_raised(ledger: Ledger) -> None:
    """The kernel's own error is the answer."""
    entry = enter(ledger)
    error = ZeroDivisionError("x")
    ledger.settle(entry, Status.FAILED, error=error)
    assert entry.outcome is not None
    with pytest.raises(ZeroDivisionError) as caught:
        _ = entry.outcome.value
    assert caught.value is error


def test_settling_takes_a_waiting_job_out_of_its_queue(ledger: Ledger) -> None:
    """What is settled never waits, so it never runs."""
    backlog = Backlog(5)
    queue = JobQueue(backlog)
    entry = enter(ledger)
    queue.push(entry)
    ledger.settle(entry, Status.CANCELLED)
    assert len(queue) == backlog.waiting == 0


def test_idle_is_announced(ledger: Ledger) -> None:
    """The last job to end says so, not the ones before."""
    idle: list[int] = []
    ledger.on_idle = lambda: idle.append(1)
    first, second = enter(ledger), enter(ledger)
    ledger.settle(first, Status.COMPLETED)
    assert not idle
    ledger.settle(second, Status.COMPLETED)
    assert idle == [1]


def test_a_failure_that_nobody_waits_for_is_logged(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    """An orphan's error goes to the log, with its traceback."""
    entry = enter(ledger)
    entry.orphaned = True
    with caplog.at_level(logging.ERROR, "helixnb"):
        ledger.settle(entry, Status.FAILED, error=ZeroDivisionError("lost"))
    assert "job 7 of kind HashMix failed, and nobody waits for it" in caplog.text
    assert "ZeroDivisionError: lost" in caplog.text
