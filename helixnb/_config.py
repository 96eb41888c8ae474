"""How a router is set: one frozen record, checked as a whole."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from helixnb._errors import ConfigError
from helixnb_kernels._values import as_integer, as_real, listed, shown


def available_cpus() -> int:
    """Count the CPUs this process may use: its affinity, and its cgroup's quota, rounded up."""
    import psutil  # takes 20 ms, so not for whoever only imports this

    try:
        cpus = len(psutil.Process().cpu_affinity())
    except AttributeError:  # macOS has no affinity
        cpus = os.cpu_count() or 1
    quota = _cgroup_quota()
    return cpus if quota is None else max(1, min(cpus, math.ceil(quota)))


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the CPU quota of this process's cgroup in CPUs, None where there is none."""
    try:
        if (root / "cpu.max").exists():  # version 2
            quota, period = (root / "cpu.max").read_text().split()
        else:  # version 1
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


LONGEST = 1e9
"""The largest delay or timeout, in its unit."""

LEAST = 1e-3
"""The least of those that can't be 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig:
    """The settings of a router. Each can be changed on a running one: `Router.reconfigure`.

    Parameters
    ----------
    cpu_parallelism
        CPU slots: how many threads run kernels at once, over all strategies. At least 1; the
        CPUs this process may use by default.
    queue_capacity
        How many jobs may wait at once, over all strategies; the next one is dropped
        (``queue_full``). At least 1.
    backpressure_busy_threshold
        Busy slots from which on a job is batched or dropped, 1 .. `cpu_parallelism`. None, the
        default, stands for one below `cpu_parallelism`, at least 1.
    inline_max_cost, spawn_max_cost
        The largest compute cost that runs inline, and that is spawned. 0 .. 2**64-1, and inline
        not above spawn.
    batch_min_scaling
        The least scaling potential that is batched rather than pooled, 0 to 1.
    pressure_batch_min_scaling
        The same at or above the busy threshold, rather than dropped.
    batch_max_jobs
        A batch is released at this size, at least 1.
    batch_max_delay_ms
        A batch is released this many milliseconds after its oldest job came; 0 or more.
    max_backlog_ms
        `AdaptivePolicy` drops a job (``queue_full``) that would have to wait for longer than this
        many milliseconds; 0 or more.
    max_loop_lag_ms
        `AdaptivePolicy` drops jobs with a budget (``loop_saturated``) while the event loop is later
        than this many milliseconds; 0.001 or more.
    batch_min_gain
        How many times less a job must take in a batch than alone for `AdaptivePolicy` to batch
        it; 1 or more. Until that is known, `batch_min_scaling` decides.
    heed_other_cpu_use
        Whether `AdaptivePolicy` reckons with the CPU that other processes take.
    cold_samples
        Timed runs of a kind below which `AdaptivePolicy` goes by cost and scaling potential. At
        least 1.
    sample_half_life
        Timed runs of a kind after which an older one counts half in its estimate. At least 1.
    probe_interval_s
        Seconds after which `AdaptivePolicy` admits one job of a kind that seems infeasible, since
        it may not be any more; 0.001 or more.
    batch_probe_interval_s
        Seconds after which it batches a few jobs of a kind that seems to gain nothing from that,
        likewise; 0.001 or more. Where no batch was large enough to tell, `probe_interval_s` counts.
    queue_target_ms
        If all jobs wait this many milliseconds longer than twice what was predicted, for twenty
        times as long, `AdaptivePolicy` lets the newest be served first. 0.001 or more.
    hop_us
        What it takes to send a thread or to hear from one, in microseconds; None to measure it
        when the router opens. 0.001 or more.
    parallel_kernels
        ``"auto"`` runs a batch on several threads where it is worth it, ``"never"`` on one.
        ``"never"`` leaves Numba's threading layer alone, which keeps later forks possible under
        OpenMP. Changed on a running router to ``"auto"``, it is for kernels added from then on.
    max_job_s
        Seconds of predicted work from which on a job is dropped (``too_large``): a thread can't
        be stopped, so this bounds for how long a single job, not a batch of them, may keep the
        router from being left. 0 or more. What is not
        predicted, the callables of `Router.run`, isn't bounded.
    drain_timeout_s
        How long closing waits for jobs in flight, in seconds; 0 or more.
    trace_jobs
        Whether each job is traced, by an OpenTelemetry span. Kernels in plain Python see their
        caller's context variables then.

    Raises
    ------
    ConfigError
        A field has a wrong type, is out of range, or contradicts another one.
    """

    cpu_parallelism: int = field(default_factory=available_cpus)
    queue_capacity: int = 512
    backpressure_busy_threshold: int | None = None
    inline_max_cost: int = 8_000
    spawn_max_cost: int = 60_000
    batch_min_scaling: float = 0.70
    pressure_batch_min_scaling: float = 0.65
    batch_max_jobs: int = 64
    batch_max_delay_ms: float = 2.0
    max_backlog_ms: float = 250.0
    max_loop_lag_ms: float = 20.0
    batch_min_gain: float = 1.2
    heed_other_cpu_use: bool = True
    cold_samples: int = 8
    sample_half_life: int = 200
    probe_interval_s: float = 1.0
    batch_probe_interval_s: float = 10.0
    queue_target_ms: float = 5.0
    hop_us: float | None = None
    parallel_kernels: Literal["auto", "never"] = "auto"
    max_job_s: float = 30.0
    drain_timeout_s: float = 10.0
    trace_jobs: bool = False

    def __post_init__(self) -> None:
        _check_integer(self, "cpu_parallelism", 1)
        _check_integer(self, "queue_capacity", 1)
        _check_integer(self, "inline_max_cost", 0)
        _check_integer(self, "spawn_max_cost", 0)
        _check_integer(self, "batch_max_jobs", 1)
        _check_integer(self, "cold_samples", 1)
        _check_integer(self, "sample_half_life", 1)
        _check_number(self, "batch_min_scaling", 1.0)
        _check_number(self, "pressure_batch_min_scaling", 1.0)
        _check_number(self, "batch_max_delay_ms", LONGEST)
        _check_number(self, "drain_timeout_s", LONGEST)
        _check_number(self, "max_job_s", LONGEST)
        _check_number(self, "max_backlog_ms", LONGEST)
        _check_number(self, "batch_min_gain", LONGEST, least=1)
        for name in (
            "max_loop_lag_ms",
            "probe_interval_s",
            "batch_probe_interval_s",
            "queue_target_ms",
        ):
            _check_number(self, name, LONGEST, least=LEAST)
        if self.hop_us is not None:
            _check_number(self, "hop_us", LONGEST, least=LEAST)
        for name in ("heed_other_cpu_use", "trace_jobs"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ConfigError(f"{name} must be True or False, got {shown(value)}")
        if self.backpressure_busy_threshold is not None:
            _check_integer(self, "backpressure_busy_threshold", 1)
            if self.backpressure_busy_threshold > self.cpu_parallelism:
                raise ConfigError(
                    f"backpressure_busy_threshold must be at most cpu_parallelism "
                    f"({self.cpu_parallelism}), got {self.backpressure_busy_threshold}: with more, "
                    "it would never be reached"
                )
        if self.inline_max_cost > self.spawn_max_cost:
            raise ConfigError(
                f"inline_max_cost must be at most spawn_max_cost ({self.spawn_max_cost}), "
                f"got {self.inline_max_cost}"
            )
        parallel: Any = self.parallel_kernels
        if not isinstance(parallel, str) or parallel not in ("auto", "never"):
            raise ConfigError(f"parallel_kernels must be 'auto' or 'never', got {shown(parallel)}")
        object.__setattr__(self, "parallel_kernels", str.__str__(parallel))

    @property
    def busy_threshold(self) -> int:
        """The busy threshold in effect, with the default worked out."""
        if self.backpressure_busy_threshold is None:
            return max(1, self.cpu_parallelism - 1)
        return self.backpressure_busy_threshold

    @classmethod
    def original(cls) -> Self:
        """Return HelixRouter's default settings: 8 slots, busy from 7, batches of 8 or 10 ms."""
        return cls(
            cpu_parallelism=8,
            backpressure_busy_threshold=7,
            batch_max_jobs=8,
            batch_max_delay_ms=10.0,
        )

    def replace(self, /, **changes: Any) -> Self:
        """Return a copy with some fields changed, checked as a whole.

        Raises
        ------
        ConfigError
            A name isn't a field's, or the result can't be.
        """
        names = [each.name for each in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                raise ConfigError(f"no setting is named {shown(name)}; there are {listed(names)}")
        return dataclasses.replace(self, **changes)


def _check_integer(config: RouterConfig, name: str, least: int) -> None:
    given = getattr(config, name)
    value = as_integer(given)
    if value is None:
        raise ConfigError(f"{name} must be an integer, got {shown(given)}")
    if not least <= value < 2**64:
        raise ConfigError(f"{name} must be at least {least} and below 2**64, got {shown(value)}")
    object.__setattr__(config, name, value)


def _check_number(config: RouterConfig, name: str, most: float, least: float = 0) -> None:
    given = getattr(config, name)
    try:
        value = as_real(given)
    except OverflowError:
        value = math.inf
    if value is None:
        raise ConfigError(f"{name} must be a number, got {shown(given)}")
    if not least <= value <= most:  # false for NaN
        raise ConfigError(f"{name} must lie in {least:g} .. {most:g}, got {shown(given)}")
    object.__setattr__(config, name, value)
