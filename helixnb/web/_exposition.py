"""The metrics in the form that Prometheus scrapes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

from helixnb._observe.metrics import METRICS, Distribution, Metric
from helixnb._router import Router

FAMILIES: dict[str, Any] = {
    "counter": CounterMetricFamily,
    "up_down_counter": GaugeMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}

UNITS = {"s": "seconds", "1": "ratio"}
"""What a name ends with for a unit, as where OpenTelemetry's metrics are exported to Prometheus."""


def registry_of(find: Callable[[], Router]) -> CollectorRegistry:
    """Return a registry of its own for the router that `find` returns."""
    registry = CollectorRegistry()
    registry.register(_RouterCollector(find))
    return registry


class _RouterCollector(Collector):
    def __init__(self, find: Callable[[], Router]) -> None:
        self._find = find

    def describe(self) -> Iterator[Family]:
        """Return the names, since there may be no router yet to collect from."""
        return iter(map(_family_of, METRICS))

    def collect(self) -> Iterator[Family]:
        families = {metric: _family_of(metric) for metric in METRICS}
        for reading in self._find().metrics():
            metric, value = reading.metric, reading.value
            labels = [_as_label(reading.attributes[name]) for name in metric.attributes]
            family = families[metric]
            if isinstance(value, Distribution):
                bounds = [*map(floatToGoString, metric.bounds), "+Inf"]
                buckets = list(zip(bounds, itertools.accumulate(value.counts), strict=True))
                family.add_metric(labels, buckets, value.sum)
            else:
                family.add_metric(labels, value)
        return iter(families.values())


def _as_label(text: str) -> str:
    """Return text that UTF-8 can hold; half a surrogate pair, which it can't, is written out."""
    return text.encode(errors="backslashreplace").decode()


def _family_of(metric: Metric) -> Any:
    return FAMILIES[metric.instrument](
        metric.name.replace(".", "_"),
        metric.description,
        labels=metric.attributes,
        unit=UNITS.get(metric.unit, ""),
    )
