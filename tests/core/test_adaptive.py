"""AdaptivePolicy: the choice by predicted finish time, rule by rule, and what always holds."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import job

from helixnb import AdaptivePolicy, Decision, Estimate, Load, RouterConfig, Strategy
from helixnb._core.rules import DECISIONS, HAND_BACK_NS
from helixnb._decide_columns import Candidates, Carried, decide_adaptive

CONFIG = RouterConfig(cpu_parallelism=2, max_loop_lag_ms=10)
LARGE = 100_000
ABOVE = 1 + 1e-9
NAN = math.nan


def decide(
    load: Load,
    estimate: Estimate,
    budget_ms: float | None = None,
    *,
    cost: int = LARGE,
    scaling: float = 0.0,
    config: RouterConfig = CONFIG,
) -> Decision:
    candidate = job(compute_cost=cost, scaling_potential=scaling, latency_budget_ms=budget_ms)
    return AdaptivePolicy().decide(candidate, load, config, estimate)


def reason(*args: Any, **fields: Any) -> str:
    return decide(*args, **fields).reason


def busy(**fields: Any) -> Load:
    """Return a load with both slots in use, and 20 ms for them to do before a job that comes."""
    fields = {"backlog_s": 0.02, "batch_backlog_s": 0.02} | fields
    return Load(**({"cpu_busy": 2, "waiting": 3} | fields))


def known(run_us: float, p95_us: float | None = None, **fields: Any) -> Estimate:
    """Return the estimate of a warm kind, which gains nothing from batches."""
    p95_us = run_us if p95_us is None else p95_us
    fields = {"samples": 100, "batch_gain": 1.0, "batch_us": run_us} | fields
    return Estimate(run_us=run_us, p95_us=p95_us, **fields)


# -- Rule by rule ---------------------------------------------------------------------------------


@pytest.mark.parametrize("estimate", [Estimate(), known(5), known(1_000)])
@pytest.mark.parametrize("load", [Load(), busy()])
def test_a_late_loop_drops_all_that_have_a_budget(load: Load, estimate: Estimate) -> None:
    """Past the bound on the loop's lag none is admitted; at the bound, and without one, any is."""
    too_late = dataclasses.replace(load, loop_lag_ms=12.0)
    late = decide(too_late, estimate, 1e4)
    assert (late.strategy, late.reason) == (Strategy.DROP, "loop_saturated")
    assert late.retry_after_s == pytest.approx(0.002)
    assert decide(too_late, estimate).strategy != "drop"
    assert decide(dataclasses.replace(load, loop_lag_ms=10.0), estimate, 1e4).strategy != "drop"


def test_what_has_elapsed_is_off_the_budget() -> None:
    """A job that had to wait for its turn has so much less left, as has one of a late loop."""
    assert reason(Load(), known(1_000), 1.5) == "slot_idle"
    assert reason(Load(elapsed_ms=0.6), known(1_000), 1.5) == "infeasible"
    assert reason(Load(loop_lag_ms=0.6), known(1_000), 1.5) == "infeasible"


@pytest.mark.parametrize(
    ("load", "p95_us", "fits_ms"),
    [
        (busy(), 2_000, 12.0),
        (busy(backlog_s=0.04), 2_000, 22.0),
        (busy(cpu_left=1.0), 2_000, 24.0),  # a wait of 20 ms, and half a CPU for the job
        (busy(cpu_left=7.0), 2_000, 12.0),
        (busy(cpu_left=0.0), 2_000, 240.0),  # a tenth of a slot is reckoned with
        (busy(loop_lag_ms=3.0), 2_000, 15.0),
        (busy(loop_lag_ms=3.0, elapsed_ms=2.0), 2_000, 17.0),
        (Load(cpu_busy=1, backlog_s=9.0), 2_000, 2.0),  # a slot is free, whatever waits for others
        (Load(cpu_busy=1, cpu_left=1.0), 2_000, 4.0),
        (Load(cpu_busy=0, cpu_left=1.0), 2_000, 2.0),  # one job has all of that CPU
        (Load(sharers=100, backlog_s=0.02), 2_000, 12.0),
    ],
)
def test_a_job_that_would_end_too_late_is_infeasible(
    load: Load, p95_us: float, fits_ms: float
) -> None:
    """The wait and the 95th percentile must fit the budget exactly; else when to retry is said."""
    estimate = known(1_000, p95_us)
    assert decide(load, estimate, fits_ms * ABOVE).strategy is not Strategy.DROP
    dropped = decide(load, estimate, fits_ms / ABOVE)
    assert (dropped.strategy, dropped.reason) == (Strategy.DROP, "infeasible")


def test_when_to_retry_what_is_infeasible() -> None:
    """As soon as the wait has shrunk by what is too much; never for what is too long by itself."""
    assert decide(busy(), known(1_000, 2_000), 9).retry_after_s == pytest.approx(0.003)
    assert decide(busy(cpu_left=1), known(1_000, 2_000), 23).retry_after_s == pytest.approx(1e-3)
    assert decide(busy(), known(1_000, 2_000), 1.9).retry_after_s is None
    # It takes 4 ms on half a CPU.
    assert decide(busy(cpu_left=1), known(1_000, 2_000), 3).retry_after_s is None
    assert decide(Load(), known(1_000, 2_000), 1.9).retry_after_s is None
    # What the event loop's lag, or the way here, took of the budget may be there another time.
    late = decide(Load(loop_lag_ms=7), known(8, 8), 6)
    assert late.reason == "infeasible"
    assert late.retry_after_s == pytest.approx(1.008e-3)
    assert decide(Load(elapsed_ms=7), known(8, 8), 6).retry_after_s == pytest.approx(1.008e-3)


@pytest.mark.parametrize(
    ("load", "pays_us"),
    [
        (Load(hop_us=60), 128),  # two hops and what the loop does for a job
        (Load(hop_us=10), 28),
        (Load(hop_us=60, waiting=9, cpu_busy=1), 128),
        (busy(hop_us=60, waiting=0), 68),
        (busy(hop_us=60, waiting=59), 9),
        (busy(hop_us=60, waiting=500), 8 + 60 / 501),
        (Load(hop_us=60, sharers=4), 28.5),  # a row on the loop takes 1.5 us beside the kernel
        (busy(hop_us=60, sharers=4), 28.5),
        (busy(hop_us=60, backlog_s=1e6, waiting=59), 9),
    ],
)
def test_inline_when_that_takes_less_than_to_hand_off(load: Load, pays_us: float) -> None:
    """A job runs on the loop up to what a hand-off costs there, whatever waits elsewhere."""
    cheap = decide(load, known(pays_us))
    assert (cheap.strategy, cheap.reason) == (Strategy.INLINE, "cheaper_inline")
    assert decide(load, known(pays_us * ABOVE)).strategy is not Strategy.INLINE


def test_inline_only_if_it_fits_the_budget() -> None:
    """The 95th percentile must fit what the loop's lag leaves of it."""
    estimate = known(20, 30)
    assert reason(Load(), estimate, 0.030) == "cheaper_inline"
    assert reason(Load(), estimate, 0.0299) == "infeasible"
    assert reason(Load(loop_lag_ms=5), estimate, 5.031) == "cheaper_inline"
    assert reason(Load(loop_lag_ms=5), estimate, 5.029) == "infeasible"


@pytest.mark.parametrize("slots_busy", [0, 1])
def test_spawned_when_a_slot_is_free(slots_busy: int) -> None:
    """Also what would gain from a batch, and however much waits for something else."""
    load = Load(cpu_busy=slots_busy, waiting=10_000, backlog_s=99.0, batch_backlog_s=99.0)
    for estimate in (known(1_000), known(1_000, batch_gain=9.0), known(1_000, batch_probe=True)):
        spawned = decide(load, estimate, 2, scaling=1.0)
        assert (spawned.strategy, spawned.reason) == (Strategy.SPAWN, "slot_idle")


@pytest.mark.parametrize("estimate", [known(1_000), Estimate()])
def test_a_queue_is_full_by_count(estimate: Estimate) -> None:
    """The last place is given, and then none; a free slot needs no place."""
    assert decide(busy(waiting=511), estimate).strategy is Strategy.CPU_POOL
    full = decide(busy(waiting=512, backlog_s=0.1026), estimate)
    assert (full.strategy, full.reason) == (Strategy.DROP, "queue_full")
    assert full.retry_after_s == pytest.approx(0.0001)  # one of 513 must go
    if estimate.samples:
        assert decide(Load(waiting=512), estimate).strategy is Strategy.SPAWN


@pytest.mark.parametrize("estimate", [known(1_000), Estimate()])
def test_a_queue_is_full_by_time(estimate: Estimate) -> None:
    """The wait may be as long as is set, and not longer, with a budget or without."""
    for budget_ms in (None, 1e6):
        assert decide(busy(backlog_s=0.5), estimate, budget_ms).strategy is Strategy.CPU_POOL
        full = decide(busy(backlog_s=0.51), estimate, budget_ms)
        assert (full.strategy, full.reason) == (Strategy.DROP, "queue_full")
        assert full.retry_after_s == pytest.approx(0.005)


def test_many_jobs_are_bounded_by_time_and_only_with_a_budget() -> None:
    """No slot is free for one of a call with many, their number is no bound, nor time without."""
    load = Load(sharers=100, waiting=10_000, backlog_s=0.51)
    for estimate in (known(1_000), Estimate()):
        assert decide(load, estimate).strategy is Strategy.CPU_POOL
        assert reason(load, estimate, 1e6) == "queue_full"
        short = dataclasses.replace(load, backlog_s=0.5)
        assert decide(short, estimate, 1e6).strategy is Strategy.CPU_POOL


@pytest.mark.parametrize(
    ("gain", "scaling", "expected"),
    [
        (1.2, 0.0, "batch_gain"),
        (1.1999, 1.0, "slots_busy"),  # it is known not to pay, whatever the job says
        (9.0, 0.0, "batch_gain"),
        (0.0, 0.70, "batch_gain"),
        (0.0, 0.6999, "slots_busy"),
    ],
)
def test_batched_by_known_gain_or_else_by_what_the_job_says(
    gain: float, scaling: float, expected: str
) -> None:
    """While slots are busy; how the job scales is asked only as long as the gain isn't known."""
    decision = decide(busy(), known(1_000, batch_gain=gain), scaling=scaling)
    assert decision.reason == expected
    assert decision.strategy == ("batch" if expected == "batch_gain" else "cpu_pool")


def test_not_batched_if_the_batch_would_end_too_late() -> None:
    """The batch must fit the budget as a whole, or the job goes to the pool if it fits there."""
    estimate = known(1_000, batch_gain=5.0, batch_us=4_000)
    assert reason(busy(), estimate, 14 * ABOVE) == "batch_gain"
    assert reason(busy(), estimate, 13.9) == "slots_busy"
    assert reason(busy(batch_backlog_s=0.03), estimate, 18.9) == "slots_busy"
    assert reason(busy(cpu_left=1.0), estimate, 28 * ABOVE) == "batch_gain"
    assert reason(busy(cpu_left=1.0), estimate, 27.9) == "slots_busy"


def test_a_batch_may_be_the_only_way_in_time() -> None:
    """A job that the pool would end too late is batched if that is sooner, and then no probe."""
    estimate = known(1_000, batch_gain=5.0, batch_us=4_000, probe=True)
    load = busy(batch_backlog_s=0.002)
    assert reason(load, estimate, 6) == "batch_gain"
    assert reason(load, dataclasses.replace(estimate, batch_gain=1.0, probe=False), 6) == (
        "infeasible"
    )


def test_a_batch_probe() -> None:
    """When it is time, a job is batched although that doesn't seem to pay, if it ends in time."""
    estimate = known(1_000, batch_gain=1.0, batch_us=4_000, batch_probe=True)
    decision = decide(busy(), estimate, 15)
    assert (decision.strategy, decision.reason) == (Strategy.BATCH, "batch_probe")
    assert reason(busy(), estimate, 13) == "slots_busy"
    unknown = dataclasses.replace(estimate, batch_gain=0.0)
    assert reason(busy(), unknown, 15) == "batch_probe"


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (Load(), Decision(Strategy.SPAWN, "probe")),
        (busy(), Decision(Strategy.CPU_POOL, "probe")),
        (Load(sharers=9), Decision(Strategy.CPU_POOL, "probe")),
    ],
)
def test_a_probe(load: Load, expected: Decision) -> None:
    """When it is time, one job that seems infeasible runs; one that isn't, runs for itself."""
    assert decide(load, known(1_000, probe=True), 0.5) == expected
    assert reason(load, known(1_000, probe=True), 1e3) != "probe"
    assert reason(busy(waiting=512), known(1_000, probe=True), 0.5) == "queue_full"
    assert reason(busy(loop_lag_ms=11), known(1_000, probe=True), 100) == "loop_saturated"


@pytest.mark.parametrize(
    ("cost", "scaling", "run_us", "expected"),
    [
        (8_000, 1.0, 1_000, Decision(Strategy.INLINE, "small")),
        (8_000, 1.0, 1_001, Decision(Strategy.SPAWN, "medium")),  # what its author says is long
        (8_001, 1.0, 1, Decision(Strategy.SPAWN, "medium")),
        (60_000, 1.0, math.inf, Decision(Strategy.SPAWN, "medium")),
        (60_001, 0.70, 1, Decision(Strategy.BATCH, "scales")),
        (60_001, 0.6999, 1, Decision(Strategy.CPU_POOL, "large")),
    ],
)
def test_a_cold_kind_goes_by_thresholds(
    cost: int, scaling: float, run_us: float, expected: Decision
) -> None:
    """Those of StaticPolicy, and its declared time only keeps it from the loop."""
    estimate = Estimate(samples=7, run_us=run_us, p95_us=run_us, batch_gain=9.0, probe=True)
    for load in (Load(), Load(cpu_busy=1), busy()):
        assert decide(load, estimate, 10 * ABOVE, cost=cost, scaling=scaling) == expected
    warm = dataclasses.replace(estimate, samples=8)
    assert decide(Load(), warm, cost=cost, scaling=scaling) != expected


@pytest.mark.parametrize("load", [Load(), busy(), Load(sharers=4)])
def test_what_may_not_run_on_the_loop_runs_elsewhere(load: Load) -> None:
    """However short it seems, known or not; else as if it weren't short."""
    for estimate in (known(5), Estimate(samples=0, run_us=5, p95_us=5)):
        assert decide(load, estimate, cost=1).strategy is Strategy.INLINE
        barred = dataclasses.replace(estimate, may_inline=False)
        assert decide(load, barred, cost=1).strategy in ("spawn", "cpu_pool")
        assert reason(busy(), barred, 9, cost=1) == "infeasible"


def test_nothing_longer_than_a_millisecond_runs_on_the_loop() -> None:
    """Even where a hand-off is believed to cost more."""
    slow = Load(hop_us=10_000)
    assert reason(slow, known(1_000)) == "cheaper_inline"
    assert reason(slow, known(1_000 * ABOVE)) == "slot_idle"


def test_a_cold_kind_is_probed() -> None:
    """When it is time, one that others would keep waiting for too long runs; nothing else of it."""
    probe = Estimate(run_us=1e9, p95_us=1e9, probe=True)
    assert decide(busy(), probe, 9) == Decision(Strategy.CPU_POOL, "probe")
    assert decide(busy(backlog_s=0.51), probe) == Decision(Strategy.CPU_POOL, "probe")
    assert decide(busy(backlog_s=0.51), probe, 1e6) == Decision(Strategy.CPU_POOL, "probe")
    assert decide(Load(elapsed_ms=2), probe, 1) == Decision(Strategy.SPAWN, "probe")
    many = Load(sharers=9, backlog_s=0.51)
    for budget_ms in (9.0, 1e6):
        assert decide(many, probe, budget_ms) == Decision(Strategy.CPU_POOL, "probe")
    assert reason(busy(waiting=512), probe, 9) == "queue_full"
    assert reason(busy(loop_lag_ms=11), probe, 100) == "loop_saturated"
    for fine in (Load(), busy()):
        assert reason(fine, probe, 1e6) == "large"


def test_a_cold_kind_is_dropped_for_others_only() -> None:
    """What waits before it must fit its budget; nothing is known of its own time."""
    estimate = Estimate(run_us=1e9, p95_us=1e9)
    assert reason(Load(), estimate, 0) == "large"
    assert reason(busy(), estimate, 10) == "large"
    dropped = decide(busy(), estimate, 9)
    assert dropped.reason == "infeasible"
    assert dropped.retry_after_s == pytest.approx(0.001)
    assert reason(busy(waiting=512), Estimate(run_us=1), 9, cost=8_000) == "small"


# -- What always holds ----------------------------------------------------------------------------

MS = st.floats(0, 1e4) | st.sampled_from([0.0, 10.0, 250.0])
US = st.floats(0, 1e7) | st.sampled_from([0.0, 1.0, 8.0, 20.0, 128.0, 1_000.0])
COUNT = st.integers(0, 2_000)
ALONE = st.just(1)
CPUS = st.just(math.inf) | st.floats(0, 10)


@st.composite
def loads(draw: st.DrawFn, *, sharers: st.SearchStrategy[int] = ALONE) -> Load:
    """Draw any load, most of them with busy slots."""
    return Load(
        cpu_busy=draw(st.sampled_from([0, 1, 2, 2, 2, 3])),
        waiting=draw(COUNT | st.sampled_from([0, 511, 512])),
        backlog_s=draw(MS) / 1e3,
        batch_backlog_s=draw(MS) / 1e3,
        cpu_left=draw(CPUS),
        loop_lag_ms=draw(st.just(0.0) | st.floats(0, 20)),
        hop_us=draw(st.floats(1e-3, 1e3)),
        sharers=draw(sharers),
        elapsed_ms=draw(st.just(0.0) | st.floats(0, 20)),
    )


MANY = ALONE | st.integers(2, 10_000)


@st.composite
def estimates(draw: st.DrawFn, *, samples: st.SearchStrategy[int] = COUNT) -> Estimate:
    """Draw anything that a cost model may say."""
    run_us = draw(US)
    return Estimate(
        samples=draw(samples),
        run_us=run_us,
        p95_us=run_us * draw(st.floats(1, 2.3)),
        batch_gain=draw(st.sampled_from([0.0, 1.0, 1.2, 20.0])),
        batch_us=draw(st.just(run_us) | US),
        probe=draw(st.booleans()),
        batch_probe=draw(st.booleans()),
        may_inline=draw(st.booleans()),
    )


WARM = st.integers(CONFIG.cold_samples, 2_000)
PRESSES = ("backlog_s", "batch_backlog_s", "waiting", "cpu_busy", "cpu_left", "loop_lag_ms")
BUDGETS = st.none() | MS | st.floats(0, 1)
COSTS = st.integers(0, 2**64 - 1) | st.sampled_from([8_000, 60_000, 60_001])
SCALING = st.floats(0, 1) | st.sampled_from([0.0, 0.7, 1.0])


@given(loads(sharers=MANY), estimates(), BUDGETS, COSTS, SCALING)
def test_total_and_deterministic(
    load: Load, estimate: Estimate, budget_ms: float | None, cost: int, scaling: float
) -> None:
    """Every job gets a decision with a reason, and the same one again."""
    first = decide(load, estimate, budget_ms, cost=cost, scaling=scaling)
    assert first == decide(load, estimate, budget_ms, cost=cost, scaling=scaling)
    assert Decision(first.strategy, first.reason) in DECISIONS
    retry_s = first.retry_after_s
    assert retry_s is None or (first.strategy is Strategy.DROP and 0 <= retry_s < math.inf)


@settings(max_examples=300)
@given(loads(sharers=MANY), estimates(), BUDGETS, COSTS, SCALING, st.floats(0, 5))
def test_a_drop_stays_one_under_more_pressure(
    load: Load,
    estimate: Estimate,
    budget_ms: float | None,
    cost: int,
    scaling: float,
    more: float,
) -> None:
    """More of what presses never turns a drop into an admission."""
    if decide(load, estimate, budget_ms, cost=cost, scaling=scaling).strategy != "drop":
        return
    for field in PRESSES:
        worse = pressed(load, field, more)
        after = decide(worse, estimate, budget_ms, cost=cost, scaling=scaling)
        assert after.strategy is Strategy.DROP, field


def pressed(load: Load, field: str, more: float) -> Load:
    """Return a load with more of one kind of pressure."""
    value = getattr(load, field)
    if field in ("waiting", "cpu_busy"):
        return dataclasses.replace(load, **{field: value + math.ceil(more)})
    if field == "cpu_left":
        return dataclasses.replace(load, cpu_left=min(value, 2.0) / (1 + more))
    return dataclasses.replace(load, **{field: value + more})


@settings(max_examples=300)
@given(loads(sharers=MANY), estimates(samples=WARM), BUDGETS, COSTS, SCALING)
def test_what_is_admitted_fits_its_budget_by_the_predictions(
    load: Load, estimate: Estimate, budget_ms: float | None, cost: int, scaling: float
) -> None:
    """A warm job that would end too late the way it is to run never does, but for a probe."""
    assume(budget_ms is not None)
    decision = decide(load, estimate, budget_ms, cost=cost, scaling=scaling)
    if decision.strategy is Strategy.DROP or decision.reason == "probe":
        return
    slots = max(0.1, min(2.0, load.cpu_left))
    waits = load.cpu_busy >= 2 or load.sharers > 1
    stretch = max(1.0, min(load.cpu_busy + 1, 2) / slots)
    batch_ms = (1e3 * load.batch_backlog_s / slots if waits else 0) + (
        estimate.batch_us * stretch / 1e3
    )
    pool_ms = (1e3 * load.backlog_s / slots if waits else 0) + estimate.p95_us * stretch / 1e3
    ends_ms = {"inline": estimate.p95_us / 1e3, "batch": batch_ms}.get(decision.strategy, pool_ms)
    assert budget_ms is not None
    assert ends_ms + load.loop_lag_ms + load.elapsed_ms <= budget_ms * ABOVE + 1e-9


@given(loads(), estimates(samples=WARM), BUDGETS, st.floats(0, HAND_BACK_NS / 1e3))
def test_what_is_cheaper_to_run_than_to_drop_is_not_dropped(
    load: Load, estimate: Estimate, budget_ms: float | None, run_us: float
) -> None:
    """Whatever waits, as long as the loop is in time and the job fits its budget by itself."""
    p95_us = run_us * 1.5
    tiny = dataclasses.replace(estimate, run_us=run_us, p95_us=p95_us, may_inline=True)
    lag_ms = min(load.loop_lag_ms, CONFIG.max_loop_lag_ms)
    if budget_ms is not None:
        budget_ms = max(budget_ms, lag_ms + load.elapsed_ms + 1.5 * run_us / 1e3 + 1e-9)
    decision = decide(dataclasses.replace(load, loop_lag_ms=lag_ms), tiny, budget_ms)
    assert decision.strategy is Strategy.INLINE


def relieved(load: Load, dropped: Decision) -> Load:
    """Return a load as it should be when it is time to retry."""
    retry_s = (dropped.retry_after_s or 0.0) * ABOVE + 1e-9
    lag_ms = max(0.0, load.loop_lag_ms - 1e3 * retry_s)
    if dropped.reason == "loop_saturated":
        return dataclasses.replace(load, loop_lag_ms=lag_ms)
    if dropped.reason == "infeasible":  # the loop gets round to things too, and the job is new
        load = dataclasses.replace(load, loop_lag_ms=lag_ms, elapsed_ms=0.0)
    done_s = retry_s * max(0.1, min(2.0, load.cpu_left))
    return dataclasses.replace(
        load,
        backlog_s=max(0.0, load.backlog_s - done_s),
        batch_backlog_s=max(0.0, load.batch_backlog_s - done_s),
    )


@settings(max_examples=300)
@given(loads(sharers=MANY), estimates(), BUDGETS, COSTS, SCALING)
def test_a_retry_when_it_was_said_is_not_dropped_for_the_same_reason(
    load: Load, estimate: Estimate, budget_ms: float | None, cost: int, scaling: float
) -> None:
    """With that much less of what was too much, neither the wait nor the lag is."""
    first = decide(load, estimate, budget_ms, cost=cost, scaling=scaling)
    if first.retry_after_s is None:
        return
    if first.reason == "queue_full" and load.waiting >= CONFIG.queue_capacity:
        return
    again = decide(relieved(load, first), estimate, budget_ms, cost=cost, scaling=scaling)
    assert again.reason != first.reason


@pytest.mark.parametrize(
    ("load", "worse"),
    [
        (busy(batch_backlog_s=0.52), busy(batch_backlog_s=0.53)),
        (busy(batch_backlog_s=0.52), busy(batch_backlog_s=0.52, cpu_left=1.97)),
        (busy(batch_backlog_s=0.52), busy(batch_backlog_s=0.52, loop_lag_ms=5)),
    ],
)
def test_a_full_batch_lane_drops_no_less_when_more_waits_there(load: Load, worse: Load) -> None:
    """A job that is dropped since its batch would wait for too long, stays so if that grows."""
    estimate = known(1_000, batch_gain=5.0)
    if decide(load, estimate, 262).strategy is Strategy.DROP:
        assert decide(worse, estimate, 262).strategy is Strategy.DROP


def test_when_to_retry_what_finds_its_batch_lane_full() -> None:
    """When that much of the wait for the batch is done, it isn't full any more."""
    load, estimate = busy(batch_backlog_s=0.52), known(1_000, batch_gain=5.0)
    first = decide(load, estimate)
    if first.strategy is Strategy.DROP:
        assert first.reason == "queue_full"
        assert first.retry_after_s == pytest.approx(0.01)
        assert decide(relieved(load, first), estimate).reason != "queue_full"


def test_what_is_infeasible_while_a_slot_is_free_is_so_when_none_is() -> None:
    """A batch that would be in time behind others is in time at once too."""
    estimate = known(5_000, 10_000, batch_gain=5.0, batch_us=5_000)
    first = decide(Load(cpu_busy=1), estimate, 7)
    if first.strategy is Strategy.DROP:
        assert decide(Load(cpu_busy=2), estimate, 7).strategy is Strategy.DROP


# -- Columns --------------------------------------------------------------------------------------


@st.composite
def candidates(draw: st.DrawFn) -> Candidates:
    """Draw the jobs of a call: a few kinds, many jobs."""
    kinds = [draw(estimates()) for _ in range(draw(st.integers(1, 3)))]
    jobs = draw(st.integers(0, 40))

    def column(values: st.SearchStrategy[Any], dtype: type) -> Any:
        return np.array([draw(values) for _ in range(jobs)], dtype)

    def constant(values: list[Any], dtype: type) -> Any:
        return np.array(values, dtype)

    run_us = column(US, np.float64)
    return Candidates(
        compute_cost=column(COSTS, np.uint64),
        scaling_potential=column(SCALING, np.float64),
        budget_ms=column(st.just(NAN) | MS, np.float64),
        kind=column(st.integers(0, len(kinds) - 1), np.int32),
        run_us=run_us,
        share_us=run_us * draw(st.floats(1e-3, 1)),
        samples=constant([each.samples for each in kinds], np.int64),
        p95_factor=constant([draw(st.floats(1, 2.3)) for _ in kinds], np.float64),
        batch_gain=constant([each.batch_gain for each in kinds], np.float64),
        batch_us=constant([each.batch_us for each in kinds], np.float64),
        probes=constant([draw(st.integers(0, 3)) for _ in kinds], np.int64),
        batch_probe=constant([each.batch_probe for each in kinds], np.uint8),
        may_inline=constant([each.may_inline for each in kinds], np.uint8),
    )


@settings(max_examples=100)
@given(candidates(), loads(sharers=MANY))
def test_columns_are_decided_as_one_by_one(rows: Candidates, load: Load) -> None:
    """The compiled pass gives what the policy says of each job, after what those before it add."""
    codes, decisions, retry_after_s = decide_adaptive(rows, load, CONFIG)
    assert retry_after_s is not None
    carried = Carried(load, rows)
    for i, code in enumerate(codes):
        budget_ms = float(rows.budget_ms[i])
        expected = decide(
            carried.load(),
            carried.estimate(i),
            None if math.isnan(budget_ms) else budget_ms,
            cost=int(rows.compute_cost[i]),
            scaling=float(rows.scaling_potential[i]),
        )
        retry_s = float(retry_after_s[i])
        given_ = dataclasses.replace(
            decisions[code], retry_after_s=None if math.isnan(retry_s) else retry_s
        )
        assert given_ == expected, i
        carried.add(i, expected)
