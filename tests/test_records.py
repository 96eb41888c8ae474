"""Jobs: what they declare, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from support import job

from helixnb import Job, JobError


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("job_id", -1, r"id must lie in 0 .. 2\*\*64-1, got -1"),
        ("job_id", 2**64, r"id must lie in 0 .. 2\*\*64-1, got 18446744073709551616"),
        ("job_id", 1.0, r"id must be an integer in 0 .. 2\*\*64-1, got 1.0"),
        ("job_id", True, "id must be an integer"),
        ("compute_cost", -1, r"compute_cost must lie in 0 .. 2\*\*64-1, got -1"),
        ("compute_cost", 2**64, r"compute_cost must lie in 0 .. 2\*\*64-1"),
        ("compute_cost", "9", "compute_cost must be an integer in .*, got '9'"),
        ("compute_cost", math.nan, "compute_cost must be an integer in .*, got nan"),
        ("kind", 3, "kind must be the name of a kernel, got 3"),
        ("scaling_potential", -0.01, r"scaling_potential must lie in 0 .. 1, got -0.01"),
        ("scaling_potential", 1.01, r"scaling_potential must lie in 0 .. 1, got 1.01"),
        ("scaling_potential", math.nan, r"scaling_potential must lie in 0 .. 1, got nan"),
        ("scaling_potential", 10**400, r"scaling_potential must be a number in 0 .. 1, got 10+"),
        ("latency_budget_ms", 10**400, r"latency_budget_ms must be .*, got 10+"),
        ("scaling_potential", "1", r"scaling_potential must be a number in 0 .. 1, got '1'"),
        ("scaling_potential", None, r"scaling_potential must be a number in 0 .. 1, got None"),
        ("latency_budget_ms", -1, r"latency_budget_ms must be .* >= 0, or None, got -1"),
        ("latency_budget_ms", math.nan, "latency_budget_ms must be .*, got nan"),
        ("latency_budget_ms", math.inf, "latency_budget_ms must be .*, or None, got inf"),
        ("latency_budget_ms", "5", "latency_budget_ms must be .*, got '5'"),
        ("latency_budget_ms", True, "latency_budget_ms must be .*, got True"),
    ],
)
def test_a_job_that_cant_be(field: str, value: Any, message: str) -> None:
    """A wrong field raises when the job is made, naming field, value and range."""
    with pytest.raises(JobError, match=message):
        job(**{field: value})


@pytest.mark.parametrize("number", [0, 2**64 - 1, np.uint64(2**64 - 1), np.int8(3)])
def test_extreme_and_numpy_integers_are_taken(number: Any) -> None:
    """Ids and costs may be any uint64, and become plain ints."""
    made = job(job_id=number, compute_cost=number)
    assert made.id == made.compute_cost == int(number)
    assert type(made.id) is type(made.compute_cost) is int


@pytest.mark.parametrize("budget", [None, 0, 5, 0.25, np.float32(2)])
def test_budgets(budget: Any) -> None:
    """A budget is any number of milliseconds, or none."""
    assert job(latency_budget_ms=budget).latency_budget_ms == budget


def test_what_a_job_must_say() -> None:
    """Id, kind and cost are required; the rest has a meaning when left out."""
    made = Job(id=1, kind="HashMix", compute_cost=2)
    assert (made.inputs, made.scaling_potential, made.latency_budget_ms) == ((), 0.0, None)
    with pytest.raises(TypeError, match="compute_cost"):
        Job(id=1, kind="HashMix")  # type: ignore[call-arg]


def test_a_job_cant_be_changed() -> None:
    """What was checked stays as it is."""
    with pytest.raises(AttributeError):
        job().compute_cost = 5  # type: ignore[misc]
