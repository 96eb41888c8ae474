"""The guard of the event loop: what it promises, by made-up clocks, however jobs behave."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helixnb._core.guard import (
    BARRED_NS,
    CLEAN_RUNS,
    LEAST_NS,
    LONGEST_NS,
    MOST_CLEAN_RUNS,
    STRIKES,
    TIMES,
    Guard,
    suspicion_ns,
)
from helixnb._core.rules import LONGEST_INLINE_NS

US, MS, S = 1_000, 1_000_000, 1_000_000_000
SLACK_NS = MS // 2
"""By how much a CPU time that the guard is told may be too high."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A job that comes: it runs on the event loop if the guard lets it, else in a thread."""

    gap_ns: int
    predicted_ns: float
    cpu_ns: int
    other_ns: int  # of the wall clock, for neighbours
    slack_ns: int
    is_compiled: bool


CPU = st.integers(0, 8 * MS) | st.sampled_from([LEAST_NS, LONGEST_NS, LONGEST_NS + 1, 3 * S])
RUNS = st.lists(
    st.builds(
        Run,
        gap_ns=st.integers(0, 2 * S) | st.just(BARRED_NS),
        predicted_ns=st.floats(0, LONGEST_INLINE_NS) | st.just(math.inf),
        cpu_ns=CPU,
        other_ns=st.just(0) | st.integers(0, S),
        slack_ns=st.integers(0, SLACK_NS),
        is_compiled=st.booleans(),
    ),
    max_size=60,
)


def overrun(guard: Guard, now_ns: float, cpu_ns: float = 3 * S, predicted_ns: float = US) -> bool:
    """Tell a guard of a compiled job that had the CPU all the time."""
    return guard.note_inline(predicted_ns, cpu_ns, cpu_ns, now_ns, is_compiled=True)


def clean(guard: Guard, runs: int, now_ns: float = 0) -> None:
    for _ in range(runs):
        guard.note_elsewhere(US, US, US, now_ns)


@settings(max_examples=300)
@given(RUNS, st.lists(st.integers(0, 2_000), min_size=60, max_size=60))
def test_at_most_one_long_job_in_ten_seconds(runs: list[Run], others: list[int]) -> None:
    """Of a kind, on the event loop, however its jobs, those elsewhere and neighbours behave."""
    guard = Guard()
    now_ns = 0
    ended_ns = []
    for run, runs_elsewhere in zip(runs, others, strict=False):
        now_ns += run.gap_ns
        clean(guard, runs_elsewhere, now_ns)
        wall_ns = run.cpu_ns + run.other_ns
        if guard.allows(now_ns):
            now_ns += wall_ns
            if run.cpu_ns > LONGEST_NS:
                ended_ns.append(now_ns)
            if wall_ns > LEAST_NS:
                told_ns = run.cpu_ns + run.slack_ns
                guard.note_inline(
                    run.predicted_ns, wall_ns, told_ns, now_ns, is_compiled=run.is_compiled
                )
            else:
                guard.strikes = 0
        else:
            guard.note_elsewhere(run.predicted_ns, wall_ns, run.cpu_ns, now_ns)
    assert all(later - earlier >= BARRED_NS for earlier, later in itertools.pairwise(ended_ns))


@given(st.lists(st.tuples(st.integers(0, LEAST_NS - SLACK_NS), st.integers(0, 10 * S))))
def test_neighbours_bar_no_compiled_kind(runs: list[tuple[int, int]]) -> None:
    """Whatever other threads, other processes or a pause take of the wall clock."""
    guard = Guard()
    for at, (cpu_ns, other_ns) in enumerate(runs):
        told_ns = cpu_ns + SLACK_NS
        assert not guard.note_inline(US, cpu_ns + other_ns, told_ns, at, is_compiled=True)
        guard.note_elsewhere(US, cpu_ns + other_ns, cpu_ns, at)
    assert guard.allows(len(runs))
    assert guard.overruns == 0


@pytest.mark.parametrize(
    ("predicted_ns", "bound_ns"),
    [
        (0, LEAST_NS),
        (US, LEAST_NS),
        (LEAST_NS / TIMES, LEAST_NS),
        (300 * US, 3 * MS),
        (MS, LONGEST_NS),
        (math.inf, LONGEST_NS),
    ],
)
def test_what_is_far_longer_than_predicted(predicted_ns: float, bound_ns: float) -> None:
    """Ten times the prediction, but 2 ms at least and 5 ms at most; the bound itself isn't."""
    assert suspicion_ns(predicted_ns) == bound_ns
    guard = Guard()
    assert not overrun(guard, 0, bound_ns, predicted_ns)
    assert guard.allows(0)
    assert overrun(guard, 0, bound_ns + 1, predicted_ns)
    assert not guard.allows(0)


def test_a_kind_comes_back_after_ten_seconds_and_enough_clean_runs() -> None:
    """Neither alone will do; and then it is as if nothing had been."""
    for first in ("time", "runs"):
        guard = Guard()
        overrun(guard, S)
        if first == "time":
            assert not guard.allows(S + 100 * BARRED_NS)
            clean(guard, CLEAN_RUNS - 1)
            assert not guard.allows(S + 100 * BARRED_NS)
            clean(guard, 1)
        else:
            clean(guard, CLEAN_RUNS)
            assert not guard.allows(S + BARRED_NS - 1)
        assert guard.allows(S + BARRED_NS)
        assert not guard.is_barred


def test_each_mistake_doubles_the_runs_that_are_asked_for() -> None:
    """Up to a bound, so that a kind that is good by now does come back."""
    guard = Guard()
    now_ns, needed = 0, CLEAN_RUNS
    for _ in range(10):
        overrun(guard, now_ns)
        now_ns += BARRED_NS
        guard.note_batch(needed - 1, 1.0, 1.0, now_ns)
        assert not guard.allows(now_ns)
        clean(guard, 1)
        assert guard.allows(now_ns)
        needed = min(2 * needed, MOST_CLEAN_RUNS)


def test_a_kind_with_a_tail_stays_off() -> None:
    """One long job in a hundred: after the first one on the loop, those elsewhere keep it off."""
    guard = Guard()
    on_loop = 0
    for at in range(100_000):
        now_ns = at * 10 * MS
        is_long = at % 100 == 50
        if guard.allows(now_ns):
            on_loop += is_long
            if is_long:
                overrun(guard, now_ns)
        else:
            cpu_ns = 300 * MS if is_long else US
            guard.note_elsewhere(US, cpu_ns, cpu_ns, now_ns)
    assert on_loop == 1


def test_a_long_run_elsewhere_bars_the_kind_beforehand() -> None:
    """If it was predicted to be short enough for the loop; by the CPU, not by the wall."""
    guard = Guard()
    guard.note_elsewhere(LONGEST_INLINE_NS + 1, S, S, 0)
    guard.note_elsewhere(math.nan, S, S, 0)
    guard.note_elsewhere(US, S, US, 0)
    assert guard.allows(0)
    guard.note_elsewhere(US, 3 * MS, 3 * MS, 0)
    assert not guard.allows(0)
    assert guard.overruns == 0
    clean(guard, CLEAN_RUNS)
    assert guard.allows(BARRED_NS)


def test_a_run_that_waited_elsewhere_says_nothing() -> None:
    """A long wall time with little of the CPU is neither clean nor an overrun."""
    guard = Guard()
    overrun(guard, 0)
    clean(guard, CLEAN_RUNS - 1)
    guard.note_elsewhere(US, S, US, 0)
    assert not guard.allows(BARRED_NS)
    clean(guard, 1)
    assert guard.allows(BARRED_NS)


def test_what_a_batch_tells() -> None:
    """That none took longer than all; or that one of them must have been long."""
    guard = Guard()
    guard.note_batch(64, 64 * US, LEAST_NS, 0)
    guard.note_batch(64, 6_400 * US, 12 * MS, 0)  # twice as slow as predicted: who knows
    guard.note_batch(64, 64 * 2 * LONGEST_INLINE_NS, 10 * S, 0)  # never meant for the loop
    assert guard.allows(0)
    guard.note_batch(64, 64 * US, 300 * MS, 0)
    assert not guard.allows(0)
    guard.note_batch(CLEAN_RUNS - 1, 1.0, LEAST_NS, 0)
    guard.note_batch(64, 6_400 * US, 12 * MS, 0)
    assert not guard.allows(BARRED_NS)
    guard.note_batch(1, 1.0, LEAST_NS, 0)
    assert guard.allows(BARRED_NS)


def test_three_waits_in_a_row_bar_plain_python() -> None:
    """It may sleep, which no CPU clock sees; a run in time between them starts the count again."""

    def wait(guard: Guard) -> bool:
        return guard.note_inline(US, 300 * MS, US, 0, is_compiled=False)

    guard = Guard()
    assert [wait(guard) for _ in range(STRIKES - 1)] == [False] * (STRIKES - 1)
    assert not guard.note_inline(US, US, US, 0, is_compiled=False)
    assert [wait(guard) for _ in range(STRIKES)] == [False] * (STRIKES - 1) + [True]
    assert not guard.allows(0)


def test_barred_for_some_time_alone() -> None:
    """As what may have been barred before it was forgotten; then no runs are asked for."""
    guard = Guard()
    guard.bar_until(S)
    assert not guard.allows(S - 1)
    assert guard.allows(S)
