"""Decisions for jobs in columns, all on one snapshot of the load."""

from __future__ import annotations

import numpy as np

from helixnb._config import RouterConfig
from helixnb._core.rules import DECISIONS, static_rule
from helixnb._records import Array, Decision, Load
from helixnb_kernels._jit import compile_once, helper, jit

_static_rule = helper(static_rule)


def _static_rows(
    compute_cost: Array,
    scaling_potential: Array,
    cpu_busy: int,
    busy_threshold: int,
    inline_max_cost: int,
    spawn_max_cost: int,
    batch_min_scaling: float,
    pressure_batch_min_scaling: float,
    codes: Array,
) -> None:
    for i in range(len(codes)):
        codes[i] = _static_rule(
            compute_cost[i],
            scaling_potential[i],
            cpu_busy,
            busy_threshold,
            inline_max_cost,
            spawn_max_cost,
            batch_min_scaling,
            pressure_batch_min_scaling,
        )


static_rows = jit(
    "void(uint64[::1], float64[::1], uint64, uint64, uint64, uint64, float64, float64, uint8[::1])",
    sources=(_static_rows, static_rule),
)(_static_rows)


def warm_up() -> None:
    """Compile the rule, or read it from the disk cache."""
    compile_once(static_rows)


def decide_static(
    compute_cost: Array, scaling_potential: Array, load: Load, config: RouterConfig
) -> tuple[Array, list[Decision]]:
    """Return `StaticPolicy`'s decision for each job: the same function, in one compiled loop.

    Returns
    -------
    tuple
        One code a job, uint8, and the decisions of which they are the positions.
    """
    codes = np.empty(len(compute_cost), np.uint8)
    compile_once(static_rows)(
        compute_cost,
        scaling_potential,
        load.cpu_busy,
        config.busy_threshold,
        config.inline_max_cost,
        config.spawn_max_cost,
        float(config.batch_min_scaling),
        float(config.pressure_batch_min_scaling),
        codes,
    )
    return codes, list(DECISIONS)
