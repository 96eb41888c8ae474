"""Spans of jobs, of batches and of calls with columns, and how they hang together."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from opentelemetry.trace import StatusCode
from support import LARGE, PICKY, Always, Gate, Picky, check_balanced, job, submit_all

from helixnb import Kernel, Router, RouterConfig, StaticPolicy, Strategy
from helixnb._core.policy import Policy
from helixnb._exec import work
from helixnb._observe import tracing
from helixnb_kernels import BUILT_IN

pytestmark = pytest.mark.anyio


class Traced:
    """A router that traces its jobs, and what it has traced."""

    def __init__(
        self, *kernels: Kernel, policy: Policy | None = None, provider: Any = None, **settings: Any
    ) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider() if provider is None else provider
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test")
        settings = {"cpu_parallelism": 2, "trace_jobs": True} | settings
        self.router = Router(
            RouterConfig(**settings),
            kernels=(*BUILT_IN, *kernels),
            policy=StaticPolicy() if policy is None else policy,
            tracer_provider=self.provider,
        )

    def spans(self, start: str = "") -> list[ReadableSpan]:
        """Return what has ended and whose name starts so, in the order of its beginning."""
        found = [s for s in self._exporter.get_finished_spans() if s.name.startswith(start)]
        return sorted(found, key=lambda span: span.start_time or 0)

    def span(self, start: str) -> ReadableSpan:
        """Return the only one."""
        (span,) = self.spans(start)
        return span


def ids(spans: Sequence[ReadableSpan]) -> set[int]:
    return {span.get_span_context().span_id for span in spans}  # type: ignore[union-attr]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def linked(span: ReadableSpan) -> set[int]:
    return {link.context.span_id for link in span.links}


@pytest.mark.parametrize("strategy", Strategy)
async def test_a_span_a_job(strategy: Strategy) -> None:
    """Below the caller's, from submit to outcome, with what is known of both."""
    traced = Traced(policy=Always(strategy), batch_max_delay_ms=0.0)
    async with traced.router as r:
        with traced.tracer.start_as_current_span("caller") as caller:
            outcome = await r.submit(job(2**64 - 1, latency_budget_ms=1_000.0))
            assert trace.get_current_span() is caller
    span = traced.span("job")
    assert span.name == "job HashMix"
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "helixnb"
    assert span.parent is not None
    assert span.parent.span_id == caller.get_span_context().span_id
    found = attributes(span)
    queue_s = found.pop("helixnb.queue.duration", None)
    assert found == {
        "kind": "HashMix",
        "strategy": outcome.strategy.value,
        "outcome": outcome.status.value,
        "reason": outcome.reason,
        "helixnb.job.id": str(2**64 - 1),
        "helixnb.job.decided": strategy.value,
        "helixnb.job.budget": 1.0,
    }
    assert span.start_time is not None
    assert span.end_time is not None
    lasted_ms = (span.end_time - span.start_time) / 1e6
    assert lasted_ms >= outcome.latency_ms - 0.05  # two clocks
    if strategy is Strategy.DROP:
        assert queue_s is None
    else:
        assert isinstance(queue_s, float)
        assert 0 <= queue_s <= lasted_ms / 1e3
    assert span.status.status_code is StatusCode.UNSET


async def test_only_on_request() -> None:
    """Which may be made and taken back while the router runs."""
    traced = Traced(trace_jobs=False)
    async with traced.router as r:
        await r.submit(job(1))
        await r.submit_many([job(1)])
        r.reconfigure(trace_jobs=True)
        await r.submit(job(2))
        r.reconfigure(trace_jobs=False)
        await r.submit(job(3))
    assert attributes(traced.span(""))["helixnb.job.id"] == "2"


async def test_a_batch_is_linked_with_its_jobs() -> None:
    """Of several callers: below none of them, but linked both ways, and within their spans."""
    traced = Traced(
        policy=Always(Strategy.BATCH), batch_max_jobs=16, batch_max_delay_ms=5.0, cold_samples=1
    )
    async with traced.router as r:
        await submit_all(r, [job(i) for i in range(8)])  # some alone, to learn
        before = len(traced.spans("batch"))
        with traced.tracer.start_as_current_span("caller"):
            await submit_all(r, [job(100 + i) for i in range(16)])
        assert r.stats().batches == len(traced.spans("batch"))
    *_, batch = traced.spans("batch")
    assert len(traced.spans("batch")) > before
    jobs = [s for s in traced.spans("job") if int(attributes(s)["helixnb.job.id"]) >= 100]
    assert batch.name == "batch HashMix"
    assert batch.parent is None
    assert linked(batch) == ids(jobs)
    assert batch.attributes == {"kind": "HashMix", "reason": "full", "helixnb.jobs": 16}
    for each in jobs:
        assert linked(each) == ids([batch])
        assert each.start_time <= batch.start_time <= batch.end_time <= each.end_time  # type: ignore[operator]


async def test_a_failed_job_says_why() -> None:
    traced = Traced(PICKY)
    async with traced.router as r:
        outcome = await r.submit(job(3, "Picky"))
        assert outcome.status == "failed"
    span = traced.span("job")
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "Picky: job 3"
    assert attributes(span)["error.type"] == f"{Picky.__module__}.Picky"
    (event,) = span.events
    assert event.name == "exception"


async def test_a_cancelled_job() -> None:
    gate = Gate()
    traced = Traced(gate.kernel, policy=Always(Strategy.CPU_POOL), cpu_parallelism=1)
    async with traced.router as r:
        first = r.submit_soon(job(1, "Gate"))
        await gate.begun()
        with anyio.move_on_after(0.01):
            await r.submit(job(2, "Gate"))
        (span,) = traced.spans("job")
        gate.open()
        await first.wait()
    assert attributes(span)["outcome"] == "cancelled"
    assert attributes(span)["helixnb.job.id"] == "2"
    assert "helixnb.queue.duration" not in attributes(span)


async def test_jobs_that_the_closing_router_drops() -> None:
    """Every span that was begun ends."""
    gate = Gate()
    traced = Traced(
        gate.kernel, policy=Always(Strategy.CPU_POOL), cpu_parallelism=1, drain_timeout_s=0.0
    )
    async with traced.router as r:
        for i in range(3):
            r.submit_soon(job(i, "Gate"))
        await gate.begun()
        gate.open_once(lambda: r.stats().dropped == 2)
        await r.close()
    outcomes = sorted(attributes(span)["outcome"] for span in traced.spans("job"))
    assert outcomes == ["completed", "dropped", "dropped"]
    check_balanced(traced.router.stats())


@pytest.mark.parametrize("cost", [1, LARGE])
async def test_what_a_callable_traces_is_below_its_job(cost: int) -> None:
    traced = Traced()

    def work() -> int:
        with traced.tracer.start_as_current_span("inner"):
            return 1

    async with traced.router as r:
        with traced.tracer.start_as_current_span("caller") as caller:
            assert (await r.run(work, compute_cost=cost)).value == 1
            assert trace.get_current_span() is caller
    inner, span = traced.span("inner"), traced.span("job")
    assert inner.parent is not None
    assert {inner.parent.span_id} == ids([span])
    assert span.name.endswith("work")


@pytest.mark.parametrize("soon", [False, True])
async def test_what_a_plain_kernel_traces_is_below_its_job(soon: bool) -> None:
    traced = Traced(policy=Always(Strategy.CPU_POOL))

    def solo(inputs: Any, compute_cost: int, job_id: int) -> int:
        with traced.tracer.start_as_current_span("inner"):
            return job_id

    async with traced.router as r:
        await r.add_kernel(Kernel(name="Plain", solo=solo))
        with traced.tracer.start_as_current_span("caller"):
            if soon:
                await r.submit_soon(job(1, "Plain")).wait()
            else:
                await r.submit(job(1, "Plain"))
    inner, span = traced.span("inner"), traced.span("job")
    assert inner.parent is not None
    assert {inner.parent.span_id} == ids([span])


async def test_a_call_with_columns() -> None:
    """Has one span, with the kernel calls below it."""
    traced = Traced(PICKY)
    async with traced.router as r:
        with traced.tracer.start_as_current_span("caller") as caller:
            outcomes = await r.submit_many(
                [job(i, "Picky" if i % 2 else "HashMix", compute_cost=LARGE) for i in range(600)]
            )
    call = traced.span("submit_many")
    assert call.parent is not None
    assert call.parent.span_id == caller.get_span_context().span_id
    assert [str(each.status) for each in outcomes].count("failed") == 100
    assert call.attributes == {
        "helixnb.jobs": 600,
        "helixnb.jobs.completed": 500,
        "helixnb.jobs.dropped": 0,
        "helixnb.jobs.failed": 100,
        "helixnb.jobs.cancelled": 0,
    }
    batches = traced.spans("batch")
    assert len(batches) == r.stats().batches > 0
    for batch in batches:
        assert batch.parent is not None
        assert {batch.parent.span_id} == ids([call])
        assert attributes(batch)["reason"] == "columns"
        assert call.start_time <= batch.start_time <= batch.end_time <= call.end_time  # type: ignore[operator]
    jobs = sum(attributes(batch)["helixnb.jobs"] for batch in batches)
    assert jobs == r.stats().batched_jobs


async def test_calls_with_columns_that_raise_or_are_cancelled() -> None:
    gate = Gate()
    traced = Traced(gate.kernel)
    async with traced.router as r:
        with contextlib.suppress(ValueError):
            await r.submit_many([job(1, "Nobody")])
        with anyio.move_on_after(0.01):
            await r.submit_many([job(i, "Gate", compute_cost=LARGE) for i in range(3)])
        gate.open()
    wrong, cancelled = traced.spans("submit_many")
    assert wrong.status.status_code is StatusCode.ERROR
    assert attributes(wrong)["error.type"] == "helixnb._errors.UnknownKindError"
    assert cancelled.status.status_code is StatusCode.UNSET
    assert attributes(cancelled)["helixnb.jobs.cancelled"] == 3


async def test_what_is_not_sampled_is_left_alone() -> None:
    traced = Traced(provider=TracerProvider(sampler=ALWAYS_OFF))
    async with traced.router as r:
        await submit_all(r, [job(i) for i in range(10)])
        await r.submit_many([job(i) for i in range(10)])
        assert r.stats().completed == 20
    assert traced.spans() == []


async def test_what_is_not_sampled_has_no_children_either() -> None:
    """A sampler that goes by the parent decides once for all of a trace."""
    sampler = ParentBased(TraceIdRatioBased(0.3))
    traced = Traced(provider=TracerProvider(sampler=sampler))

    def work() -> None:
        with traced.tracer.start_as_current_span("inner"):
            pass

    async with traced.router as r:
        for _ in range(100):
            await r.run(work, compute_cost=LARGE)
    jobs, inner = traced.spans("job"), traced.spans("inner")
    assert 0 < len(jobs) < 100
    assert len(inner) == len(jobs)
    assert {span.parent.span_id for span in inner if span.parent is not None} == ids(jobs)


async def test_jobs_cancelled_in_a_batch_that_runs(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their spans have ended and aren't touched; the others are linked."""
    ran, go_on = threading.Event(), threading.Event()
    run_together = work.run_together

    def run_and_wait(*args: Any) -> Any:
        ended = run_together(*args)
        ran.set()
        assert go_on.wait(30)
        return ended

    traced = Traced(
        policy=Always(Strategy.BATCH), batch_max_jobs=16, batch_max_delay_ms=5.0, cold_samples=1
    )
    async with traced.router as r:
        await submit_all(r, [job(i) for i in range(8)])  # some alone, to learn
        monkeypatch.setattr(work, "run_together", run_and_wait)
        tickets = [r.submit_soon(job(100 + i)) for i in range(16)]
        assert await anyio.to_thread.run_sync(ran.wait, 10)
        assert tickets[0].cancel()
        go_on.set()
        outcomes = [(await ticket.wait()).status for ticket in tickets]
    assert outcomes == ["cancelled"] + 15 * ["completed"]
    assert "ended span" not in caplog.text
    *_, batch = traced.spans("batch")
    assert attributes(batch)["helixnb.jobs"] == 16
    jobs = {
        attributes(span)["helixnb.job.id"]: span
        for span in traced.spans("job")
        if int(attributes(span)["helixnb.job.id"]) >= 100
    }
    cancelled = jobs.pop("100")
    assert linked(cancelled) == set()
    assert linked(batch) == ids(list(jobs.values()))
    assert all(linked(span) == ids([batch]) for span in jobs.values())


async def test_what_plain_kernels_trace_in_a_call_with_columns() -> None:
    policy = Always(Strategy.CPU_POOL)
    traced = Traced(policy=policy)

    def solo(inputs: Any, compute_cost: int, job_id: int) -> int:
        with traced.tracer.start_as_current_span("inner"):
            return job_id

    async with traced.router as r:
        await r.add_kernel(Kernel(name="Plain", solo=solo))
        for policy.strategy in (Strategy.CPU_POOL, Strategy.INLINE):
            await r.submit_many([job(i, "Plain") for i in range(5)])
    calls, inner = traced.spans("submit_many"), traced.spans("inner")
    assert len(inner) == 10
    assert {span.parent.span_id for span in inner if span.parent is not None} == ids(calls)


class Faulty(SpanProcessor):
    """Raises whenever a span begins or ends."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        raise RuntimeError("no span, please")

    def on_end(self, span: Any) -> None:
        raise RuntimeError("no end either")


@pytest.mark.parametrize("method", ["on_start", "on_end"])
async def test_an_sdk_that_raises_hurts_nobody(
    method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracing, "_failed", False)
    processor = SpanProcessor()
    monkeypatch.setattr(processor, method, getattr(Faulty(), method))
    provider = TracerProvider()
    provider.add_span_processor(processor)
    traced = Traced(PICKY, provider=provider)
    async with traced.router as r:
        await submit_all(r, [job(i, "Picky") for i in range(30)])
        await r.run(lambda: 1, compute_cost=LARGE)
        await r.submit_many([job(i) for i in range(50)])
        check_balanced(r.stats())
        assert (r.stats().completed, r.stats().failed) == (71, 10)
    assert caplog.text.count("a span wasn't recorded") == 1


async def test_an_error_that_can_not_be_shown() -> None:
    """Its span ends all the same."""

    class Shy(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no name")

    def fail() -> None:
        raise Shy

    traced = Traced()
    async with traced.router as r:
        outcome = await r.run(fail, compute_cost=LARGE)
        assert outcome.status == "failed"
    assert attributes(traced.span("job"))["outcome"] == "failed"
