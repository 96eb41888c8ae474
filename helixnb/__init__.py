"""An adaptive compute router: it answers how a job should run, right now."""

from helixnb._config import RouterConfig, available_cpus
from helixnb._core.policy import AdaptivePolicy, Policy, StaticPolicy
from helixnb._decider import Explanation
from helixnb._errors import (
    ConfigError,
    HelixError,
    JobCancelled,
    JobDropped,
    JobError,
    RouterStateError,
    UnknownKindError,
)
from helixnb._kernels import UserKernel, kernel
from helixnb._observe.stats import Latency, Stats, StrategyStats
from helixnb._records import Decision, Estimate, Job, Load, Outcome, Status, Strategy
from helixnb._router import Router
from helixnb._ticket import Ticket
from helixnb.columns import BlockOutcomes, JobBlock, JobColumns, Outcomes
from helixnb_kernels import Kernel, KernelError

__version__ = "0.1.0"

__all__ = [
    "AdaptivePolicy",
    "BlockOutcomes",
    "ConfigError",
    "Decision",
    "Estimate",
    "Explanation",
    "HelixError",
    "Job",
    "JobBlock",
    "JobCancelled",
    "JobColumns",
    "JobDropped",
    "JobError",
    "Kernel",
    "KernelError",
    "Latency",
    "Load",
    "Outcome",
    "Outcomes",
    "Policy",
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
    "available_cpus",
    "kernel",
]
