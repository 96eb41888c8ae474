"""Kernels: solo, batched, and beside a straight loop; a user's own."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

import helixnb_kernels
from helixnb_kernels import prime_count, warm_up

from .cases import KINDS, Columns
from .timing import ratio, seconds


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
        if not self.columns.fits:
            raise NotImplementedError("this commit's batches take other columns")
        if self.columns.run_batch(threads) != self.columns.run_straight():
            raise AssertionError("a batch must give the straight loop's answers")

    def time_batch(self, kind: str, jobs: int, threads: int) -> None:
        self.columns.run_batch(threads)

    def track_microseconds_per_job(self, kind: str, jobs: int, threads: int) -> float:
        return seconds(lambda: self.columns.run_batch(threads)) / jobs * 1e6

    track_microseconds_per_job.unit = "us"  # type: ignore[attr-defined]


class BatchKernel:
    """The serial batch form alone, with the columns at hand."""

    params = [KINDS, [8, 64, 1_024]]
    param_names = ["kind", "jobs"]
    rounds = 4  # with several commits in turn, a spoilt round is a quarter of the samples

    def setup(self, kind: str, jobs: int) -> None:
        self.columns = Columns(kind, jobs)
        if not self.columns.fits:
            raise NotImplementedError("this commit's batches take other columns")

    def time_kernel(self, kind: str, jobs: int) -> None:
        self.columns.run_columns()

    def track_over_straight_loop(self, kind: str, jobs: int) -> float:
        return ratio(self.columns.run_columns, self.columns.run_straight)

    track_over_straight_loop.unit = "x"  # type: ignore[attr-defined]


class StandAlone:
    """prime_count of a large n."""

    params = [1, 2]
    param_names = ["threads"]

    def setup(self, threads: int) -> None:
        if "threads" not in inspect.signature(prime_count).parameters:
            raise NotImplementedError("this commit counts on one thread")
        if prime_count(10**8, threads=threads) != 5_761_455:
            raise AssertionError("prime_count(10**8) is wrong")

    def time_prime_count_1e8(self, threads: int) -> None:
        prime_count(10**8, threads=threads)


def norm(inputs: Any) -> Any:
    """Stand for a user's kernel: Euclidean length."""
    total = 0.0
    for x in inputs:
        total += x * x
    return np.sqrt(total)


class UserKernel:
    """A derived batch beside solo calls: 1,024 jobs of 32 numbers."""

    def setup(self) -> None:
        if not hasattr(helixnb_kernels, "kernel"):
            raise NotImplementedError("this commit takes no kernels of users")
        self.kernel = helixnb_kernels.kernel(inputs="float64[:]", returns="float64")(norm)
        warm_up([self.kernel])
        rows = np.random.default_rng(0).normal(size=(1_024, 32))
        self.inputs = [self.kernel.as_inputs(row) for row in rows]
        self.ones = [1] * 1_024

    def time_solo(self) -> None:
        for each in self.inputs:
            self.kernel.solo_call(each, 1, 1)()

    def time_batch(self) -> None:
        self.kernel.run_batch(self.inputs, self.ones, self.ones)

    def track_batch_over_solo(self) -> float:
        return ratio(self.time_batch, self.time_solo)

    track_batch_over_solo.unit = "x"  # type: ignore[attr-defined]
