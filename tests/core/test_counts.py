"""What is counted, and that everything else that is counted follows from it."""

from __future__ import annotations

import threading
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from helixnb import Status, Strategy
from helixnb._core.counts import (
    BOUNDS_JOBS,
    BOUNDS_NS,
    MOST,
    OTHER,
    Counts,
    Histogram,
    LatencyWindow,
)


def test_a_value_on_a_bound_belongs_below_it() -> None:
    sizes = Histogram((1, 2, 4))
    for value in (0, 1, 2, 3, 4, 5):
        sizes.record(value)
    assert (sizes.buckets, sizes.sum, sizes.count) == ([2, 1, 2, 1], 15, 6)


def test_the_bounds_ascend_over_what_jobs_take() -> None:
    assert list(BOUNDS_NS) == sorted(set(BOUNDS_NS))
    assert (BOUNDS_NS[0], BOUNDS_NS[-1]) == (1_000, 10**10)
    assert BOUNDS_JOBS == (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@given(st.lists(st.tuples(st.integers(0, 10**11), st.integers(1, 9))))
def test_merged_histograms_have_counted_both(values: list[tuple[int, int]]) -> None:
    whole, parts = Histogram(BOUNDS_NS), (Histogram(BOUNDS_NS), Histogram(BOUNDS_NS))
    for i, (value, times) in enumerate(values):
        whole.record(value, times)
        parts[i % 2].record(value, times)
    parts[0].merge(parts[1])
    assert (parts[0].buckets, parts[0].sum) == (whole.buckets, whole.sum)


def test_kinds_and_reasons_beyond_the_bound_share_one_name() -> None:
    counts = Counts()
    for i in range(2 * MOST):
        tally = counts.tally(f"kind {i}", Strategy.INLINE, Status.COMPLETED, "inline_cheap")
        tally.latency_ns.record(1)
        counts.release(f"kind {i}", "full").record(1)
    assert len(counts.tallies) == MOST + 1
    assert len(counts.releases) == MOST + 1
    assert counts.tally("kind 9", Strategy.INLINE, Status.COMPLETED, "inline_cheap").jobs == 1
    other = counts.tally("never seen", Strategy.INLINE, Status.COMPLETED, "inline_cheap")
    assert (other.kind, other.jobs) == (OTHER, MOST)
    for i in range(2 * MOST):
        counts.tally("kind 9", Strategy.DROP, Status.DROPPED, f"reason {i}").latency_ns.record(1)
    assert counts.tally("kind 9", Strategy.DROP, Status.DROPPED, "none of these").reason == OTHER
    assert sum(each.jobs for each in counts.tallies.values()) == 4 * MOST


def test_merged_counts_stay_bounded_and_lose_nothing() -> None:
    one, other = Counts(), Counts()
    for i in range(MOST):
        for counts, name in ((one, "a"), (other, "b")):
            tally = counts.tally(f"{name}{i}", Strategy.BATCH, Status.FAILED, "in_columns")
            tally.latency_ns.record(5_000, 2)
            counts.release(f"{name}{i}", "columns").record(2)
    other.shadow_compared, other.shadow_disagreements, other.inline_overruns = 5, 3, 2
    one.merge(other)
    assert len(one.tallies) == len(one.releases) == MOST + 1
    assert sum(each.jobs for each in one.tallies.values()) == 4 * MOST
    assert sum(each.latency_ns.count for each in one.tallies.values()) == 4 * MOST
    assert sum(each.sum for each in one.releases.values()) == 4 * MOST
    assert (one.shadow_compared, one.shadow_disagreements, one.inline_overruns) == (5, 3, 2)


@given(st.integers(1, 9), st.lists(st.lists(st.integers(0, 99), max_size=20), max_size=9))
def test_a_window_keeps_the_latest(size: int, blocks: list[list[int]]) -> None:
    """However they come; count and sum go on over all."""
    one_by_one, by_blocks = LatencyWindow(size), LatencyWindow(size)
    for block in blocks:
        by_blocks.extend(block)
        for latency in block:
            one_by_one.record(latency)
    everything = [latency for block in blocks for latency in block]
    for window in (one_by_one, by_blocks):
        assert sorted(window.kept_ns()) == sorted(everything[-size:])
        assert (window.count, window.sum_ns) == (len(everything), sum(everything))


def test_a_window_of_alike_latencies() -> None:
    window = LatencyWindow(3)
    window.record(7, 2)
    window.record(8, 2)
    assert sorted(window.kept_ns()) == [7, 8, 8]
    window.record(9, 100)
    assert sorted(window.kept_ns()) == [9, 9, 9]
    assert (window.count, window.sum_ns) == (104, 2 * 7 + 2 * 8 + 900)


@given(st.lists(st.integers(0, 2 * 10**10), max_size=100))
def test_many_values_are_counted_as_each_would_be(values: list[int]) -> None:
    one_by_one, together = Histogram(BOUNDS_NS), Histogram(BOUNDS_NS)
    for value in values:
        one_by_one.record(value)
    together.extend(values)
    assert (together.buckets, together.sum) == (one_by_one.buckets, one_by_one.sum)


def test_what_is_noted_is_folded_in_once() -> None:
    """By whoever comes first, while the router goes on to note."""
    counts = Counts()
    tally = counts.tally("HashMix", Strategy.INLINE, Status.COMPLETED, "inline_cheap")
    noted = 50_000

    def note() -> None:
        for i in range(noted):
            tally.noted_latencies_ns.append(i)
            tally.noted_queues_ns.append(i)

    noting = threading.Thread(target=note)
    noting.start()
    while noting.is_alive():
        folding = [threading.Thread(target=counts.fold) for _ in range(3)]
        for thread in folding:
            thread.start()
        for thread in folding:
            thread.join()
    counts.fold()
    assert tally.jobs == tally.queue_ns.count == noted
    assert tally.latency_ns.sum == noted * (noted - 1) // 2
    window = counts.windows[Strategy.INLINE.code]
    assert (window.count, len(window.kept_ns())) == (noted, 4_096)


def test_a_wait_that_is_noted_after_its_latency_was_folded_in() -> None:
    """A reader may come between the two."""
    counts = Counts()
    tally = counts.tally("HashMix", Strategy.INLINE, Status.COMPLETED, "inline_cheap")
    tally.noted_latencies_ns.append(5)
    counts.fold()
    tally.noted_queues_ns.append(3)
    counts.fold()
    assert (tally.latency_ns.count, tally.queue_ns.count) == (1, 1)


def test_folding_that_a_finaliser_interrupts() -> None:
    """What it has in hand isn't counted twice."""
    counts = Counts()
    tally = counts.tally("HashMix", Strategy.INLINE, Status.COMPLETED, "inline_cheap")

    class Noted(list[int]):
        def __getitem__(self, index: Any) -> Any:
            found = super().__getitem__(index)
            counts.fold()  # as a finaliser that is run here might
            return found

    tally.noted_latencies_ns = Noted([1, 2, 3])
    counts.fold()
    assert tally.jobs == 3
