"""StaticPolicy: the original's choice, rule by rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import job, job_of, original

from helixnb import Load, RouterConfig, StaticPolicy, Strategy

ORIGINAL = RouterConfig.original()
UINT64 = st.integers(0, 2**64 - 1)
SCALING = st.floats(0, 1)


def decide(cost: int, scaling: float, busy: int, config: RouterConfig = ORIGINAL) -> Strategy:
    candidate = job(compute_cost=cost, scaling_potential=scaling)
    return StaticPolicy().decide(candidate, Load(cpu_busy=busy), config).strategy


def test_every_decision_of_the_original() -> None:
    """Each of 600 jobs at 0 to 8 busy slots is routed as the original routed it."""
    checked = 0
    for row in original():
        for busy, strategy in enumerate(row["route_by_cpu_busy"]):
            decision = StaticPolicy().decide(job_of(row), Load(cpu_busy=busy), ORIGINAL)
            assert decision.strategy == strategy, (row["id"], busy)
            checked += 1
    assert checked == 5_400


@pytest.mark.parametrize(
    ("cost", "scaling", "busy", "strategy"),
    [
        (0, 0.0, 0, Strategy.INLINE),
        (8_000, 1.0, 6, Strategy.INLINE),
        (8_001, 1.0, 6, Strategy.SPAWN),
        (60_000, 1.0, 0, Strategy.SPAWN),
        (60_001, 0.70, 0, Strategy.BATCH),
        (60_001, 0.6999, 0, Strategy.CPU_POOL),
        (2**64 - 1, 0.0, 6, Strategy.CPU_POOL),
        (0, 0.65, 7, Strategy.BATCH),
        (0, 0.6499, 7, Strategy.DROP),
        (0, 0.0, 1_000, Strategy.DROP),
    ],
)
def test_boundaries(cost: int, scaling: float, busy: int, strategy: Strategy) -> None:
    """Each threshold belongs to the side that the original gave it."""
    assert decide(cost, scaling, busy) is strategy


@given(UINT64, SCALING, st.integers(0, 10**6))
def test_total_and_deterministic(cost: int, scaling: float, busy: int) -> None:
    """Every job gets a decision with a reason, and the same one again."""
    candidate, load = job(compute_cost=cost, scaling_potential=scaling), Load(cpu_busy=busy)
    first = StaticPolicy().decide(candidate, load, ORIGINAL)
    assert first == StaticPolicy().decide(candidate, load, ORIGINAL)
    assert first.reason


@given(UINT64, SCALING, st.integers(0, 100), st.integers(0, 100))
def test_a_drop_stays_one_under_more_pressure(
    cost: int, scaling: float, busy: int, more: int
) -> None:
    """More busy slots never turn a drop into an admission."""
    if decide(cost, scaling, busy) is Strategy.DROP:
        assert decide(cost, scaling, busy + more) is Strategy.DROP


@given(UINT64, SCALING, st.integers(0, 20), st.floats(0, 1e6))
def test_the_budget_is_never_read(cost: int, scaling: float, busy: int, budget: float) -> None:
    """The same job with another budget is routed alike."""
    candidate = job(compute_cost=cost, scaling_potential=scaling, latency_budget_ms=budget)
    decision = StaticPolicy().decide(candidate, Load(cpu_busy=busy), ORIGINAL)
    assert decision.strategy is decide(cost, scaling, busy)


def test_the_thresholds_are_the_configurations() -> None:
    """Changed settings change the choice."""
    config = RouterConfig(
        cpu_parallelism=4,
        backpressure_busy_threshold=2,
        inline_max_cost=10,
        spawn_max_cost=20,
        batch_min_scaling=0.5,
        pressure_batch_min_scaling=0.1,
    )
    assert decide(10, 0.0, 1, config) is Strategy.INLINE
    assert decide(20, 0.0, 1, config) is Strategy.SPAWN
    assert decide(21, 0.5, 1, config) is Strategy.BATCH
    assert decide(21, 0.4, 1, config) is Strategy.CPU_POOL
    assert decide(10, 0.1, 2, config) is Strategy.BATCH
    assert decide(10, 0.0, 2, config) is Strategy.DROP
