"""Snapshots of a router's counts; everything that takes time is worked out when read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from helixnb._core.counts import LatencyWindow
from helixnb._core.lifecycle import Ledger
from helixnb._records import Status, Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Milliseconds from submit to outcome, over completed jobs.

    Attributes
    ----------
    count
        How many jobs completed.
    avg_ms
        Mean over all of them.
    p50_ms, p95_ms, p99_ms
        Quantiles over the latest 4,096, by linear interpolation. All are None before the first.
    """

    count: int
    avg_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyStats:
    """Counts of one strategy.

    Attributes
    ----------
    decided
        Jobs for which the policy chose it.
    routed
        Jobs that ended on it, whatever their status.
    latency
        Of the jobs that completed on it.
    """

    decided: int
    routed: int
    latency: Latency


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """A snapshot of a router.

    Attributes
    ----------
    state
        ``new``, ``opening``, ``open``, ``closing``, ``closed`` or ``crashed``.
    submitted
        Jobs taken in: `in_flight` + `completed` + `dropped` + `failed` + `cancelled`, always.
    within_budget
        Completed jobs that met their budget or had none.
    by_strategy
        For each strategy, by its name.
    dropped_by_reason
        Dropped jobs by the reason.
    cpu_busy, cpu_parallelism
        CPU slots in use and in all.
    waiting, queue_capacity
        Jobs in queues, and how many may be.
    batches, batched_jobs
        Kernel calls made for batches, and the jobs in them.
    parallel_launches
        Those of the batches that ran on several threads.
    threading_layer
        Numba's threading layer in this process, None while it has none.
    loop_lag_ms
        How late the event loop gets round to what is due, in milliseconds.
    cpu_left
        CPUs that other processes and the event loop leave to the slots; None while that isn't
        measured.
    hop_us
        What it takes to send a thread or to hear from one, in microseconds.
    shadow_compared, shadow_disagreements
        Jobs that a shadow policy was asked for, and those for which it chose another strategy.
    inline_overruns
        Jobs that ran on the event loop and took far longer than predicted, more than 2 to 5 ms;
        each kept its kind off the event loop for a while.
    """

    state: str
    submitted: int
    in_flight: int
    completed: int
    dropped: int
    failed: int
    cancelled: int
    within_budget: int
    by_strategy: Mapping[str, StrategyStats]
    dropped_by_reason: Mapping[str, int]
    cpu_busy: int
    cpu_parallelism: int
    waiting: int
    queue_capacity: int
    batches: int
    batched_jobs: int
    parallel_launches: int
    threading_layer: str | None
    loop_lag_ms: float
    cpu_left: float | None
    hop_us: float
    shadow_compared: int
    shadow_disagreements: int
    inline_overruns: int

    def as_dict(self) -> dict[str, Any]:
        """Return the snapshot as plain dicts, numbers and strings, fit for JSON."""
        return dataclasses.asdict(self)


def summarise(window: LatencyWindow) -> Latency:
    """Work out average and quantiles of a window."""
    if window.count == 0:
        return Latency(count=0, avg_ms=None, p50_ms=None, p95_ms=None, p99_ms=None)
    p50, p95, p99 = np.quantile(np.array(window.kept_ns()), (0.50, 0.95, 0.99)) / 1e6
    return Latency(
        count=window.count,
        avg_ms=window.sum_ns / window.count / 1e6,
        p50_ms=float(p50),
        p95_ms=float(p95),
        p99_ms=float(p99),
    )


def snapshot(ledger: Ledger, **state: Any) -> Stats:
    """Freeze a ledger's counts, next to the rest of the router's `state`."""
    routed, by_status, counts = ledger.routed, ledger.by_status, ledger.counts
    releases = list(counts.releases.values())
    by_strategy = {
        strategy.value: StrategyStats(
            decided=ledger.decided[strategy.code],
            routed=routed[strategy.code],
            latency=summarise(counts.windows[strategy.code]),
        )
        for strategy in Strategy
    }
    return Stats(
        submitted=ledger.submitted,
        in_flight=ledger.in_flight,
        completed=by_status[Status.COMPLETED.code],
        dropped=by_status[Status.DROPPED.code],
        failed=by_status[Status.FAILED.code],
        cancelled=by_status[Status.CANCELLED.code],
        within_budget=ledger.within_budget,
        by_strategy=by_strategy,
        dropped_by_reason=ledger.dropped_by_reason,
        batches=sum(sizes.count for sizes in releases),
        batched_jobs=sum(sizes.sum for sizes in releases),
        shadow_compared=counts.shadow_compared,
        shadow_disagreements=counts.shadow_disagreements,
        inline_overruns=counts.inline_overruns,
        **state,
    )
