"""Decisions for jobs in columns: one pass in their order, each after what those before it add."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from helixnb._blocks import Block
from helixnb._config import RouterConfig
from helixnb._core.policy import stretch_of
from helixnb._core.rules import (
    DECISIONS,
    adaptive_rule,
    excess_of,
    hand_off_ns,
    inline_pays,
    slots_left,
    static_rule,
)
from helixnb._exec.lanes import CHUNK_NS
from helixnb._records import (
    Array,
    Decision,
    Estimate,
    Load,
    Strategy,
    make_estimate,
    make_load,
)
from helixnb_kernels._jit import compile_once, helper, jit

_static_rule = helper(static_rule)
_adaptive_rule = helper(adaptive_rule)
_inline_pays = helper(inline_pays)
_excess_of = helper(excess_of)

ELSEWHERE = np.array(
    [each.strategy not in (Strategy.INLINE, Strategy.DROP) for each in DECISIONS], np.uint8
)
"""For each code, whether the job waits for a thread."""

PROBING = np.array([each.reason == "probe" for each in DECISIONS], np.uint8)
"""For each code, whether the job is a probe."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """What a policy reads of a call's jobs, as columns in the order of the call.

    Attributes
    ----------
    kind
        Each job's block, by its position.
    run_us, share_us
        What each takes alone, and what it adds to the backlog.
    samples, p95_factor, batch_gain, batch_us, batch_probe, may_inline
        Of each block; see `Estimate`.
    probes
        How many jobs of each block may run although they seem infeasible.
    """

    compute_cost: Array
    scaling_potential: Array
    budget_ms: Array
    kind: Array
    run_us: Array
    share_us: Array
    samples: Array
    p95_factor: Array
    batch_gain: Array
    batch_us: Array
    probes: Array
    batch_probe: Array
    may_inline: Array

    def __len__(self) -> int:
        return len(self.compute_cost)


def candidates_of(
    blocks: Sequence[Block], order: Array | None, scales: Sequence[float], now_ns: int
) -> Candidates:
    """Gather what a policy reads of each job.

    Parameters
    ----------
    scales
        What a job of each block takes among its like, as a share of what it takes alone.
    """
    kinds = np.repeat(np.arange(len(blocks), dtype=np.int32), [len(block) for block in blocks])
    estimates = [block.model.estimate(0.0, 0.0, now_ns) for block in blocks]

    def column(parts: list[Array], dtype: type) -> Array:
        whole = np.concatenate(parts) if parts else np.empty(0, dtype)
        return np.ascontiguousarray(whole if order is None else whole[order], dtype)

    def constant(values: list[float], dtype: type) -> Array:
        return np.array(values, dtype)

    run_us = [block.predicted_ns / 1e3 for block in blocks]
    return Candidates(
        compute_cost=column([block.columns.compute_cost for block in blocks], np.uint64),
        scaling_potential=column([block.scaling_potential for block in blocks], np.float64),
        budget_ms=column([block.latency_budget_ms for block in blocks], np.float64),
        kind=column([kinds], np.int32),
        run_us=column(run_us, np.float64),
        share_us=column(
            [each * scale for each, scale in zip(run_us, scales, strict=True)], np.float64
        ),
        samples=constant([each.samples for each in estimates], np.int64),
        p95_factor=constant([block.model.alone.p95_factor for block in blocks], np.float64),
        batch_gain=constant([each.batch_gain for each in estimates], np.float64),
        batch_us=constant(
            [
                min(scale * float(block.predicted_ns.sum()), CHUNK_NS) / 1e3
                for block, scale in zip(blocks, scales, strict=True)
            ],
            np.float64,
        ),
        probes=constant([block.model.probes(now_ns) for block in blocks], np.int64),
        batch_probe=constant([each.batch_probe for each in estimates], np.uint8),
        may_inline=constant([each.may_inline for each in estimates], np.uint8),
    )


class Carried:
    """What is carried from one job of a call to the next."""

    def __init__(self, load: Load, candidates: Candidates) -> None:
        self._load = load
        self._backlog_s = load.backlog_s
        self._candidates = candidates
        self._probes = candidates.probes.copy()

    def load(self) -> Load:
        """Return the load for the next one."""
        load = self._load
        return make_load(
            load.cpu_busy,
            load.waiting,
            self._backlog_s,
            self._backlog_s,
            load.cpu_left,
            load.loop_lag_ms,
            load.hop_us,
            load.sharers,
            load.elapsed_ms,
        )

    def estimate(self, at: int) -> Estimate:
        """Return what is known of a job."""
        jobs = self._candidates
        kind = jobs.kind[at]
        run_us = float(jobs.run_us[at])
        return make_estimate(
            int(jobs.samples[kind]),
            run_us,
            run_us * float(jobs.p95_factor[kind]),
            float(jobs.batch_gain[kind]),
            max(float(jobs.batch_us[kind]), float(jobs.share_us[at])),
            bool(self._probes[kind] > 0),
            bool(jobs.batch_probe[kind]),
            bool(jobs.may_inline[kind]),
        )

    def add(self, at: int, decision: Decision) -> None:
        """Count a job in for which so was decided."""
        if decision.strategy is not Strategy.INLINE and decision.strategy is not Strategy.DROP:
            self._backlog_s += float(self._candidates.share_us[at]) / 1e6
        if decision.reason == "probe":
            self._probes[self._candidates.kind[at]] -= 1


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


def _adaptive_rows(
    compute_cost: Array,
    scaling_potential: Array,
    budget_ms: Array,
    kind: Array,
    run_us: Array,
    share_us: Array,
    samples: Array,
    p95_factor: Array,
    batch_gain: Array,
    batch_us: Array,
    probes: Array,
    batch_probe: Array,
    may_inline: Array,
    elsewhere: Array,
    probing: Array,
    cold_samples: int,
    idle: bool,
    many: bool,
    waiting: int,
    backlog_s: float,
    left: float,
    stretch: float,
    loop_lag_ms: float,
    elapsed_ms: float,
    off_ns: float,
    queue_capacity: int,
    max_wait_ns: float,
    max_loop_lag_ns: float,
    batch_min_gain: float,
    inline_max_cost: int,
    spawn_max_cost: int,
    batch_min_scaling: float,
    codes: Array,
    excess_s: Array,
) -> None:
    loop_lag_ns = loop_lag_ms * 1e6
    for i in range(len(codes)):
        k = kind[i]
        budget_ns = (budget_ms[i] - loop_lag_ms - elapsed_ms) * 1e6
        if math.isnan(budget_ns):
            budget_ns = math.inf
        run_ns = run_us[i] * 1e3
        warm = samples[k] >= cold_samples
        p95_ns = run_us[i] * p95_factor[k] * 1e3
        wait_ns = 0.0 if idle else backlog_s * 1e9 / left
        code = _adaptive_rule(
            compute_cost[i],
            scaling_potential[i],
            budget_ns,
            warm,
            _inline_pays(run_ns, p95_ns, budget_ns, off_ns),
            run_ns,
            p95_ns,
            batch_gain[k],
            max(batch_us[k], share_us[i]) * 1e3,
            probes[k] > 0,
            batch_probe[k] != 0,
            may_inline[k] != 0,
            idle,
            many,
            waiting,
            wait_ns,
            wait_ns,
            stretch,
            loop_lag_ns,
            queue_capacity,
            max_wait_ns,
            max_loop_lag_ns,
            batch_min_gain,
            inline_max_cost,
            spawn_max_cost,
            batch_min_scaling,
        )
        codes[i] = code
        if elsewhere[code]:
            backlog_s += share_us[i] / 1e6
        if probing[code]:
            probes[k] -= 1
        excess_s[i] = (
            _excess_of(
                code,
                budget_ns,
                budget_ms[i] * 1e6,
                p95_ns * stretch if warm else 0.0,
                waiting,
                wait_ns,
                loop_lag_ns,
                queue_capacity,
                max_wait_ns,
                max_loop_lag_ns,
            )
            / 1e9
        )


static_rows = jit(
    "void(uint64[::1], float64[::1], uint64, uint64, uint64, uint64, float64, float64, uint8[::1])",
    sources=(_static_rows, static_rule),
)(_static_rows)

adaptive_rows = jit(
    "void(uint64[::1], float64[::1], float64[::1], int32[::1], float64[::1], float64[::1], "
    "int64[::1], float64[::1], float64[::1], float64[::1], int64[::1], uint8[::1], uint8[::1], "
    "uint8[::1], uint8[::1], "
    "int64, boolean, boolean, int64, float64, float64, float64, float64, float64, float64, int64, "
    "float64, float64, float64, uint64, uint64, float64, uint8[::1], float64[::1])",
    sources=(_adaptive_rows, adaptive_rule, inline_pays, excess_of),
)(_adaptive_rows)


def warm_up(stop: Callable[[], bool]) -> None:
    """Compile the rules, or read them from the disk cache; what is left is left, once `stop()`."""
    for rows in (static_rows, adaptive_rows):
        if not stop():
            compile_once(rows)


Decided = tuple[Array, list[Decision], Array | None]
"""One code a job, the decisions of which they are positions, and seconds after which to retry."""


def decide_static(candidates: Candidates, load: Load, config: RouterConfig) -> Decided:
    """Return `StaticPolicy`'s decision for each job: the same function, in one compiled loop."""
    codes = np.empty(len(candidates), np.uint8)
    compile_once(static_rows)(
        candidates.compute_cost,
        candidates.scaling_potential,
        load.cpu_busy,
        config.busy_threshold,
        config.inline_max_cost,
        config.spawn_max_cost,
        float(config.batch_min_scaling),
        float(config.pressure_batch_min_scaling),
        codes,
    )
    return codes, list(DECISIONS), None


def decide_adaptive(candidates: Candidates, load: Load, config: RouterConfig) -> Decided:
    """Return `AdaptivePolicy`'s, likewise, with the backlog carried from job to job."""
    codes = np.empty(len(candidates), np.uint8)
    excess_s = np.empty(len(candidates))
    many = load.sharers > 1
    idle = load.cpu_busy < config.cpu_parallelism and not many
    compile_once(adaptive_rows)(
        candidates.compute_cost,
        candidates.scaling_potential,
        candidates.budget_ms,
        candidates.kind,
        candidates.run_us,
        candidates.share_us,
        candidates.samples,
        candidates.p95_factor,
        candidates.batch_gain,
        candidates.batch_us,
        candidates.probes.copy(),
        candidates.batch_probe,
        candidates.may_inline,
        ELSEWHERE,
        PROBING,
        config.cold_samples,
        idle,
        many,
        load.waiting,
        load.backlog_s,
        slots_left(config.cpu_parallelism, load.cpu_left),
        stretch_of(load, config),
        load.loop_lag_ms,
        load.elapsed_ms,
        hand_off_ns(load.hop_us * 1e3, idle, load.waiting, load.sharers),
        config.queue_capacity,
        config.max_backlog_ms * 1e6,
        config.max_loop_lag_ms * 1e6,
        float(config.batch_min_gain),
        config.inline_max_cost,
        config.spawn_max_cost,
        float(config.batch_min_scaling),
        codes,
        excess_s,
    )
    return codes, list(DECISIONS), excess_s
