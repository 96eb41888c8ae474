"""The decisions as plain functions over numbers, and what their codes mean."""

from __future__ import annotations

import math

from helixnb._records import Decision, Strategy

(
    INLINE_SMALL,
    SPAWN_MEDIUM,
    BATCH_SCALES,
    POOL_LARGE,
    BATCH_PRESSURE,
    DROP_PRESSURE,
    INLINE_CHEAP,
    SPAWN_IDLE,
    POOL_BUSY,
    BATCH_GAINS,
    BATCH_PROBE,
    SPAWN_PROBE,
    POOL_PROBE,
    DROP_LOOP,
    DROP_INFEASIBLE,
    DROP_FULL,
    DROP_LARGE,
    DROP_CLOSED,
    INLINE_DECLARED,
) = range(19)

DECISIONS = (
    Decision(Strategy.INLINE, "small"),
    Decision(Strategy.SPAWN, "medium"),
    Decision(Strategy.BATCH, "scales"),
    Decision(Strategy.CPU_POOL, "large"),
    Decision(Strategy.BATCH, "pressure"),
    Decision(Strategy.DROP, "pool_saturated"),
    Decision(Strategy.INLINE, "cheaper_inline"),
    Decision(Strategy.SPAWN, "slot_idle"),
    Decision(Strategy.CPU_POOL, "slots_busy"),
    Decision(Strategy.BATCH, "batch_gain"),
    Decision(Strategy.BATCH, "batch_probe"),
    Decision(Strategy.SPAWN, "probe"),
    Decision(Strategy.CPU_POOL, "probe"),
    Decision(Strategy.DROP, "loop_saturated"),
    Decision(Strategy.DROP, "infeasible"),
    Decision(Strategy.DROP, "queue_full"),
    Decision(Strategy.DROP, "too_large"),
    Decision(Strategy.DROP, "router_closed"),
    Decision(Strategy.INLINE, "small"),
)
"""The decision of each code, by position."""

ON_TRUST = (DECISIONS[INLINE_CHEAP], DECISIONS[INLINE_DECLARED])
"""`AdaptivePolicy`'s own decisions to run a job on the event loop: what is believed of the job is
looked at again when it begins. Told from equal ones of other policies by identity."""

HAND_BACK_NS = 8_000.0
"""What a job costs the event loop that runs elsewhere: to queue it, settle it and wake its caller
(``make bench-stages``). To drop one costs about as much."""

LONGEST_INLINE_NS = 1_000_000.0
"""The longest that a job is believed to take, for it to run on the event loop."""

ROW_NS = 1_500.0
"""What a job in columns costs the event loop if it runs there, one by one, beside the kernel."""

REFUSALS = ("infeasible", "queue_full")
"""Reasons of drops for the time that others take, of which a cold kind must not starve."""

LEAST_SLOTS = 0.1
"""Slots that are reckoned with, however much of the CPU others take."""


def static_rule(
    compute_cost: int,
    scaling_potential: float,
    cpu_busy: int,
    busy_threshold: int,
    inline_max_cost: int,
    spawn_max_cost: int,
    batch_min_scaling: float,
    pressure_batch_min_scaling: float,
) -> int:
    """Return HelixRouter's choice as a code, an index into `DECISIONS`."""
    if cpu_busy >= busy_threshold:
        return BATCH_PRESSURE if scaling_potential >= pressure_batch_min_scaling else DROP_PRESSURE
    if compute_cost <= inline_max_cost:
        return INLINE_SMALL
    if compute_cost <= spawn_max_cost:
        return SPAWN_MEDIUM
    return BATCH_SCALES if scaling_potential >= batch_min_scaling else POOL_LARGE


def hand_off_ns(hop_ns: float, idle: bool, waiting: int, sharers: int) -> float:
    """Return what it costs to let a job run elsewhere.

    A hop out and one back where a slot is idle; else the threads go round by themselves, and all
    that wait share the hop back. Jobs that come together share both hops, and run one by one if
    they run on the event loop, which comes off.
    """
    if sharers > 1:
        return max(0.0, 2 * hop_ns / sharers - ROW_NS)
    if idle:
        return HAND_BACK_NS + 2 * hop_ns
    return HAND_BACK_NS + hop_ns / (1 + waiting)


def slots_left(slots: int, cpu_left: float) -> float:
    """Return how many slots' worth of CPU there is."""
    return max(LEAST_SLOTS, min(float(slots), cpu_left))


def inline_pays(run_ns: float, p95_ns: float, budget_ns: float, hand_off_ns: float) -> bool:
    """Tell whether a job takes less time than to let it run elsewhere, and fits its budget."""
    return run_ns <= hand_off_ns and run_ns <= LONGEST_INLINE_NS and p95_ns <= budget_ns


def adaptive_rule(  # noqa: PLR0911, PLR0912  # a table; compiled code calls no plain functions
    compute_cost: int,
    scaling_potential: float,
    budget_ns: float,
    warm: bool,
    cheap: bool,
    run_ns: float,
    p95_ns: float,
    batch_gain: float,
    batch_ns: float,
    probe: bool,
    batch_probe: bool,
    may_inline: bool,
    idle: bool,
    many: bool,
    waiting: int,
    wait_ns: float,
    batch_wait_ns: float,
    stretch: float,
    loop_lag_ns: float,
    queue_capacity: int,
    max_wait_ns: float,
    max_loop_lag_ns: float,
    batch_min_gain: float,
    inline_max_cost: int,
    spawn_max_cost: int,
    batch_min_scaling: float,
) -> int:
    """Return the choice by predicted finish time as a code, an index into `DECISIONS`.

    Parameters
    ----------
    budget_ns
        What is left of it, infinite for none.
    warm
        Whether enough is known of the kind to go by the predictions.
    cheap
        See `inline_pays`.
    run_ns, p95_ns, batch_ns
        CPU time alone, its 95th percentile, and that of the batch that the job would join.
    may_inline
        Whether the job may run on the event loop at all; see `Estimate`.
    idle
        Whether a slot is free for the job.
    many
        Whether the job is one of a call with many: no slot is free for it, since those before it
        come first, and only its budget bounds how long it waits.
    wait_ns, batch_wait_ns
        Until a slot has done what comes before the job in the pool, or before its batch.
    stretch
        How many times longer than its CPU time a job takes, since CPUs are shared.
    """
    if loop_lag_ns > max_loop_lag_ns and budget_ns < math.inf:
        return DROP_LOOP
    in_batch = batch_probe
    if warm:
        if cheap and may_inline:
            return INLINE_CHEAP
        if batch_gain > 0:
            in_batch |= batch_gain >= batch_min_gain
        else:
            in_batch |= scaling_potential >= batch_min_scaling
        alone_fits = wait_ns + p95_ns * stretch <= budget_ns
        in_batch &= batch_wait_ns + batch_ns * stretch <= budget_ns
        in_batch &= batch_wait_ns <= max_wait_ns or (many and budget_ns == math.inf)
        in_batch &= not (idle and alone_fits)
        may_probe = not in_batch and not alone_fits
        if may_probe and not probe:
            return DROP_INFEASIBLE
    else:
        if may_inline and compute_cost <= inline_max_cost and run_ns <= LONGEST_INLINE_NS:
            return INLINE_DECLARED
        in_batch = False
        may_probe = wait_ns > budget_ns
        if may_probe and not probe:
            return DROP_INFEASIBLE
    if idle:
        if not in_batch and (warm or may_probe):
            return SPAWN_PROBE if may_probe else SPAWN_IDLE
    elif not many and waiting >= queue_capacity:
        return DROP_FULL
    elif not in_batch and wait_ns > max_wait_ns and (budget_ns < math.inf or not many):
        if warm or not probe:
            return DROP_FULL
        may_probe = True  # or a kind that is unknown would stay so, as long as others wait
    if in_batch:
        return BATCH_PROBE if batch_probe else BATCH_GAINS
    if warm:
        return POOL_PROBE if may_probe else POOL_BUSY
    if may_probe:
        return POOL_PROBE
    if compute_cost <= spawn_max_cost:
        return SPAWN_MEDIUM
    return BATCH_SCALES if scaling_potential >= batch_min_scaling else POOL_LARGE


def excess_of(
    code: int,
    budget_ns: float,
    whole_ns: float,
    own_ns: float,
    waiting: int,
    wait_ns: float,
    loop_lag_ns: float,
    queue_capacity: int,
    max_wait_ns: float,
    max_loop_lag_ns: float,
) -> float:
    """Return how much less a dropped job would have to wait, NaN where that would not help.

    Parameters
    ----------
    budget_ns, whole_ns
        What is left of the budget, and all of it: what the event loop's lag took of it may be
        there another time.
    own_ns
        What the job takes by itself.
    """
    if code == DROP_INFEASIBLE:
        return wait_ns + own_ns - budget_ns if own_ns <= whole_ns else math.nan
    if code == DROP_FULL:
        share = (waiting + 1 - queue_capacity) / (waiting + 1)
        return max(wait_ns - max_wait_ns, wait_ns * share, 0.0)
    if code == DROP_LOOP:
        return loop_lag_ns - max_loop_lag_ns
    return math.nan
