"""Policies: a job and the load in, a decision out. Pure, total, and the same each time."""

from __future__ import annotations

from typing import Protocol

from helixnb._config import RouterConfig
from helixnb._core.rules import DECISIONS, static_rule
from helixnb._records import Decision, Job, Load


class Policy(Protocol):
    """What a router asks for each job, on its event loop: be quick, and don't raise.

    An error that `decide` raises reaches the caller of `submit`; the job counts as never
    submitted.
    """

    def decide(self, job: Job, load: Load, config: RouterConfig) -> Decision:
        """Choose a strategy for `job` under `load`."""
        ...


class StaticPolicy:
    """HelixRouter's policy: thresholds on cost, scaling potential and busy slots.

    At or above the busy threshold a job that scales is batched and any other is dropped. Below
    it, small jobs run inline, medium ones are spawned, and of the large ones those that scale
    are batched and the others pooled. The budget is never read.
    """

    def decide(self, job: Job, load: Load, config: RouterConfig) -> Decision:
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
