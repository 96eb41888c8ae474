"""Configuration: defaults, checks, and the CPUs that there are."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest

from helixnb import ConfigError, RouterConfig, available_cpus
from helixnb._config import _cgroup_quota


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cpu_parallelism": 0}, "cpu_parallelism must be at least 1 and below .*, got 0"),
        ({"cpu_parallelism": 2.0}, "cpu_parallelism must be an integer, got 2.0"),
        ({"cpu_parallelism": True}, "cpu_parallelism must be an integer, got True"),
        ({"queue_capacity": 0}, "queue_capacity must be at least 1 .*, got 0"),
        ({"backpressure_busy_threshold": 0}, "backpressure_busy_threshold must be at least 1"),
        (
            {"cpu_parallelism": 4, "backpressure_busy_threshold": 5},
            r"backpressure_busy_threshold must be at most cpu_parallelism \(4\), got 5",
        ),
        ({"inline_max_cost": -1}, "inline_max_cost must be at least 0 .*, got -1"),
        ({"spawn_max_cost": 2**64}, "spawn_max_cost must be at least 0 and below"),
        (
            {"inline_max_cost": 9, "spawn_max_cost": 8},
            r"inline_max_cost must be at most spawn_max_cost \(8\), got 9",
        ),
        ({"batch_min_scaling": 1.5}, r"batch_min_scaling must lie in 0 .. 1, got 1.5"),
        ({"batch_min_scaling": math.nan}, r"batch_min_scaling must lie in 0 .. 1, got nan"),
        ({"pressure_batch_min_scaling": "1"}, "pressure_batch_min_scaling must be a number"),
        ({"batch_max_jobs": 0}, "batch_max_jobs must be at least 1"),
        ({"batch_max_delay_ms": -1}, r"batch_max_delay_ms must lie in 0 .. 1e\+09, got -1"),
        ({"batch_max_delay_ms": math.inf}, r"batch_max_delay_ms must lie in .*, got inf"),
        ({"drain_timeout_s": math.nan}, r"drain_timeout_s must lie in .*, got nan"),
        ({"drain_timeout_s": 10**400}, r"drain_timeout_s must lie in 0 .. 1e\+09, got 10+"),
        ({"max_job_s": -1}, r"max_job_s must lie in 0 .. 1e\+09, got -1"),
        ({"parallel_kernels": "always"}, "parallel_kernels must be 'auto' or 'never', got"),
    ],
)
def test_a_configuration_that_cant_be(changes: dict[str, Any], message: str) -> None:
    """It is refused as a whole, naming field, value and what is allowed."""
    with pytest.raises(ConfigError, match=message):
        RouterConfig(**changes)
    with pytest.raises(ConfigError, match=message):
        RouterConfig(cpu_parallelism=4).replace(**changes)


def test_an_unknown_setting() -> None:
    """A misspelt setting is refused, with those that there are."""
    with pytest.raises(ConfigError, match="no setting is named 'batch_size'; there are cpu_par"):
        RouterConfig().replace(batch_size=3)


@pytest.mark.parametrize(("parallelism", "threshold"), [(1, 1), (2, 1), (3, 2), (8, 7)])
def test_the_default_threshold_follows_parallelism(parallelism: int, threshold: int) -> None:
    """One slot below all of them counts as pressure, and at least one."""
    config = RouterConfig(cpu_parallelism=parallelism)
    assert config.busy_threshold == threshold
    assert config.replace(backpressure_busy_threshold=1).busy_threshold == 1


def test_the_originals_settings() -> None:
    """They are HelixRouter's defaults."""
    config = RouterConfig.original()
    assert (config.cpu_parallelism, config.busy_threshold, config.queue_capacity) == (8, 7, 512)
    assert (config.batch_max_jobs, config.batch_max_delay_ms) == (8, 10.0)
    assert (config.inline_max_cost, config.spawn_max_cost) == (8_000, 60_000)
    assert (config.batch_min_scaling, config.pressure_batch_min_scaling) == (0.70, 0.65)


def test_available_cpus_follow_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPUs that the process may run on are what counts, unless a quota is tighter."""
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("no CPU affinity on this platform")
    assert 1 <= available_cpus() <= len(os.sched_getaffinity(0))
    monkeypatch.setattr("helixnb._config._cgroup_quota", lambda: 0.5)
    assert available_cpus() == 1


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "nonsense\n"}, None),
        ({}, None),
    ],
)
def test_cgroup_quotas(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    """Both versions of control groups are read; none, or an odd one, is no quota."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert _cgroup_quota(tmp_path) == quota
