"""An adaptive compute router: it answers how a job should run, right now."""

import importlib
from typing import TYPE_CHECKING, Any

from helixnb._config import RouterConfig, available_cpus
from helixnb._core.policy import AdaptivePolicy, Policy, StaticPolicy
from helixnb._decider import Explanation
from helixnb._errors import (
    ConfigError,
    HelixError,
    JobCancelled,
    JobDropped,
    JobError,
    JobFailed,
    RouterStateError,
    UnknownKindError,
)
from helixnb._kernels import UserKernel, kernel
from helixnb._observe.stats import Latency, Stats, StrategyStats
from helixnb._records import Decision, Estimate, Job, Load, Outcome, Status, Strategy
from helixnb._router import Router
from helixnb._ticket import Ticket
from helixnb._version import __version__ as __version__
from helixnb.columns import BlockOutcomes, JobBlock, JobColumns, Outcomes
from helixnb_kernels import Kernel, KernelError

if TYPE_CHECKING:
    from helixnb._blocking import BlockingRouter, BlockingTicket
    from helixnb._observe.metrics import METRICS, Distribution, Metric, Reading
    from helixnb._observe.watch import JobRecord, Watch

_LATER = {
    "BlockingRouter": "helixnb._blocking",
    "BlockingTicket": "helixnb._blocking",
    "Distribution": "helixnb._observe.metrics",
    "JobRecord": "helixnb._observe.watch",
    "METRICS": "helixnb._observe.metrics",
    "Metric": "helixnb._observe.metrics",
    "Reading": "helixnb._observe.metrics",
    "Watch": "helixnb._observe.watch",
}
"""What few programs name, and where it is: to import it takes 5 % of the time that Numba does."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_LATER[name]), name)
    return value


__all__ = [
    "METRICS",
    "AdaptivePolicy",
    "BlockOutcomes",
    "BlockingRouter",
    "BlockingTicket",
    "ConfigError",
    "Decision",
    "Distribution",
    "Estimate",
    "Explanation",
    "HelixError",
    "Job",
    "JobBlock",
    "JobCancelled",
    "JobColumns",
    "JobDropped",
    "JobError",
    "JobFailed",
    "JobRecord",
    "Kernel",
    "KernelError",
    "Latency",
    "Load",
    "Metric",
    "Outcome",
    "Outcomes",
    "Policy",
    "Reading",
    "Router",
    "RouterConfig",
    "RouterStateError",
    "StaticPolicy",
    "Stats",
    "Status",
    "Strategy",
    "StrategyStats",
    "Ticket",
    "UnknownKindError",
    "UserKernel",
    "Watch",
    "available_cpus",
    "kernel",
]
