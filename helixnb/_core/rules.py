"""The decision as one plain function over numbers, and what its codes mean."""

from __future__ import annotations

from helixnb._records import Decision, Strategy

INLINE_SMALL, SPAWN_MEDIUM, BATCH_SCALES, POOL_LARGE, BATCH_PRESSURE, DROP_PRESSURE = range(6)

DECISIONS = (
    Decision(Strategy.INLINE, "small"),
    Decision(Strategy.SPAWN, "medium"),
    Decision(Strategy.BATCH, "scales"),
    Decision(Strategy.CPU_POOL, "large"),
    Decision(Strategy.BATCH, "pressure"),
    Decision(Strategy.DROP, "pool_saturated"),
)
"""The decision of each code, by position."""


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
