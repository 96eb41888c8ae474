"""What OpenTelemetry is told, and that the router doesn't depend on whether anybody listens."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from functools import partial
from typing import Any

import anyio
import pytest
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    Gauge,
    Histogram,
    HistogramDataPoint,
    InMemoryMetricReader,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
    Sum,
)
from support import PICKY, Always, Gate, check_balanced, job, python, submit_all

from helixnb import (
    METRICS,
    Distribution,
    Metric,
    Router,
    RouterConfig,
    StaticPolicy,
    Status,
    Strategy,
)
from helixnb._core.counts import Counts
from helixnb._core.policy import Policy
from helixnb._observe import pressure, telemetry
from helixnb._observe.metrics import (
    BATCH_RELEASES,
    BATCH_SIZE,
    JOB_DURATION,
    JOBS,
    QUEUE_DURATION,
    SHADOW_DISAGREEMENTS,
    Vitals,
)
from helixnb._observe.telemetry import new_telemetry
from helixnb_kernels import BUILT_IN, Kernel

pytestmark = pytest.mark.anyio

BY_NAME = {metric.name: metric for metric in METRICS}


def observed(
    *kernels: Kernel, policy: Policy | None = None, provider: Any = None, **settings: Any
) -> tuple[Router, InMemoryMetricReader]:
    """Return a router, and what reads its metrics."""
    reader = InMemoryMetricReader()
    r = Router(
        RouterConfig(cpu_parallelism=2, **settings),
        kernels=(*BUILT_IN, *kernels),
        policy=StaticPolicy() if policy is None else policy,
        meter_provider=MeterProvider([reader]) if provider is None else provider,
    )
    return r, reader


def collected(reader: InMemoryMetricReader) -> dict[Metric, dict[tuple[str, ...], Any]]:
    """Collect all metrics: their data points by their attributes, checked against the catalogue."""
    data = reader.get_metrics_data()
    assert data is not None
    found: dict[Metric, dict[tuple[str, ...], Any]] = {}
    for resource in data.resource_metrics:
        for scope in resource.scope_metrics:
            assert scope.scope.name == "helixnb"
            for each in scope.metrics:
                metric = BY_NAME[each.name]
                assert metric not in found
                assert (each.unit, each.description) == (metric.unit, metric.description)
                assert _instrument_of(each.data) == metric.instrument
                points = found[metric] = {}
                for point in each.data.data_points:
                    attributes: Any = point.attributes
                    assert set(attributes) == set(metric.attributes)
                    key = tuple(attributes[name] for name in metric.attributes)
                    assert key not in points
                    points[key] = point
                    if isinstance(point, HistogramDataPoint):
                        assert tuple(point.explicit_bounds) == metric.bounds
    return found


def _instrument_of(data: Any) -> str:
    if isinstance(data, Sum):
        return "counter" if data.is_monotonic else "up_down_counter"
    return {Gauge: "gauge", Histogram: "histogram"}[type(data)]


async def test_every_metric_is_as_the_catalogue_says() -> None:
    """With names, units, kinds of instruments, attributes and buckets; and it counts each job."""
    policy = Always(Strategy.BATCH)
    r, reader = observed(PICKY, policy=policy, batch_max_delay_ms=0.0)
    async with r:
        for strategy in Strategy:
            policy.strategy = strategy
            await submit_all(r, [job(i, "Picky" if i % 2 else "HashMix") for i in range(30)])
        await r.submit_many([job(i) for i in range(100)])
        stats = r.stats()
        r._telemetry.tell()
        found = collected(reader)
        exact = {(each.metric, tuple(each.attributes.values())): each.value for each in r.metrics()}
    assert set(found) == set(METRICS)
    check_balanced(stats)

    outcomes: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for (name, kind, outcome, reason), point in found[JOBS].items():
        assert name in list(Strategy)
        assert kind in ("HashMix", "Picky")
        assert exact[JOBS, (name, kind, outcome, reason)] == point.value
        outcomes[outcome] += point.value
        if outcome == "dropped":
            reasons[reason] += point.value
    assert outcomes == {
        "completed": stats.completed,
        "failed": stats.failed,
        "dropped": stats.dropped,
    }
    assert stats.submitted == 250
    assert reasons == stats.dropped_by_reason
    for metric in (JOB_DURATION, QUEUE_DURATION, BATCH_SIZE):
        for key, point in found[metric].items():
            value = exact[metric, key]
            assert isinstance(value, Distribution)
            assert sum(point.bucket_counts) == point.count > 0
            assert sum(value.counts) >= point.count
    batches = found[BATCH_RELEASES]
    assert sum(point.value for point in batches.values()) == stats.batches
    assert {reason for _, reason in batches} <= {"full", "delay", "closing", "columns"}
    assert found[SHADOW_DISAGREEMENTS][()].value == 0


async def test_a_few_jobs_are_recorded_exactly() -> None:
    """Below the rate from which on histograms are thinned out, OpenTelemetry's are exact too."""
    r, reader = observed(policy=Always(Strategy.CPU_POOL))
    async with r:
        for i in range(20):
            await r.submit(job(i))
    found = collected(reader)
    exact = {each.metric: each.value for each in r.metrics()}
    for metric in (JOB_DURATION, QUEUE_DURATION):
        (point,) = found[metric].values()
        value: Any = exact[metric]
        assert list(point.bucket_counts) == list(value.counts)
        assert point.sum == pytest.approx(value.sum)
        assert point.count == 20


async def test_gauges_show_what_is_true_now() -> None:
    gate = Gate()
    r, reader = observed(gate.kernel, policy=Always(Strategy.CPU_POOL), queue_capacity=7)
    async with r:
        tickets = [r.submit_soon(job(i, "Gate")) for i in range(2)]
        await gate.begun(2)
        tickets += [r.submit_soon(job(i, "Gate")) for i in range(3)]
        values = {metric.name: points for metric, points in collected(reader).items()}
        assert values["helixnb.backlog"][()].value == 3
        assert values["helixnb.backlog.limit"][()].value == 7
        assert values["helixnb.cpu.saturation"][()].value == 1.0
        assert values["helixnb.loop.lag"][()].value >= 0.0
        r.reconfigure(cpu_parallelism=1)
        values = {metric.name: points for metric, points in collected(reader).items()}
        assert values["helixnb.cpu.saturation"][()].value == 2.0
        gate.open()
        for ticket in tickets:
            await ticket.wait()


async def test_batches_are_counted_by_what_released_them() -> None:
    r, reader = observed(
        policy=Always(Strategy.BATCH), batch_max_jobs=4, batch_max_delay_ms=1e9, cold_samples=1
    )
    async with r:
        await submit_all(r, [job(i) for i in range(4)])
        r.reconfigure(batch_max_delay_ms=1.0)
        await submit_all(r, [job(i) for i in range(3)])
        r.reconfigure(batch_max_delay_ms=1e9)
        tickets = [r.submit_soon(job(i)) for i in range(2)]
        await r.close()
        assert [(await ticket.wait()).strategy for ticket in tickets] == ["batch", "batch"]
        releases = {key: point.value for key, point in collected(reader)[BATCH_RELEASES].items()}
    causes = {reason for _, reason in releases}
    assert {"delay", "closing"} <= causes <= {"full", "delay", "closing"}
    assert sum(releases.values()) == r.stats().batches


async def test_routers_of_one_provider_are_added_up() -> None:
    """Also those that are gone: what counters have counted never gets less."""
    first, reader = observed(policy=Always(Strategy.INLINE))
    second, _ = observed(policy=Always(Strategy.INLINE), provider=first._meter_provider)

    def jobs() -> int:
        return sum(point.value for point in collected(reader)[JOBS].values())

    async with first:
        await first.submit(job())
        async with second:
            await submit_all(second, [job(i) for i in range(3)])
            assert jobs() == 4
            limits = {m.name: p for m, p in collected(reader).items()}["helixnb.backlog.limit"]
            assert limits[()].value == 1024
        await first.submit(job())
        outcome = await second.submit(job())
        assert outcome.reason == "router_closed"
        assert jobs() == 6
        del second
        gc.collect()
        assert jobs() == 6
        limits = {m.name: p for m, p in collected(reader).items()}["helixnb.backlog.limit"]
        assert limits[()].value == 512
    del first
    gc.collect()
    found = collected(reader)
    assert sum(point.value for point in found[JOBS].values()) == 6
    assert "helixnb.loop.lag" not in {metric.name for metric in found}


async def test_a_router_is_not_kept_by_its_instruments() -> None:
    r, _ = observed()
    async with r:
        pass
    known = weakref.ref(r)
    del r
    gc.collect()
    assert known() is None


class Faulty:
    """A provider whose instruments raise, however they are used."""

    def get_meter(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self

    def record(self, *args: Any) -> None:
        raise RuntimeError("no measurement, please")


async def test_an_sdk_that_raises_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    r, _ = observed(policy=Always(Strategy.CPU_POOL), provider=Faulty())
    async with r:
        await submit_all(r, [job(i) for i in range(50)])
        await r.submit_many([job(i) for i in range(100)])
        check_balanced(r.stats())
        assert r.stats().completed == 150
    assert caplog.text.count("wasn't recorded") == 1


class NoExport(MetricExporter):
    """Fails, whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 0, **kwargs: Any
    ) -> MetricExportResult:
        self.calls += 1
        raise RuntimeError("nobody there")

    def force_flush(self, timeout_millis: float = 0) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 0, **kwargs: Any) -> None:
        pass


async def test_an_exporter_that_fails_hurts_nobody() -> None:
    exporter = NoExport()
    provider = MeterProvider([PeriodicExportingMetricReader(exporter, 20)])
    r, _ = observed(provider=provider)
    async with r:
        with anyio.fail_after(20):
            while exporter.calls < 3:
                await submit_all(r, [job(i) for i in range(10)])
        check_balanced(r.stats())
        assert r.stats().failed == 0
    await anyio.to_thread.run_sync(provider.shutdown)


async def test_without_an_sdk() -> None:
    r, _ = observed(provider=NoOpMeterProvider())
    async with r:
        await submit_all(r, [job(i) for i in range(10)])
        assert sum(each.value for each in r.metrics() if each.metric is JOBS) == 10  # type: ignore[misc]


@pytest.mark.parametrize("name", ["meter_provider", "tracer_provider"])
def test_what_is_no_provider(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must have a method get_"):
        Router(**{name: "global"})  # type: ignore[arg-type]


def test_metrics_before_the_router_opens() -> None:
    assert Router().metrics() == []


@pytest.mark.slow
def test_an_sdk_that_is_set_up_later() -> None:
    """The global provider may be set when the router is open already; buckets are as advised."""
    done = python(
        "-c",
        """if True:
        import anyio, sys
        import helixnb
        assert not any(name.startswith("opentelemetry") for name in sys.modules)
        from helixnb import Job, Router

        async def main():
            async with Router() as router:
                job = Job(id=1, kind="HashMix", compute_cost=640)
                await router.submit(job)
                from opentelemetry import metrics, trace
                from opentelemetry.sdk.metrics import MeterProvider
                from opentelemetry.sdk.metrics.export import InMemoryMetricReader
                from opentelemetry.sdk.trace import TracerProvider
                from opentelemetry.sdk.trace.export import SimpleSpanProcessor
                from opentelemetry.sdk.trace.export.in_memory_span_exporter import (
                    InMemorySpanExporter)
                reader = InMemoryMetricReader()
                metrics.set_meter_provider(MeterProvider([reader]))
                spans = InMemorySpanExporter()
                tracing = TracerProvider()
                tracing.add_span_processor(SimpleSpanProcessor(spans))
                trace.set_tracer_provider(tracing)
                router.reconfigure(trace_jobs=True)
                await router.submit(job)
                assert [span.name for span in spans.get_finished_spans()] == ["job HashMix"]
                found = {}
                while "helixnb.job.duration" not in found:  # it is told in a few milliseconds
                    await anyio.sleep(0.005)
                    (resource,) = reader.get_metrics_data().resource_metrics
                    (scope,) = resource.scope_metrics
                    found = {each.name: list(each.data.data_points) for each in scope.metrics}
                assert sum(point.value for point in found["helixnb.jobs"]) == 2
                (duration,) = found["helixnb.job.duration"]
                assert duration.count >= 1
                assert duration.explicit_bounds[:2] == (1e-6, 2e-6)

        anyio.run(main)
        """,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_forked_worker_counts_from_nothing() -> None:
    """The parent's jobs aren't the child's, and would be counted twice."""
    done = python(
        "-W",
        "ignore::DeprecationWarning",  # of forks beside threads, from 3.12 on
        "-c",
        """if True:
        import anyio, os
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from helixnb import Job, Router, RouterConfig

        reader = InMemoryMetricReader()
        provider = MeterProvider([reader])

        def jobs():
            data = reader.get_metrics_data()
            if data is None:
                return 0
            return sum(
                point.value
                for resource in data.resource_metrics
                for scope in resource.scope_metrics
                for each in scope.metrics if each.name == "helixnb.jobs"
                for point in each.data.data_points)

        async def main(n):
            config = RouterConfig(parallel_kernels="never")
            async with Router(config, meter_provider=provider) as router:
                for i in range(n):
                    await router.submit(Job(id=i, kind="HashMix", compute_cost=640))
            return router

        router = anyio.run(main, 5)
        assert jobs() == 5
        pid = os.fork()
        if pid == 0:
            try:
                assert jobs() == 0, jobs()
                other = anyio.run(main, 2)
                assert jobs() == 2, jobs()
            except BaseException as error:
                print(repr(error), flush=True)
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert status == 0
        assert jobs() == 5
        """,
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Told:
    """What is told of jobs that end at times set by hand."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.counts = Counts()
        reader = InMemoryMetricReader()
        vitals: Any = Vitals(self.counts, *[None] * 3, lambda: self.now_ns)  # type: ignore[arg-type,call-arg]
        self._provider = MeterProvider([reader])  # it is kept by nobody else
        self.telemetry = new_telemetry(vitals, self._provider)
        self._reader = reader
        self._vitals = vitals

    def end(self, kind: str, jobs: int) -> None:
        """Let jobs of a kind end, a heartbeat after those before."""
        tally = self.counts.tally(kind, Strategy.INLINE, Status.COMPLETED, "inline_cheap")
        tally.noted_latencies_ns.extend([5_000] * jobs)
        self.tell()

    def tell(self) -> None:
        self.now_ns += 5_000_000
        self.telemetry.tell()

    def recorded(self) -> dict[str, int]:
        """Return how many were recorded of each kind."""
        data = self._reader.get_metrics_data()
        assert data is not None
        found: dict[str, int] = {}
        for metric in data.resource_metrics[0].scope_metrics[0].metrics:
            for point in metric.data.data_points:
                if metric.name == "helixnb.job.duration":
                    assert isinstance(point, HistogramDataPoint)
                    found[str((point.attributes or {})["kind"])] = point.count
        return found


def test_measurements_that_are_few_are_all_recorded() -> None:
    """Up to 1,000 a second."""
    told = Told()
    for _ in range(400):
        told.end("HashMix", 5)
    assert told.recorded() == {"HashMix": 2_000}


def test_measurements_that_are_many_are_thinned_out() -> None:
    """To 1,000 a second, in the proportions of those that there are."""
    told = Told()
    for _ in range(400):
        told.counts.tally("B", Strategy.INLINE, Status.COMPLETED, "x").noted_latencies_ns.append(1)
        tally = told.counts.tally("C", Strategy.BATCH, Status.COMPLETED, "in_columns")
        told.counts.add(tally, 40, 7_000, 1_000)
        told.end("A", 59)
    recorded = told.recorded()
    assert sum(recorded.values()) == 2_000
    assert 1_050 < recorded["A"] < 1_310
    assert 680 < recorded["C"] < 920
    assert 0 < recorded["B"] < 60
    told.telemetry.close()
    assert sum(told.recorded().values()) == 2_995  # with those that waited


def test_a_burst_is_recorded_bit_by_bit() -> None:
    """All of it, if it isn't more than may wait."""
    told = Told()
    told.end("HashMix", 700)
    assert told.recorded() == {"HashMix": 5}
    for _ in range(139):
        told.tell()
    assert told.recorded() == {"HashMix": 700}
    told.end("HashMix", 20_000)
    for _ in range(300):
        told.tell()
    assert told.recorded() == {"HashMix": 1_700}
    for _ in range(300):
        told.tell()
    told.end("HashMix", 40)  # after silence, at once
    assert told.recorded() == {"HashMix": 1_740}


def test_what_waits_is_a_fair_choice() -> None:
    """However many have come before, or come after, each has the same chance."""
    waiting = telemetry.Waiting()
    worked_out: Counter[int] = Counter()

    def value_of(block: int, i: int) -> tuple[float, dict[str, str]]:
        worked_out[block] += 1
        return float(i), {"block": str(block)}

    for block in range(20):
        waiting.add(400, partial(value_of, block))
    assert worked_out[0] == 400
    assert worked_out[19] < 60  # those that are let in, in the place of others
    values = waiting.take(2_000)
    assert len(values) == 1_000
    assert len({(value, attributes["block"]) for value, attributes in values}) == 1_000
    blocks = Counter(attributes["block"] for _, attributes in values)
    assert len(blocks) == 20
    assert all(15 < count < 100 for count in blocks.values())  # 50 each, by five deviations
    assert sum(value < 200 for value, _ in values) in range(420, 581)
    for block, jobs in enumerate((2_000, 0, 100_000)):
        waiting.add(jobs, partial(value_of, block))
    blocks = Counter(attributes["block"] for _, attributes in waiting.take(2_000))
    assert blocks["2"] > 950  # 980, by five deviations


async def test_jobs_that_run_for_long_are_measured_to_their_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The router rests when nothing is in flight any more, not when nothing comes."""
    monkeypatch.setattr(pressure, "REST_NS", 1)
    gate = Gate()
    r, reader = observed(gate.kernel, policy=Always(Strategy.CPU_POOL))
    async with r:
        ticket = r.submit_soon(job(1, "Gate"))
        await gate.begun()
        for _ in range(20):
            await anyio.sleep(0.005)
            assert not r._pressure.resting
        gate.open()
        await ticket.wait()
        with anyio.fail_after(20):
            while not r._pressure.resting:  # noqa: ASYNC110  # which nobody is told
                await anyio.sleep(0.005)
        (point,) = collected(reader)[JOB_DURATION].values()
        assert point.count == 1


class Broken:
    """Providers that can't be used at all."""

    __hash__ = None  # type: ignore[assignment]

    def get_meter(self, *args: Any, **kwargs: Any) -> Any:
        raise StopIteration

    get_tracer = get_meter


async def test_a_provider_that_can_not_be_used(caplog: pytest.LogCaptureFixture) -> None:
    """A service runs without its telemetry rather than not at all."""
    broken: Any = Broken()
    config = RouterConfig(cpu_parallelism=2, trace_jobs=True)
    async with Router(config, meter_provider=broken, tracer_provider=broken) as r:
        assert (await r.submit(job(1))).status == "completed"
        assert (await r.submit_many([job(1)]))[0].status == "completed"
    assert "no metrics will be recorded: StopIteration()" in caplog.text
    assert "spans of jobs won't be recorded: StopIteration()" in caplog.text


async def test_nothing_piles_up_while_an_sdk_raises() -> None:
    r, _ = observed(policy=Always(Strategy.CPU_POOL), provider=Faulty())
    async with r:
        for _ in range(20):
            await submit_all(r, [job(i) for i in range(100)])
            r._telemetry.tell()
        assert not r._telemetry._queues
        assert not r._telemetry._latencies
        assert all(len(each) <= 1_000 for each in r._telemetry._waiting.values())


async def test_nothing_piles_up_in_a_router_that_is_closed() -> None:
    """It still counts the jobs that it drops."""
    r, reader = observed()
    async with r:
        pass
    for i in range(1_000):
        await r.submit(job(i))
    counts = r._ledger.counts
    assert sum(len(each.noted_latencies_ns) for each in counts.tallies.values()) <= 1
    assert (counts.latencies, counts.queues) == (None, None)
    assert r.stats().dropped == 1_000
    assert sum(point.value for point in collected(reader)[JOBS].values()) == 1_000


async def test_an_opening_that_is_cancelled_leaves_nothing() -> None:
    """Not even if the router is kept."""
    other, reader = observed()
    provider = other._meter_provider
    left = []
    async with other:
        for _ in range(3):
            r, _ = observed(provider=provider)
            with anyio.CancelScope() as scope:
                scope.cancel()
                async with r:
                    pass
            left.append(r)
        limits = {m.name: p for m, p in collected(reader).items()}["helixnb.backlog.limit"]
        assert limits[()].value == 512


async def test_kinds_of_routers_that_are_gone_keep_their_names() -> None:
    """Each router has its bound, so that two may have more names than that between them."""
    first, reader = observed(policy=Always(Strategy.INLINE))
    second, _ = observed(policy=Always(Strategy.INLINE), provider=first._meter_provider)
    for r, start in ((first, 0), (second, 40)):
        async with r:
            for i in range(start, start + 40):
                await r.run(int, compute_cost=1, kind=f"kind {i}")
    before = {key: point.value for key, point in collected(reader)[JOBS].items()}
    assert len(before) == 80
    del first, second, r
    gc.collect()
    assert {key: point.value for key, point in collected(reader)[JOBS].items()} == before


async def test_a_provider_is_not_kept_for_its_instruments() -> None:
    """Services that reload set up one after the other."""
    r, _ = observed()
    async with r:
        pass
    known = weakref.ref(r._meter_provider)
    provider: Any = r._meter_provider
    provider.shutdown()
    del r, provider
    gc.collect()
    assert known() is None
    telemetry._instruments_of(NoOpMeterProvider())  # looks round
    assert all(provider() is not None for provider, _ in telemetry._instruments[:-1])


@pytest.mark.slow
def test_the_global_provider_by_two_ways() -> None:
    """An SDK hears of all routers, whether they were given its provider or found it."""
    done = python(
        "-c",
        """if True:
        import anyio
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from helixnb import Job, Router

        async def main():
            reader = InMemoryMetricReader()
            provider = MeterProvider([reader])
            async with Router(meter_provider=provider) as one:
                metrics.set_meter_provider(provider)
                async with Router() as two, Router(meter_provider=provider) as three:
                    for router in (one, two, three):
                        await router.submit(Job(id=1, kind="HashMix", compute_cost=640))
                    (resource,) = reader.get_metrics_data().resource_metrics
                    (scope,) = resource.scope_metrics
                    found = {each.name: list(each.data.data_points) for each in scope.metrics}
                    assert sum(point.value for point in found["helixnb.jobs"]) == 3
                    assert found["helixnb.backlog.limit"][0].value == 3 * 512

        anyio.run(main)
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
