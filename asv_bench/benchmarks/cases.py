"""Jobs of the light mix as columns, and the formulas as straight Numba loops."""

from __future__ import annotations

import random
from typing import Any

import numba
import numpy as np

from helixnb.workload import COSTS
from helixnb_kernels import BUILT_IN, warm_up

KERNELS = {kernel.name: kernel for kernel in BUILT_IN}
KINDS = list(KERNELS)


class Columns:
    """A number of light-mix jobs of one kind, as `Kernel.run_batch` takes them."""

    def __init__(self, kind: str, jobs: int) -> None:
        self.kernel = KERNELS[kind]
        warm_up([self.kernel])
        draw = random.Random(f"{kind} {jobs}")
        self.costs = [draw.randint(*COSTS[kind]) for _ in range(jobs)]
        self.ids = list(range(jobs))
        self.inputs = [
            self.kernel.as_inputs([draw.randint(0, 200_000) for _ in range(draw.randint(2, 6))])
            for _ in range(jobs)
        ]
        flat = np.concatenate(self.inputs)
        offsets = np.cumsum([0] + [len(each) for each in self.inputs])
        costs, ids = np.array(self.costs, np.uint64), np.array(self.ids, np.uint64)
        self.out = np.empty(jobs, np.float64 if kind == "MonteCarlo" else np.uint64)
        self.straight_args = (flat, offsets, costs, ids, self.out)
        parts, failed = np.array([0, jobs]), np.zeros(jobs, np.uint8)
        self.batch_args = (flat, offsets, parts, costs, ids, failed, self.out)
        # The first commits' batch forms take neither offsets nor parts.
        form: Any = self.kernel.serial
        self.fits = form is None or form.py_func.__code__.co_argcount == len(self.batch_args)
        self.straight = STRAIGHT[kind]
        self.run_straight()

    def run_solo(self) -> list[Any]:
        """Run the jobs one after the other, from Python."""
        solo = self.kernel.solo
        return [solo(*job) for job in zip(self.inputs, self.costs, self.ids, strict=True)]

    def run_batch(self, threads: int) -> list[Any]:
        """Run them in one call, columns gathered and values listed as the router does."""
        result = self.kernel.run_batch(self.inputs, self.costs, self.ids, threads=threads)
        return result.values

    def run_straight(self) -> list[Any]:
        """Run them in one call of a straight loop over the formula, on one thread."""
        self.straight(*self.straight_args)
        values: list[Any] = self.out.tolist()
        return values

    def run_columns(self) -> None:
        """Run them in one call of the serial batch form, with the columns at hand."""
        if self.kernel.serial is not None:
            self.kernel.serial(*self.batch_args)


U = np.uint64


@numba.njit(nogil=True, error_model="numpy")
def hash_mix(flat: Any, offsets: Any, costs: Any, ids: Any, out: Any) -> None:
    """Compute each job by the formula, as it is written down."""
    for i in range(len(out)):
        x = U(0xCBF29CE484222325)
        for v in flat[offsets[i] : offsets[i + 1]]:
            x ^= v
            x *= U(0x100000001B3)
            x ^= x >> U(33)
            x *= U(0xFF51AFD7ED558CCD)
            x ^= x >> U(33)
            x *= U(0xC4CEB9FE1A85EC53)
            x ^= x >> U(33)
        for _ in range(max(costs[i] // U(64), U(1))):
            x = ((x << U(7)) | (x >> U(57))) ^ U(0x9E3779B97F4A7C15)
            x *= U(0xBF58476D1CE4E5B9)
        out[i] = x


@numba.njit(nogil=True, error_model="numpy")
def prime_count(flat: Any, offsets: Any, costs: Any, ids: Any, out: Any) -> None:
    """Sieve all numbers up to n for each job."""
    for i in range(len(out)):
        n = np.int64(min(max(costs[i], U(10_000)), U(250_000)))
        flags = np.ones(n + 1, np.uint8)
        count = 0
        for p in range(2, n + 1):
            if flags[p]:
                count += 1
                j = p * p
                while j <= n:
                    flags[j] = 0
                    j += p
        out[i] = count


@numba.njit(nogil=True, error_model="numpy")
def monte_carlo(flat: Any, offsets: Any, costs: Any, ids: Any, out: Any) -> None:
    """Draw and sort all returns of each job."""
    for i in range(len(out)):
        mean = 0.0
        volatility = 1.0
        for v in flat[offsets[i] : offsets[i + 1]]:
            mean += (np.float64(v) / 18446744073709551615.0) * 0.0001
            r = (v << U(13)) | (v >> U(51))
            volatility += ((np.float64(r) / 18446744073709551615.0) - 0.5) * 0.01
        simulations = np.int64(min(max(costs[i] // U(200), U(5_000)), U(50_000)))
        samples = np.empty(simulations)
        s = U(0x123456789ABCDEF0) ^ ids[i]
        for k in range(simulations):
            s ^= s >> U(12)
            s ^= s << U(25)
            s ^= s >> U(27)
            u = (np.float64(s * U(0x2545F4914F6CDD1D)) / 18446744073709551615.0) * 2.0 - 1.0
            samples[k] = mean + (u * 0.05) * max(volatility, 0.1)
        samples.sort()
        out[i] = samples[int(simulations * 0.05)]


STRAIGHT = {"HashMix": hash_mix, "PrimeCount": prime_count, "MonteCarlo": monte_carlo}
