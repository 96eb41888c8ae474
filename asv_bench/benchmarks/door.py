"""What it costs to make a job and blocks of jobs, from arrays that fit."""

from __future__ import annotations

from typing import Any

import numpy as np

import helixnb
from helixnb import Job


def total(x: Any) -> Any:
    """Add up."""
    return x.sum()


class Door:
    """One job, by a kernel and by name; nothing is submitted or compiled."""

    def setup(self) -> None:
        self.kernel = helixnb.kernel(inputs="float64[:]", returns="float64")(total)
        self.inputs = np.arange(8.0)

    def time_kernel_job(self) -> None:
        for _ in range(1_000):
            self.kernel.job(self.inputs, latency_budget_ms=5.0)

    def time_job(self) -> None:
        for i in range(1_000):
            Job(id=i, kind="K", inputs=self.inputs, compute_cost=8, latency_budget_ms=5.0)


class DoorOfBlocks:
    """A block of rows, every column of the dtype that it has."""

    params = [1_000, 1_000_000]
    param_names = ["jobs"]

    def setup(self, jobs: int) -> None:
        self.fields: dict[str, Any] = {
            "inputs": np.ones((jobs, 4)),
            "compute_cost": np.full(jobs, 640, np.uint64),
            "scaling_potential": np.full(jobs, 0.5),
            "latency_budget_ms": np.full(jobs, 1e3),
            "id": np.arange(jobs, dtype=np.uint64),
        }

    def time_block(self, jobs: int) -> None:
        helixnb.JobBlock("K", **self.fields)
