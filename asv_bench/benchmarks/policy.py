"""What one decision costs."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import helixnb

from .timing import ratio

POLICIES = ["StaticPolicy", "AdaptivePolicy"]
COSTS = {"small": 640, "large": 1_000_000}


def three(job: Any, load: Any, config: Any) -> None:
    """Stand for a policy that takes three arguments."""


def four(job: Any, load: Any, config: Any, estimate: Any) -> None:
    """Stand for a policy that takes an estimate too."""


class Decide:
    """A thousand decisions, one by one, under a resting load."""

    params = [POLICIES, list(COSTS)]
    param_names = ["policy", "job"]

    def setup(self, policy: str, job: str) -> None:
        if not hasattr(helixnb, policy):
            raise NotImplementedError(f"this commit has no {policy}")
        decide = getattr(helixnb, policy)().decide
        asked = helixnb.Job(id=1, kind="HashMix", inputs=(1, 2, 3), compute_cost=COSTS[job])
        arguments: tuple[Any, ...] = (
            asked,
            helixnb.Load(cpu_busy=0),
            helixnb.RouterConfig(cpu_parallelism=2),
        )
        bare: Any = three
        if len(inspect.signature(decide).parameters) > len(arguments):
            from helixnb import _records

            arguments += (_records.Estimate(),)  # type: ignore[attr-defined, unused-ignore]
            bare = four
        self.decide = functools.partial(thousand, decide, arguments)
        self.bare = functools.partial(thousand, bare, arguments)

    def time_1000_decisions(self, policy: str, job: str) -> None:
        self.decide()

    def track_over_bare_call(self, policy: str, job: str) -> float:
        return ratio(self.decide, self.bare)

    track_over_bare_call.unit = "x"  # type: ignore[attr-defined]


def thousand(function: Any, arguments: tuple[Any, ...]) -> None:
    """Call a function a thousand times."""
    for _ in range(1_000):
        function(*arguments)
