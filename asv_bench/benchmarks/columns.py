"""`submit_many`: the light mix by the thousand, as columns and as jobs."""

from __future__ import annotations

import dataclasses
import time
from statistics import median
from typing import Any

import anyio
import numpy as np

import helixnb
from helixnb import Router, RouterConfig
from helixnb.workload import COSTS, light_mix

from .cases import KERNELS
from .router import BACKENDS

JOBS = 20_000


def light_columns(jobs: int, seed: int, *, budgets: bool = False) -> Any:
    """Make the light mix as columns, distributed as `light_mix` draws it."""
    draw, draw_budget = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    kinds = draw.choice(3, jobs, p=(0.3375, 0.55, 0.1125))
    blocks = []
    for code, kind in enumerate(("HashMix", "PrimeCount", "MonteCarlo")):
        ids = np.flatnonzero(kinds == code).astype(np.uint64)
        own = len(ids)
        offsets = np.concatenate(([0], np.cumsum(draw.integers(2, 7, own))))
        least, most = COSTS[kind]
        blocks.append(
            helixnb.JobBlock(
                kind,
                draw.integers(0, 200_001, offsets[-1]).astype(np.uint64),
                offsets=offsets,
                compute_cost=draw.integers(least, most + 1, own).astype(np.uint64),
                scaling_potential=draw.random(own),
                latency_budget_ms=draw_budget.integers(5, 81, own) if budgets else None,
                id=ids,
            )
        )
    order = np.empty(jobs, np.int64)
    order[np.concatenate([block.id for block in blocks]).astype(np.int64)] = np.arange(jobs)
    return helixnb.JobColumns(blocks, order)


def answers(columns: Any) -> dict[str, Any]:
    """Run the kernels over columns without a router; returns the values of each kind."""
    values = {}
    for block in columns.blocks:
        kernel = KERNELS[block.kind]
        own = kernel.as_columns(block.inputs, block.offsets, block.compute_cost, block.id)
        values[block.kind], _, _ = kernel.run_columns(own, 0, len(block))
    return values


async def many_seconds(jobs: Any, rounds: int) -> float:
    """Return the median time of a call with these jobs, on a router of its own."""
    taken = []
    async with Router(RouterConfig()) as router:
        for _ in range(rounds):
            began = time.perf_counter()
            outcomes = await router.submit_many(jobs)
            taken.append(time.perf_counter() - began)
        if router.stats().completed != rounds * len(outcomes):
            raise AssertionError("every job must complete")
    return median(taken)


class SubmitMany:
    """A call with 20,000 jobs of the light mix, kernels included."""

    params = [["asyncio", "uvloop"], ["columns", "jobs"]]
    param_names = ["backend", "given"]
    timeout = 300

    def setup(self, backend: str, given: str) -> None:
        if not hasattr(helixnb, "JobColumns"):
            raise NotImplementedError  # a commit without columns
        self.columns = light_columns(JOBS, 1)
        self.jobs = self.columns
        if given == "jobs":
            self.jobs = [
                dataclasses.replace(job, latency_budget_ms=None) for job in light_mix(JOBS, 1)
            ]
        answers(self.columns)

    def track_microseconds_per_job(self, backend: str, given: str) -> float:
        return anyio.run(many_seconds, self.jobs, 9, **BACKENDS[backend]) / JOBS * 1e6

    def track_over_kernels_alone(self, backend: str, given: str) -> float:
        """Over the same kernel calls on one thread, a call a kind."""
        ratios = []
        for _ in range(5):
            began = time.perf_counter()
            answers(self.columns)
            alone = time.perf_counter() - began
            ratios.append(anyio.run(many_seconds, self.jobs, 3, **BACKENDS[backend]) / alone)
        return median(ratios)

    track_microseconds_per_job.unit = "us"  # type: ignore[attr-defined]
    track_over_kernels_alone.unit = "x"  # type: ignore[attr-defined]
