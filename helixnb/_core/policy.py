"""Policies: a job and the load in, a decision out. Pure, total, and the same each time."""

from __future__ import annotations

import math
from typing import Protocol

from helixnb._config import RouterConfig
from helixnb._core.rules import (
    DECISIONS,
    adaptive_rule,
    excess_of,
    hand_off_ns,
    inline_pays,
    slots_left,
    static_rule,
)
from helixnb._records import Decision, Estimate, Job, Load, Strategy

COLD = Estimate()


def wait_ns_of(load: Load, config: RouterConfig, strategy: Strategy = Strategy.CPU_POOL) -> float:
    """Return how long a job that comes now waits until a slot has done what comes before."""
    if load.cpu_busy < config.cpu_parallelism and load.sharers == 1:
        return 0.0
    backlog_s = load.batch_backlog_s if strategy is Strategy.BATCH else load.backlog_s
    return backlog_s * 1e9 / slots_left(config.cpu_parallelism, load.cpu_left)


def stretch_of(load: Load, config: RouterConfig) -> float:
    """Return how many times longer than its CPU time a job takes, since CPUs are shared."""
    slots = config.cpu_parallelism
    return max(1.0, min(load.cpu_busy + 1, slots) / slots_left(slots, load.cpu_left))


class Policy(Protocol):
    """What a router asks for each job, on its event loop: be quick, and don't raise.

    An error that `decide` raises reaches the caller of `submit`; the job counts as never
    submitted.

    A policy may have an attribute ``adaptive``. If that is true, the router learns what jobs take,
    holds them to their budgets, so that one that waits for longer is dropped (``expired``), and
    releases a batch as soon as a slot is free. Else estimates stay cold, and the load has only
    what costs nothing: busy slots, waiting jobs and the loop's lag.
    """

    def decide(self, job: Job, load: Load, config: RouterConfig, estimate: Estimate) -> Decision:
        """Choose a strategy for `job` under `load`."""
        ...


class StaticPolicy:
    """HelixRouter's policy: thresholds on cost, scaling potential and busy slots.

    At or above the busy threshold a job that scales is batched and any other is dropped. Below
    it, small jobs run inline, medium ones are spawned, and of the large ones those that scale
    are batched and the others pooled. The budget and the estimate are never read.
    """

    adaptive = False

    def decide(
        self,
        job: Job,
        load: Load,
        config: RouterConfig,
        estimate: Estimate = COLD,  # noqa: ARG002  # as of every policy
    ) -> Decision:
        """Choose a strategy for `job` under `load`; see the class."""
        return DECISIONS[
            static_rule(
                job.compute_cost,
                job.scaling_potential,
                load.cpu_busy,
                config.busy_threshold,
                config.inline_max_cost,
                config.spawn_max_cost,
                config.batch_min_scaling,
                config.pressure_batch_min_scaling,
            )
        ]


class AdaptivePolicy:
    """Decides by predicted finish time, with the budget as the bound.

    In this order:

    1. The job has a budget, and the event loop is later than ``max_loop_lag_ms``: dropped
       (``loop_saturated``).
    2. The job takes less time than to let it run elsewhere, and no more than a millisecond, and
       95 % of such jobs fit what is left of its budget: inline, whatever waits elsewhere. Not so if
       one of its kind has held up the event loop lately (`Estimate.may_inline`).
    3. Neither alone nor in a batch would it end within its budget: dropped (``infeasible``), but
       for one job of the kind each ``probe_interval_s`` in which none ran (``probe``).
    4. A slot is free: spawned.
    5. Too much waits, as jobs or as time: dropped (``queue_full``).
    6. Its kind is known to gain from batches, or the job says that it scales while that isn't
       known, and the batch would end within the budget: batched.
    7. Else it is pooled.

    A kind with fewer than ``cold_samples`` runs has only what its author declared. There
    `StaticPolicy`'s thresholds say where a job runs; rules 1 and 5, and the wait of 3, hold. But a
    job runs inline only if its author declared its time, and that is a millisecond or less. And of
    the jobs that rules 3 and 5 would drop for the time that others take, as many run as the kind
    needs to be known (``probe``).
    """

    adaptive = True

    def decide(
        self, job: Job, load: Load, config: RouterConfig, estimate: Estimate = COLD
    ) -> Decision:
        """Choose a strategy for `job` under `load`; see the class."""
        budget_ms = job.latency_budget_ms
        # The loop came to the job as late as to anything, and will come to its outcome so.
        lag_ns = load.loop_lag_ms * 1e6
        budget_ns = math.inf
        if budget_ms is not None:
            budget_ns = (budget_ms - load.loop_lag_ms - load.elapsed_ms) * 1e6
        run_ns = estimate.run_us * 1e3
        many = load.sharers > 1
        idle = load.cpu_busy < config.cpu_parallelism and not many
        wait_ns = wait_ns_of(load, config)
        stretch = stretch_of(load, config)
        warm = estimate.samples >= config.cold_samples
        p95_ns = estimate.p95_us * 1e3
        code = adaptive_rule(
            job.compute_cost,
            job.scaling_potential,
            budget_ns,
            warm,
            inline_pays(
                run_ns,
                p95_ns,
                budget_ns,
                hand_off_ns(load.hop_us * 1e3, idle, load.waiting, load.sharers),
            ),
            run_ns,
            p95_ns,
            estimate.batch_gain,
            estimate.batch_us * 1e3,
            estimate.probe,
            estimate.batch_probe,
            estimate.may_inline,
            idle,
            many,
            load.waiting,
            wait_ns,
            wait_ns_of(load, config, Strategy.BATCH),
            stretch,
            lag_ns,
            config.queue_capacity,
            config.max_backlog_ms * 1e6,
            config.max_loop_lag_ms * 1e6,
            config.batch_min_gain,
            config.inline_max_cost,
            config.spawn_max_cost,
            config.batch_min_scaling,
        )
        decision = DECISIONS[code]
        if decision.strategy is not Strategy.DROP:
            return decision
        excess_ns = excess_of(
            code,
            budget_ns,
            math.inf if budget_ms is None else budget_ms * 1e6,
            p95_ns * stretch if warm else 0.0,
            load.waiting,
            wait_ns,
            lag_ns,
            config.queue_capacity,
            config.max_backlog_ms * 1e6,
            config.max_loop_lag_ms * 1e6,
        )
        if math.isnan(excess_ns):
            return decision
        return Decision(decision.strategy, decision.reason, excess_ns / 1e9)
