"""Queues: order, bounds, removal, and when a batch is due."""

from __future__ import annotations

import math

import pytest
from support import job

from helixnb._core.lifecycle import Entry
from helixnb._core.queues import Backlog, JobQueue, batch_release_in_ns


def entry(number: int = 0, predicted_ns: float = math.inf) -> Entry:
    return Entry(job(number), number, call=lambda: None, predicted_ns=predicted_ns)


def ids(entries: list[Entry]) -> list[int]:
    return [each.job.id for each in entries]


def test_first_in_first_out() -> None:
    """Jobs leave in the order in which they came."""
    queue = JobQueue(Backlog(10))
    for number in range(4):
        queue.push(entry(number))
    assert ids(queue.take(2)) == [0, 1]
    assert queue.oldest_ns == 2
    assert ids(queue.take(9)) == [2, 3]
    assert queue.take(1) == []


def test_a_job_can_leave_from_anywhere() -> None:
    """A discarded job is gone, and its place is free for another."""
    backlog = Backlog(3)
    queue = JobQueue(backlog)
    entries = [entry(number) for number in range(3)]
    for each in entries:
        queue.push(each)
    assert backlog.is_full
    queue.discard(entries[1])
    assert not backlog.is_full
    assert entries[1].queue is None
    assert ids(queue.take(9)) == [0, 2]
    assert backlog.waiting == 0


def test_a_finaliser_may_discard_while_the_queue_is_in_use() -> None:
    """Collecting garbage runs an application's code anywhere, which may cancel a job."""
    backlog = Backlog(3)
    queue = JobQueue(backlog)
    gone, kept = entry(0), entry(1)
    queue.push(gone)
    queue.push(kept)
    with backlog.lock:
        queue.discard(gone)
        queue.discard(gone)
    assert (len(queue), backlog.waiting) == (1, 1)
    assert queue.take(9) == [kept]
    assert (backlog.waiting, queue.work_ns) == (0, 0.0)


def test_queues_share_one_bound() -> None:
    """Jobs of all queues count against the capacity."""
    backlog = Backlog(2)
    JobQueue(backlog).push(entry())
    assert not backlog.is_full
    JobQueue(backlog).push(entry())
    assert backlog.is_full


@pytest.mark.parametrize(
    ("times", "limit_ns", "taken"),
    [
        ([5, 5, 5, 5], 15, 3),
        ([5, 5, 5, 5], 14, 2),
        ([50, 5], 10, 1),
        ([5, math.inf], 10, 1),
        ([math.inf, 5], 10, 1),
        ([0, 0, 0], 0, 3),
    ],
)
def test_a_chunk_is_bounded_by_predicted_time(
    times: list[float], limit_ns: float, taken: int
) -> None:
    """A chunk takes what fits, one job at least, and one of unknown length only alone."""
    queue = JobQueue(Backlog(10))
    for number, time_ns in enumerate(times):
        queue.push(entry(number, time_ns))
    assert len(queue.take(10, limit_ns)) == taken


@pytest.mark.parametrize(
    ("jobs", "now_ns", "release_in_ns"),
    [
        (8, 0, 0),
        (9, 0, 0),
        (7, 0, 2_500_000),
        (1, 1_000_000, 1_500_000),
        (1, 2_500_000, 0),
        (1, 9_999_999_999, 0),
    ],
)
def test_a_batch_is_due_by_size_or_by_time(jobs: int, now_ns: int, release_in_ns: int) -> None:
    """A full batch is due at once, a smaller one when its oldest job has waited."""
    assert batch_release_in_ns(jobs, 0, now_ns, 8, 2.5) == release_in_ns
