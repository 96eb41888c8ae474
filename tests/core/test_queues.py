"""Queues: order, bounds, removal, and when a batch is due."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import job

from helixnb._core.lifecycle import Entry
from helixnb._core.queues import (
    CONSIDERED,
    INTERVALS,
    LONG_NS,
    TRUST,
    Backlog,
    JobQueue,
    Standing,
    batch_release_in_ns,
)


def entry(number: int = 0, predicted_ns: float = math.inf) -> Entry:
    return Entry(job(number), number, call=lambda: None, predicted_ns=predicted_ns)


def held(number: int, deadline_ns: float, predicted_ns: float = 10.0) -> Entry:
    """Return a job that came at `number`, and is held to a deadline."""
    each = entry(number, predicted_ns)
    each.deadline_ns = deadline_ns
    each.start_by_ns = deadline_ns - predicted_ns
    return each


def filled(*entries: Entry, capacity: float = 10_000, target_ns: float = math.inf) -> JobQueue:
    """Return a queue with some jobs."""
    queue = JobQueue(Backlog(capacity, target_ns))
    for each in entries:
        queue.push(each)
    return queue


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


# -- Deadlines ------------------------------------------------------------------------------------


def test_jobs_past_their_deadlines_leave_their_queues() -> None:
    """Of all queues that share the backlog, in the order of the deadlines, and not before."""
    backlog = Backlog(10)
    one, other = JobQueue(backlog), JobQueue(backlog)
    for queue, number, deadline_ns in ((one, 0, 30), (other, 1, 20), (one, 2, 40), (other, 3, 50)):
        queue.push(held(number, deadline_ns))
    other.push(entry(4))  # waits for as long as it takes
    assert backlog.deadline_ns == 20
    backlog.expire(20)
    assert not backlog.late
    backlog.expire(41)
    assert ids(list(backlog.late)) == [1, 0, 2]
    assert all(each.queue is None for each in backlog.late)
    assert (len(one), len(other), backlog.waiting) == (0, 2, 2)
    assert backlog.deadline_ns == 50
    backlog.expire(math.inf)
    assert backlog.waiting == 1
    assert backlog.deadline_ns == math.inf


def test_a_job_that_has_left_does_not_expire() -> None:
    """Taken or discarded, it is no business of the watch any more."""
    queue = filled(held(0, 20), held(1, 20), held(2, 30))
    backlog = queue._backlog
    queue.take(1)
    queue.discard(next(iter(queue._entries)))
    assert backlog.deadline_ns == 30
    backlog.expire(25)
    assert not backlog.late
    assert len(queue) == 1


def test_deadlines_of_jobs_that_have_left_are_forgotten() -> None:
    """The watch doesn't grow with what has passed, however long the budgets are."""
    queue = filled(held(0, 1e9))
    for number in range(1, 1_000):
        queue.push(held(number, 1e9 + number))
        queue.take(1)
        assert len(queue._backlog._deadlines) <= 100
    for number in range(1_000, 1_500):
        queue.push(held(number, 1e9 + number))
    assert len(queue._backlog._deadlines) >= 501
    assert queue._backlog.deadline_ns == 1e9 + 999


def test_too_late_to_begin_with() -> None:
    """A job that couldn't end in time any more is passed over, though its budget isn't over."""
    queue = filled(held(0, 100, 30), held(1, 100, 29), held(2, 100, 1), entry(3, 5))
    assert ids(queue.take(2, now_ns=71)) == [1, 2]
    assert ids(list(queue._backlog.late)) == [0]
    assert ids(queue.take(9, now_ns=math.inf)) == [3]
    assert (queue._backlog.waiting, queue.work_ns) == (0, 0)


def test_nothing_is_late_by_no_clock() -> None:
    """Who takes without saying when takes everything."""
    assert ids(filled(held(0, -5), held(1, 5)).take(9)) == [0, 1]


def test_late_jobs_do_not_fill_a_chunk() -> None:
    """Only what is taken counts, by number and by time."""
    queue = filled(*(held(number, 10) for number in range(5)), held(5, 99), held(6, 99))
    assert ids(queue.take(2, 20, now_ns=50)) == [5, 6]
    assert len(queue._backlog.late) == 5


# -- A standing queue -----------------------------------------------------------------------------


def test_a_queue_stands_when_all_wait_too_long_for_long() -> None:
    """CoDel's test: the least excess over twenty targets is above the target."""
    standing = Standing(5.0)
    standing.note(5.0, 1.0, 0)
    standing.note(9.0, 1.0, 5 * INTERVALS - 1)
    assert not standing.now
    standing.note(5.0, 1.0, 5 * INTERVALS)
    assert standing.now
    standing.note(4.9, 1.0, 5 * INTERVALS + 1)
    assert not standing.now
    standing.note(99.0, 1.0, 5 * INTERVALS + 2)  # the interval starts anew
    assert not standing.now
    standing.note(99.0, 1.0, 10 * INTERVALS + 2)
    assert standing.now


def test_one_job_in_time_ends_it() -> None:
    """A queue that empties now and then is only a burst."""
    standing = Standing(5.0)
    for now_ns in range(10_000):
        standing.note(0.0 if now_ns % 90 == 0 else 50.0, 1.0, now_ns)
        assert not standing.now


def test_the_target_is_no_less_than_a_job_takes() -> None:
    """Long jobs may wait for longer; one of unknown length counts for ten milliseconds."""
    for service_ns in (1e6, math.inf):
        target_ns = min(service_ns, LONG_NS)
        standing = Standing(5.0)
        for _ in range(500):
            standing.note(0.0, service_ns, 0)
        standing.note(0.9 * target_ns, service_ns, 0)
        standing.note(0.9 * target_ns, service_ns, 1e12)
        assert not standing.now
        standing.note(1.1 * target_ns, service_ns, 1e12)
        standing.note(1.1 * target_ns, service_ns, 1e12 + 19 * target_ns)
        assert not standing.now
        standing.note(1.1 * target_ns, service_ns, 1e12 + 21 * target_ns)
        assert standing.now


def stood(*entries: Entry) -> JobQueue:
    """Return a queue that has stood for long by 10,000: all wait far longer than predicted."""
    queue = filled(*entries, target_ns=5.0)
    queue._backlog.standing.note(math.inf, 0.0, 0)
    queue._backlog.standing.note(math.inf, 0.0, 9_000)
    assert queue._backlog.standing.now
    return queue


def test_a_standing_queue_is_served_from_the_back() -> None:
    """Whoever came last may still be in time; when the excess is gone, first come first served."""
    queue = stood(*(entry(number, 1.0) for number in range(5)))
    assert ids(queue.take(2, now_ns=10_000)) == [4, 3]
    assert ids(queue.take(1, now_ns=2.0)) == [0]
    assert ids(queue.take(1, now_ns=10_000)) == [1]


def test_batches_of_a_standing_queue_are_of_the_newest() -> None:
    """They are chosen from the back likewise."""
    queue = stood(*(entry(number, 1.0) for number in range(5)))
    assert ids(queue.take_batch(2, 10_000, lambda jobs, alone_ns: alone_ns)) == [4, 3]


def test_a_wait_that_was_predicted_is_no_excess() -> None:
    """Jobs that wait for as long as they were told to, or twice that, don't let it stand."""
    queue = filled(*(entry(0, 1.0) for _ in range(3)), target_ns=5.0)
    for each in queue._entries:
        each.wait_ns = 5_000.0
    for now_ns in range(0, int(TRUST * 5_000) + 5, 5):
        queue._stands(now_ns)
    assert not queue._backlog.standing.now
    for now_ns in range(int(TRUST * 5_000) + 5, int(TRUST * 5_000) + 205, 5):
        queue._stands(now_ns)
    assert queue._backlog.standing.now


def test_a_router_that_holds_to_no_budgets_never_serves_the_newest_first() -> None:
    """Without a target no excess counts."""
    queue = filled(*(entry(number, 1.0) for number in range(3)))
    for now_ns in range(0, 10**9, 10**7):
        queue._stands(now_ns)
    assert ids(queue.take(3, now_ns=1e9)) == [0, 1, 2]


# -- What goes into a batch -----------------------------------------------------------------------


def half_as_long(jobs: int, alone_ns: float) -> float:
    return alone_ns / 2


def test_a_batch_takes_all_that_will_be_in_time() -> None:
    """From the front, as many as it may have."""
    queue = filled(*(held(number, 1_000) for number in range(9)))
    assert ids(queue.take_batch(6, 0, half_as_long)) == [0, 1, 2, 3, 4, 5]
    assert ids(queue.take_batch(6, 0, half_as_long)) == [6, 7, 8]
    assert queue.take_batch(6, 0, half_as_long) == []


def test_a_batch_leaves_those_that_it_would_make_late() -> None:
    """If more is gained by it than lost; they wait on, and aren't dropped by that."""
    # Ten jobs take 50 together. Two can't wait for that, and a batch of those would do 2 in 10.
    tight = [held(number, 20) for number in range(2)]
    loose = [held(number, 1_000) for number in range(2, 10)]
    queue = filled(*tight, *loose)
    assert ids(queue.take_batch(10, 0, lambda jobs, alone_ns: 5.0 + jobs)) == list(range(10))
    queue = filled(*tight, *loose)
    assert ids(queue.take_batch(10, 0, lambda jobs, alone_ns: 19.0 + jobs)) == list(range(2, 10))
    assert ids(list(queue._entries)) == [0, 1]
    assert not queue._backlog.late


def test_a_batch_is_small_where_a_large_one_gains_nothing() -> None:
    """It ends in time for those in it, and goes on with the tight ones first come first served."""
    jobs = [held(number, 20) for number in range(4)] + [held(number, 1_000) for number in (4, 5)]
    queue = filled(*jobs)
    taken = queue.take_batch(6, 0, lambda jobs, alone_ns: 8.0 * jobs if jobs < 3 else 100.0)
    assert taken
    assert len(taken) <= 2


def test_a_batch_does_as_many_in_time_as_it_can_for_its_time() -> None:
    """A large one that takes far longer than a small one isn't worth it, though all had time."""
    queue = filled(held(0, 20), *(held(number, 1_000) for number in range(1, 6)))
    taken = queue.take_batch(6, 0, lambda jobs, alone_ns: 2.0 + jobs if jobs < 3 else 100.0)
    assert len(taken) == 2


def test_a_job_that_no_batch_can_have_in_time_goes_alone_at_last() -> None:
    """One that may still be begun is taken, even if the call would be late for it."""
    queue = filled(held(0, 15))
    assert ids(queue.take_batch(8, 0, lambda jobs, alone_ns: 99.0)) == [0]


def test_what_is_too_late_leaves_before_a_batch_is_made() -> None:
    """And doesn't take a place in it."""
    queue = filled(*(held(number, 10) for number in range(3)), held(3, 1_000), held(4, 1_000))
    assert ids(queue.take_batch(2, 50, half_as_long)) == [3, 4]
    assert ids(list(queue._backlog.late)) == [0, 1, 2]
    assert filled(held(0, 5)).take_batch(2, 50, half_as_long) == []


def test_a_batch_looks_at_some_of_many() -> None:
    """Those who wait further back are seen where the first have no time for a large one."""
    most = 4
    tight = [held(number, 12) for number in range((CONSIDERED - 1) * most)]
    loose = [held(100 + number, 1_000) for number in range(2 * most)]
    queue = filled(*tight, *loose)
    taken = ids(queue.take_batch(most, 0, lambda jobs, alone_ns: 20.0))
    assert taken == [100, 101, 102, 103]


@given(
    st.lists(st.floats(0, 100), max_size=40),
    st.integers(1, 12),
    st.floats(0, 30),
    st.floats(0.05, 1),
)
def test_a_batch_makes_none_of_its_jobs_late_by_its_own_reckoning(
    deadlines_ns: list[float], most: int, fixed_ns: float, share: float
) -> None:
    """Unless it is a job alone; each job is taken, still there, or late, once."""

    def together_ns(jobs: int, alone_ns: float) -> float:
        return fixed_ns + (alone_ns if jobs == 1 else alone_ns * share)

    mean_ns = 10.0  # all alike, as is assumed where some are left out
    entries = [held(n, 10 + each, mean_ns) for n, each in enumerate(deadlines_ns)]
    queue = filled(*entries)
    now_ns = 20.0
    taken = queue.take_batch(most, now_ns, together_ns)
    ends_ns = now_ns + together_ns(len(taken), mean_ns * len(taken))
    if len(taken) > 1:
        assert all(each.deadline_ns >= ends_ns - 1e-6 for each in taken)
    assert len(taken) <= most
    late = list(queue._backlog.late)
    assert all(each.start_by_ns < now_ns for each in late)
    assert sorted(ids([*taken, *queue._entries, *late])) == list(range(len(entries)))
    assert queue._backlog.waiting == len(queue)
    in_reach = [each for each in entries[: CONSIDERED * most] if each.start_by_ns >= now_ns]
    assert bool(taken) == bool(in_reach)
