"""Watching what becomes of jobs: all that matters of each, and never more than asked for."""

from __future__ import annotations

import json

import pytest
from support import Always, Gate, job, router, submit_all

from helixnb import JobRecord, Strategy

pytestmark = pytest.mark.anyio


async def test_the_latest_jobs_are_kept_in_order() -> None:
    async with router(policy=Always(Strategy.INLINE)) as r:
        await r.submit(job(100))
        with r.watch(4) as watch:
            assert watch.latest() == []
            await submit_all(r, [job(i, latency_budget_ms=50.0) for i in range(6)])
            assert watch.seen == 6
            kept = watch.latest()
            assert [each.job_id for each in kept] == [2, 3, 4, 5]
            assert [each.number for each in kept] == [2, 3, 4, 5]
            assert watch.latest(4) == kept[2:]
            assert watch.latest(6) == []
        await r.submit(job(200))
        assert (watch.seen, watch.latest()) == (6, kept)
        with watch:  # again
            await r.submit(job(300))
        assert [each.job_id for each in watch.latest(6)] == [300]


async def test_a_record_has_all_that_an_outcome_has_but_the_value() -> None:
    gate = Gate()
    async with router(gate.kernel, policy=Always(Strategy.SPAWN), cpu_parallelism=1) as r:
        with r.watch() as watch:
            first = r.submit_soon(job(1, "Gate"))
            await gate.begun()
            second = r.submit_soon(job(2, "Gate", latency_budget_ms=9_000.0))
            gate.open()
            outcomes = [await first.wait(), await second.wait()]
        records = watch.latest()
    for record, outcome in zip(records, outcomes, strict=True):
        for name in ("job_id", "kind", "decided", "strategy", "status", "reason"):
            assert getattr(record, name) == getattr(outcome, name)
        assert record.latency_ms == outcome.latency_ms
        assert record.latency_budget_ms == outcome.latency_budget_ms
        assert record.jobs == 1
        assert record.queue_ms is not None
        assert 0 <= record.queue_ms <= record.latency_ms
    assert [each.reason for each in records] == ["test", "spawn_saturated"]
    assert records[1].decided is Strategy.SPAWN
    assert not hasattr(JobRecord, "value")


async def test_jobs_that_never_began_waited_for_nothing() -> None:
    async with router(policy=Always(Strategy.DROP)) as r:
        with r.watch() as watch:
            await r.submit(job(1))
    (record,) = watch.latest()
    assert (record.strategy, record.status, record.queue_ms) == ("drop", "dropped", None)


async def test_jobs_in_columns_come_together() -> None:
    async with router() as r:
        with r.watch() as watch:
            await r.submit_many([job(i, compute_cost=100_000) for i in range(1_000)])
        records = watch.latest()
    assert sum(each.jobs for each in records) == 1_000
    assert len(records) < 500
    for each in records:
        assert (each.job_id, each.decided, each.latency_budget_ms) == (None, None, None)
        assert (each.kind, each.reason) == ("HashMix", "in_columns")


async def test_many_watch() -> None:
    async with router() as r:
        with r.watch() as one:
            await r.submit(job(1))
            with r.watch() as other:
                await r.submit(job(2))
            await r.submit(job(3))
    assert [each.job_id for each in one.latest()] == [1, 2, 3]
    assert [each.job_id for each in other.latest()] == [2]


async def test_watching_starts_before_the_router_opens() -> None:
    r = router()
    with r.watch() as watch:
        async with r:
            await r.submit(job(1))
    assert watch.seen == 1


@pytest.mark.parametrize("capacity", [0, -1])
async def test_what_can_not_be_kept(capacity: int) -> None:
    with pytest.raises(ValueError, match=f"capacity must be at least 1, got {capacity}"):
        router().watch(capacity)


async def test_stats_are_fit_for_json() -> None:
    """Also while some number is infinite, which JSON doesn't know."""
    async with router(heed_other_cpu_use=False) as r:
        await r.submit(job(1))
        stats = r.stats()
        assert stats.cpu_left is None
        assert json.loads(json.dumps(stats.as_dict(), allow_nan=False)) == stats.as_dict()
