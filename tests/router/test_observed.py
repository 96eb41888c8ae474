"""What is seen: the routing log and the statistics."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
import pytest
from support import Always, Gate, check_balanced, job, router

from helixnb import Router, RouterConfig, StaticPolicy, Strategy
from helixnb._core.counts import LatencyWindow
from helixnb._observe.stats import summarise

pytestmark = pytest.mark.anyio


async def test_one_line_a_job(caplog: pytest.LogCaptureFixture) -> None:
    """The line has every field in order, and the record has them too."""
    with caplog.at_level(logging.DEBUG, "helixnb.route"):
        config = RouterConfig(cpu_parallelism=2, hop_us=50, heed_other_cpu_use=False)
        async with Router(config, policy=StaticPolicy(), clock=lambda: 0) as r:
            await r.submit(
                job(123, "PrimeCount", [], 98_324, scaling_potential=0.31, latency_budget_ms=32)
            )
            await r.submit(job(124, compute_cost=1))
    first, second = caplog.records
    assert first.getMessage() == (
        "route job_id=123 kind=PrimeCount cost=98324 scaling=0.31 latency_budget_ms=32 "
        "strategy=cpu_pool cpu_busy=0 reason=large waiting=0 backlog_s=0.0 "
        "batch_backlog_s=0.0 cpu_left=inf "
        "loop_lag_ms=0.0 hop_us=50 sharers=1 elapsed_ms=0.0 samples=0 run_us=inf p95_us=inf "
        "batch_gain=0.0 batch_us=inf probe=False batch_probe=False"
    )
    assert second.getMessage().startswith(
        "route job_id=124 kind=HashMix cost=1 scaling=0.5 latency_budget_ms=None "
        "strategy=inline cpu_busy=0 reason=small waiting=0 "
    )
    assert first.levelno == logging.DEBUG
    fields = {name: getattr(first, name) for name in ("job_id", "kind", "cost", "scaling")}
    assert fields == {"job_id": 123, "kind": "PrimeCount", "cost": 98_324, "scaling": 0.31}
    assert (first.strategy, first.cpu_busy, first.reason) == (  # type: ignore[attr-defined]
        "cpu_pool",
        0,
        "large",
    )


async def test_decided_and_executed_are_both_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Where a job runs otherwise than decided, the line says how and why."""
    gate = Gate()
    with caplog.at_level(logging.DEBUG, "helixnb.route"):
        async with router(
            gate.kernel, policy=Always(Strategy.SPAWN), cpu_parallelism=1, queue_capacity=1
        ) as r:
            for i in range(3):
                r.submit_soon(job(i, "Gate"))
            gate.open()
    lines = [record.getMessage() for record in caplog.records]
    assert "strategy=spawn cpu_busy=0 reason=test" in lines[0]
    assert "strategy=spawn cpu_busy=1 executed=cpu_pool reason=spawn_saturated" in lines[1]
    assert "strategy=spawn cpu_busy=1 executed=drop reason=queue_full" in lines[2]


async def test_the_log_costs_nothing_where_nobody_listens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Above DEBUG no record is made."""
    logger = logging.getLogger("helixnb.route")
    monkeypatch.setattr(logger, "makeRecord", None)  # calling it would raise
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.manager._clear_cache()  # type: ignore[attr-defined]  # as setLevel does
    async with router() as r:
        await r.submit(job())


async def test_a_record_factory_of_the_applications_own(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another part of the application sets the same names, the line is there all the same."""

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = logging.LogRecord(*args, **kwargs)
        record.job_id = "theirs"
        return record

    monkeypatch.setattr(logging, "_logRecordFactory", factory)
    with caplog.at_level(logging.DEBUG, "helixnb.route"):
        async with router(policy=Always(Strategy.DROP)) as r:
            await r.submit(job(5))
    assert "route job_id=5 kind=HashMix" in caplog.text
    check_balanced(r.stats())


async def test_stats_are_a_frozen_snapshot() -> None:
    """They don't move with the router, can't be written, and turn into JSON."""
    async with router(policy=Always(Strategy.INLINE)) as r:
        await r.submit(job(latency_budget_ms=1e6))
        before = r.stats()
        await r.submit(job())
        after = r.stats()
    assert (before.completed, after.completed) == (1, 2)
    with pytest.raises(AttributeError):
        before.completed = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        before.by_strategy["inline"] = None  # type: ignore[index]
    check_balanced(after)
    record = json.loads(json.dumps(after.as_dict()))
    assert record["completed"] == record["by_strategy"]["inline"]["routed"] == 2
    assert record["by_strategy"]["inline"]["latency"]["count"] == 2
    assert record["by_strategy"]["spawn"]["latency"]["p99_ms"] is None
    assert list(record["by_strategy"]) == [strategy.value for strategy in Strategy]


def test_latency_quantiles() -> None:
    """Average over all, quantiles over the window, in fractions of a millisecond."""
    window = LatencyWindow(size=100)
    for latency_us in range(1, 201):
        window.record(latency_us * 1_000)
    summary = summarise(window)
    assert summary.count == 200
    assert summary.avg_ms == pytest.approx(0.1005)
    kept = np.arange(101, 201) / 1_000
    expected = np.quantile(kept, [0.50, 0.95, 0.99])
    assert [summary.p50_ms, summary.p95_ms, summary.p99_ms] == pytest.approx(expected)
