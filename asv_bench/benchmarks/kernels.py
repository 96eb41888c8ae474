"""Kernels: solo, batched and beside a straight loop; a user's own; warm starts and imports."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from helixnb_kernels import kernel, prime_count, warm_up

from .cases import KINDS, Columns


def seconds(run: Callable[[], Any], repeats: int = 9) -> float:
    """Return the median time of a call, each long enough to be measured."""
    began = time.perf_counter()
    run()
    calls = max(1, int(0.005 / max(time.perf_counter() - began, 1e-7)))
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(calls):
            run()
        taken.append((time.perf_counter() - began) / calls)
    return median(taken)


class Solo:
    """64 jobs of the light mix, one call each."""

    params = KINDS
    param_names = ["kind"]

    def setup(self, kind: str) -> None:
        self.columns = Columns(kind, 64)

    def time_64_jobs(self, kind: str) -> None:
        self.columns.run_solo()

    def track_microseconds_per_job(self, kind: str) -> float:
        return seconds(self.columns.run_solo) / 64 * 1e6

    track_microseconds_per_job.unit = "us"  # type: ignore[attr-defined]


class Batch:
    """A batch of the light mix in one call, gathered and listed as the router does."""

    params = [KINDS, [8, 64, 1_024], [1, 2]]
    param_names = ["kind", "jobs", "threads"]

    def setup(self, kind: str, jobs: int, threads: int) -> None:
        self.columns = Columns(kind, jobs)
        if self.columns.run_batch(threads) != self.columns.run_straight():
            raise AssertionError("a batch must give the straight loop's answers")

    def time_batch(self, kind: str, jobs: int, threads: int) -> None:
        self.columns.run_batch(threads)

    def track_microseconds_per_job(self, kind: str, jobs: int, threads: int) -> float:
        return seconds(lambda: self.columns.run_batch(threads)) / jobs * 1e6

    def track_microseconds_per_job_in_columns(self, kind: str, jobs: int, threads: int) -> float:
        return seconds(self.columns.run_columns) / jobs * 1e6 if threads == 1 else float("nan")

    def track_gain_over_straight_loop(self, kind: str, jobs: int, threads: int) -> float:
        straight = seconds(self.columns.run_straight)
        return straight / seconds(lambda: self.columns.run_batch(threads))

    track_microseconds_per_job.unit = "us"  # type: ignore[attr-defined]
    track_microseconds_per_job_in_columns.unit = "us"  # type: ignore[attr-defined]
    track_gain_over_straight_loop.unit = "x"  # type: ignore[attr-defined]


class StandAlone:
    """prime_count of a large n."""

    params = [1, 2]
    param_names = ["threads"]

    def setup(self, threads: int) -> None:
        if prime_count(10**8, threads=threads) != 5_761_455:
            raise AssertionError("prime_count(10**8) is wrong")

    def time_prime_count_1e8(self, threads: int) -> None:
        prime_count(10**8, threads=threads)


@kernel(inputs="float64[:]", returns="float64")
def norm(inputs: Any) -> Any:
    """Stand for a user's kernel: Euclidean length."""
    total = 0.0
    for x in inputs:
        total += x * x
    return np.sqrt(total)


class UserKernel:
    """A derived batch beside solo calls: 1,024 jobs of 32 numbers."""

    def setup(self) -> None:
        warm_up([norm])
        rows = np.random.default_rng(0).normal(size=(1_024, 32))
        self.inputs = [norm.as_inputs(row) for row in rows]
        self.ones = [1] * 1_024

    def time_solo(self) -> None:
        for each in self.inputs:
            norm.solo_call(each, 1, 1)()

    def time_batch(self) -> None:
        norm.run_batch(self.inputs, self.ones, self.ones)

    def track_batch_gain(self) -> float:
        return seconds(self.time_solo) / seconds(self.time_batch)

    track_batch_gain.unit = "x"  # type: ignore[attr-defined]


class Start:
    """Fresh processes: imports, and kernels from the disk cache."""

    timeout = 120

    def setup(self) -> None:
        self._run("from helixnb_kernels import BUILT_IN, warm_up; warm_up(BUILT_IN)")

    def _run(self, program: str) -> None:
        subprocess.run([sys.executable, "-c", program], check=True)

    def track_import_over_numba(self) -> float:
        numba = seconds(lambda: self._run("import numba"))
        return seconds(lambda: self._run("import helixnb")) / numba

    def track_warm_start_seconds(self) -> float:
        warm = seconds(lambda: self._run("from helixnb_kernels import *; warm_up(BUILT_IN)"))
        return warm - seconds(lambda: self._run("from helixnb_kernels import *"))

    track_import_over_numba.unit = "x"  # type: ignore[attr-defined]
    track_warm_start_seconds.unit = "s"  # type: ignore[attr-defined]
