"""What several test modules need: jobs, policies, and kernels that wait or fail on request."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from helixnb import (
    Decision,
    Estimate,
    Job,
    Kernel,
    Load,
    Outcome,
    Router,
    RouterConfig,
    StaticPolicy,
    Stats,
    Strategy,
)
from helixnb_kernels import BUILT_IN

DATA = Path(__file__).parent / "data"
EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
IN_THREADS = (Strategy.SPAWN, Strategy.CPU_POOL, Strategy.BATCH)
LARGE = 100_000
"""A cost above every threshold, for callables that shall not run inline."""


@cache
def original() -> list[dict[str, Any]]:
    """Return the 600 jobs that the original router answered, each with its `answer`."""
    rows = []
    for line in (DATA / "original_600.jsonl").read_text().splitlines():
        row = json.loads(line)
        bits = row["output"].get("f64_bits")
        row["answer"] = (
            row["output"]["u64"]
            if bits is None
            else struct.unpack("<d", struct.pack("<Q", bits))[0]
        )
        rows.append(row)
    return rows


def job_of(row: dict[str, Any]) -> Job:
    """Return a row of the original as a job."""
    return Job(
        id=row["id"],
        kind=row["kind"],
        inputs=row["inputs"],
        compute_cost=row["compute_cost"],
        scaling_potential=row["scaling_potential"],
        latency_budget_ms=row["latency_budget_ms"],
    )


def job(
    job_id: int = 0,
    kind: str = "HashMix",
    inputs: Any = (),
    compute_cost: int = 640,
    scaling_potential: float = 0.5,
    latency_budget_ms: float | None = None,
) -> Job:
    """Make a job, valid unless told otherwise."""
    return Job(
        id=job_id,
        kind=kind,
        inputs=inputs,
        compute_cost=compute_cost,
        scaling_potential=scaling_potential,
        latency_budget_ms=latency_budget_ms,
    )


class Always:
    """A policy that chooses one strategy for every job, until told another."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy

    def decide(self, job: Job, load: Load, config: RouterConfig, estimate: Estimate) -> Decision:
        return Decision(self.strategy, "test")


class Gate:
    """A kernel whose jobs wait in their thread until the gate opens.

    They announce themselves as long, so that each is a chunk of its own, unless told otherwise.
    """

    def __init__(self, name: str = "Gate", ns_per_work: float = 1e5) -> None:
        self.ran: list[int] = []
        self._begun = threading.Semaphore(0)
        self._open = threading.Event()
        self.kernel = Kernel(name=name, solo=self._solo, ns_per_work=ns_per_work)

    def _solo(self, inputs: Any, compute_cost: int, job_id: int) -> int:
        self.ran.append(job_id)
        self._begun.release()
        if not self._open.wait(30):
            raise TimeoutError("the gate never opened")
        return job_id

    def open(self) -> None:
        """Let every job through, now and from now on."""
        self._open.set()

    def open_once(self, holds: Callable[[], bool]) -> None:
        """Open when something has come about, while whoever calls this goes on."""

        def wait() -> None:
            wait_until(holds)
            self.open()

        threading.Thread(target=wait).start()

    async def begun(self, jobs: int = 1) -> None:
        """Wait until so many further jobs are in their threads."""
        for _ in range(jobs):
            if not await anyio.to_thread.run_sync(self._begun.acquire, True, 30):
                raise TimeoutError("no job began")


def debian(program: str, package: str) -> str:
    """Return where a program is; a test that needs it is skipped where it isn't, but not in CI."""
    found = shutil.which(program)
    if found is None:
        if "HELIXNB_TEST_BROWSER" in os.environ:
            pytest.fail(f"{program} is missing: install Debian's package {package}")
        pytest.skip(f"needs {program}, of Debian's package {package}")
    return found


def python(
    *arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter, with changes to the environment; its warnings are errors too."""
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        env={**os.environ, **(env or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def run_pytest(
    directory: Path, *arguments: str, plugins: tuple[str, ...] = ("anyio",)
) -> subprocess.CompletedProcess[str]:
    """Run pytest in a fresh interpreter, with no plugins but these: all of them take a second."""
    (directory / "pytest.ini").touch()  # whatever directory this is in, nothing else configures it
    return python(
        *("-m", "pytest", "-q", "--color=no", "-p", "no:cacheprovider"),
        *(word for plugin in plugins for word in ("-p", plugin)),
        *arguments,
        env={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        cwd=directory,
    )


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait, 30 s at most, for what other threads do."""
    pause = threading.Event()
    for _ in range(3_000):
        if holds():
            return
        pause.wait(0.01)
    raise TimeoutError


def threads_in_use() -> int:
    """Count threads, without the idle ones that trio keeps for 10 s."""
    return sum(not thread.name.startswith("Trio thread ") for thread in threading.enumerate())


class Picky(Exception):
    """What the picky kernel raises."""


def _picky(inputs: Any, compute_cost: int, job_id: int) -> int:
    if job_id % 3 == 0:
        raise Picky(f"job {job_id}")
    return job_id


PICKY = Kernel(name="Picky", solo=_picky)
"""Fails for every third job, by id."""


async def submit_all(router: Router, jobs: Iterable[Job]) -> list[Outcome]:
    """Submit jobs one by one, all before any runs, and wait for their outcomes."""
    tickets = [router.submit_soon(each) for each in jobs]
    return [await ticket.wait() for ticket in tickets]


def router(*kernels: Kernel, policy: Any = None, **settings: Any) -> Router:
    """Make a router with two slots, the built-in kernels and `kernels`; static by default."""
    settings = {"cpu_parallelism": 2, "batch_max_delay_ms": 1.0, "drain_timeout_s": 5.0} | settings
    policy = StaticPolicy() if policy is None else policy
    return Router(RouterConfig(**settings), kernels=(*BUILT_IN, *kernels), policy=policy)


def check_balanced(stats: Stats, *, idle: bool = True) -> None:
    """Check that no job was lost or counted twice, and nothing leaked."""
    ended = stats.completed + stats.dropped + stats.failed + stats.cancelled
    assert stats.submitted == stats.in_flight + ended
    assert sum(each.routed for each in stats.by_strategy.values()) == ended
    assert sum(each.decided for each in stats.by_strategy.values()) == stats.submitted
    assert sum(stats.dropped_by_reason.values()) == stats.dropped
    assert sum(each.latency.count for each in stats.by_strategy.values()) == stats.completed
    assert stats.within_budget <= stats.completed
    if idle:
        assert (stats.in_flight, stats.waiting, stats.cpu_busy) == (0, 0, 0)


def numpy_price(option: tuple[float, ...], pairs: int, seed: int) -> list[float]:
    """Price with whole arrays, from the same SplitMix64 numbers."""
    spot, strike, rate, volatility, maturity = option
    with np.errstate(over="ignore"):
        z: Any = np.uint64(seed + 1) * np.uint64(0x94D049BB133111EB)
        z = z + np.uint64(0x9E3779B97F4A7C15) * np.arange(1, 2 * pairs + 1, dtype=np.uint64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    u, v = (((z >> np.uint64(11)) + 0.5) / 2**53).reshape(pairs, 2).T
    normal = np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v)
    drift = (rate - volatility**2 / 2) * maturity
    scale = volatility * np.sqrt(maturity)
    ends = [spot * np.exp(drift + sign * scale * normal) for sign in (1, -1)]
    payoff = sum(np.maximum(end - strike, 0) for end in ends) / 2 * np.exp(-rate * maturity)
    return [float(payoff.mean()), float(payoff.std() / math.sqrt(pairs))]
