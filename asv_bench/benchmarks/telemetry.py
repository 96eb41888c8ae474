"""What telemetry costs a job: OpenTelemetry's API alone, an SDK that listens, and spans."""

from __future__ import annotations

import gc
from statistics import median
from typing import Any

import anyio

from helixnb import Router
from helixnb_kernels import HASH_MIX, warm_up

from .router import BACKENDS, submit_seconds

VARIANTS = ["removed", "api", "sdk", "sdk and spans"]
ROUNDS = 15


def providers(variant: str) -> dict[str, Any]:
    """Return what a router of a variant is given."""
    if not variant.startswith("sdk"):
        return {}
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    tracing = TracerProvider()
    tracing.add_span_processor(BatchSpanProcessor(InMemorySpanExporter()))
    return {"meter_provider": MeterProvider([InMemoryMetricReader()]), "tracer_provider": tracing}


async def seconds(variant: str, strategy: str, jobs: int, given: dict[str, Any]) -> float:
    """Return how long so many tiny jobs take, by one variant."""

    def prepare(router: Router) -> None:
        if variant == "removed":
            counts = router._ledger.counts  # noqa: SLF001
            counts.latencies = counts.queues = router._ledger.on_batch = None  # noqa: SLF001
        gc.collect()

    settings = {"trace_jobs": True} if "spans" in variant else {}
    return await submit_seconds(strategy, jobs, prepare, given, **settings)


def costs(backend: str, strategy: str, jobs: int, rounds: int = ROUNDS) -> dict[str, float]:
    """Return the microseconds that a job takes by each variant: medians of rounds in turn."""
    given = {variant: providers(variant) for variant in VARIANTS}
    taken: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for round_ in range(rounds):
        for variant in VARIANTS[:: 1 if round_ % 2 else -1]:
            arguments = (variant, strategy, jobs, given[variant])
            taken[variant].append(anyio.run(seconds, *arguments, **BACKENDS[backend]))
    return {variant: median(each) / jobs * 1e6 for variant, each in taken.items()}


class Telemetry:
    """The cost of a job with telemetry, over what it is without any."""

    params = [["asyncio"], ["inline", "cpu_pool", "batch"], VARIANTS[1:]]
    param_names = ["backend", "strategy", "variant"]
    timeout = 300

    def setup(self, backend: str, strategy: str, variant: str) -> None:
        if "meter_provider" not in Router.__init__.__annotations__:
            raise NotImplementedError  # a commit without telemetry
        warm_up([HASH_MIX])

    def track_over_removed(self, backend: str, strategy: str, variant: str) -> float:
        measured = costs(backend, strategy, 1_000)
        return measured[variant] / measured["removed"]

    track_over_removed.unit = "x"  # type: ignore[attr-defined]
