"""What a router measures: each metric's name, unit and attributes, and how it is read.

Names, units and kinds of instruments follow OpenTelemetry's semantic conventions for metrics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from helixnb._core.counts import BOUNDS_JOBS, BOUNDS_NS, Counts, Histogram
from helixnb._core.queues import Backlog
from helixnb._observe.pressure import Pressure

if TYPE_CHECKING:  # a sibling
    from helixnb._exec.slots import Slots


class Vitals:
    """What is measured of one router, without the router itself.

    Attributes
    ----------
    is_live
        Whether more is true of it than what it has counted.
    """

    __slots__ = ("__weakref__", "backlog", "clock", "counts", "is_live", "pressure", "slots")

    def __init__(
        self,
        counts: Counts,
        backlog: Backlog,
        slots: Slots,
        pressure: Pressure,
        clock: Callable[[], int],
    ) -> None:
        self.counts = counts
        self.backlog = backlog
        self.slots = slots
        self.pressure = pressure
        self.clock = clock
        self.is_live = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """What a number means.

    Attributes
    ----------
    name
        In OpenTelemetry's spelling.
    instrument
        The kind of it. Counters only grow, an up-down counter may be added up over routers, a
        gauge may not.
    unit
        ``s`` for seconds, ``1`` for a share, or ``{job}`` or ``{batch}`` for counts of them.
    description
        One sentence.
    attributes
        The names of what its readings are told apart by.
    bounds
        Upper bounds of the buckets of a histogram, in its unit.
    """

    name: str
    instrument: Literal["counter", "up_down_counter", "gauge", "histogram"]
    unit: str
    description: str
    attributes: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Distribution:
    """What a histogram has counted.

    Attributes
    ----------
    counts
        How many values fell in each bucket; one more than the metric has bounds.
    sum
        Of all values, in the metric's unit.
    """

    counts: Sequence[int]
    sum: float


@dataclass(frozen=True, slots=True)
class Reading:
    """A metric at one moment, for one set of attributes.

    Attributes
    ----------
    metric
        What was read.
    attributes
        A text for each of the metric's attributes.
    value
        A number, or what a histogram has counted.
    """

    metric: Metric
    attributes: Mapping[str, str]
    value: float | Distribution


SECONDS = tuple(bound / 1e9 for bound in BOUNDS_NS)

JOBS = Metric(
    name="helixnb.jobs",
    instrument="counter",
    unit="{job}",
    description="Jobs that have ended.",
    attributes=("strategy", "kind", "outcome", "reason"),
)
JOB_DURATION = Metric(
    name="helixnb.job.duration",
    instrument="histogram",
    unit="s",
    description="From submit to outcome.",
    attributes=("strategy", "kind", "outcome"),
    bounds=SECONDS,
)
QUEUE_DURATION = Metric(
    name="helixnb.queue.duration",
    instrument="histogram",
    unit="s",
    description="From submit to when the job began to run, of those that did.",
    attributes=("strategy", "kind"),
    bounds=SECONDS,
)
BATCH_SIZE = Metric(
    name="helixnb.batch.size",
    instrument="histogram",
    unit="{job}",
    description="Jobs in a kernel call made for a batch.",
    attributes=("kind",),
    bounds=tuple(map(float, BOUNDS_JOBS)),
)
BATCH_RELEASES = Metric(
    name="helixnb.batch.releases",
    instrument="counter",
    unit="{batch}",
    description="Kernel calls made for batches, by what released them.",
    attributes=("kind", "reason"),
)
BACKLOG = Metric(
    name="helixnb.backlog",
    instrument="up_down_counter",
    unit="{job}",
    description="Jobs that wait.",
)
BACKLOG_LIMIT = Metric(
    name="helixnb.backlog.limit",
    instrument="up_down_counter",
    unit="{job}",
    description="How many jobs may wait.",
)
CPU_SATURATION = Metric(
    name="helixnb.cpu.saturation",
    instrument="gauge",
    unit="1",
    description="Share of the CPU slots that are in use; above 1 after there were made fewer.",
)
LOOP_LAG = Metric(
    name="helixnb.loop.lag",
    instrument="gauge",
    unit="s",
    description="How late the event loop gets round to what is due.",
)
SHADOW_DISAGREEMENTS = Metric(
    name="helixnb.shadow.disagreements",
    instrument="counter",
    unit="{job}",
    description="Jobs for which the shadow policy chose another strategy, or raised.",
)
INLINE_OVERRUNS = Metric(
    name="helixnb.inline.overruns",
    instrument="counter",
    unit="{job}",
    description="Jobs that ran on the event loop and took far longer there than predicted.",
)

Values = Mapping[tuple[str, ...], float]
"""A metric's values by its attributes."""

Distributions = Mapping[tuple[str, ...], Distribution]
"""The same of a histogram."""


def _jobs(counts: Iterable[Counts]) -> Values:
    jobs: Counter[tuple[str, ...]] = Counter()
    for each in counts:
        each.fold()
        for tally in list(each.tallies.values()):  # its router may be adding some
            jobs[tally.strategy.value, tally.kind, tally.status.value, tally.reason] += tally.jobs
    return jobs


def _releases(counts: Iterable[Counts]) -> Values:
    batches: Counter[tuple[str, ...]] = Counter()
    for each in counts:
        for key, sizes in list(each.releases.items()):
            batches[key] += sizes.count
    return batches


def _shadow_disagreements(counts: Iterable[Counts]) -> Values:
    return {(): sum(each.shadow_disagreements for each in counts)}


def _inline_overruns(counts: Iterable[Counts]) -> Values:
    return {(): sum(each.inline_overruns for each in counts)}


def _backlog(vitals: Iterable[Vitals]) -> Values:
    return {(): sum(each.backlog.waiting for each in vitals)}


def _backlog_limit(vitals: Iterable[Vitals]) -> Values:
    return {(): sum(each.backlog.capacity for each in vitals)}


def _cpu_saturation(vitals: Sequence[Vitals]) -> Values:
    total = sum(each.slots.total for each in vitals)
    return {(): sum(each.slots.busy for each in vitals) / total} if total else {}


def _loop_lag(vitals: Sequence[Vitals]) -> Values:
    lags_ms = [each.pressure.lag_ms(each.clock()) for each in vitals]
    return {(): max(lags_ms) / 1e3} if lags_ms else {}


READ_COUNTS = {
    JOBS: _jobs,
    BATCH_RELEASES: _releases,
    SHADOW_DISAGREEMENTS: _shadow_disagreements,
    INLINE_OVERRUNS: _inline_overruns,
}
"""How the counters are read, over routers."""

READ_VITALS = {
    BACKLOG: _backlog,
    BACKLOG_LIMIT: _backlog_limit,
    CPU_SATURATION: _cpu_saturation,
    LOOP_LAG: _loop_lag,
}
"""How what is true now is read, over routers: as the sum, but the lag as the largest."""

METRICS = (
    JOBS,
    JOB_DURATION,
    QUEUE_DURATION,
    BATCH_SIZE,
    BATCH_RELEASES,
    BACKLOG,
    BACKLOG_LIMIT,
    CPU_SATURATION,
    LOOP_LAG,
    SHADOW_DISAGREEMENTS,
    INLINE_OVERRUNS,
)


def read(vitals: Vitals) -> Iterator[Reading]:
    """Read all metrics of one router, the histograms included."""
    counts = [vitals.counts]
    values: dict[Metric, Values | Distributions] = {}
    values |= {metric: reader(counts) for metric, reader in READ_COUNTS.items()}
    values |= {metric: reader([vitals]) for metric, reader in READ_VITALS.items()}
    values |= _histograms(vitals.counts)
    for metric in METRICS:
        for attributes, value in values[metric].items():
            yield Reading(metric, dict(zip(metric.attributes, attributes, strict=True)), value)


def _histograms(counts: Counts) -> dict[Metric, Distributions]:
    merged: dict[Metric, dict[tuple[str, ...], Histogram]] = {
        JOB_DURATION: {},
        QUEUE_DURATION: {},
        BATCH_SIZE: {},
    }

    def add(metric: Metric, attributes: tuple[str, ...], histogram: Histogram) -> None:
        empty = Histogram(histogram.bounds)
        merged[metric].setdefault(attributes, empty).merge(histogram)

    counts.fold()
    for tally in list(counts.tallies.values()):
        strategy = tally.strategy.value
        add(JOB_DURATION, (strategy, tally.kind, tally.status.value), tally.latency_ns)
        if tally.queue_ns.count:
            add(QUEUE_DURATION, (strategy, tally.kind), tally.queue_ns)
    for (kind, _), sizes in list(counts.releases.items()):
        add(BATCH_SIZE, (kind,), sizes)
    return {
        metric: {
            key: Distribution(each.buckets, each.sum / (1e9 if metric.unit == "s" else 1))
            for key, each in histograms.items()
        }
        for metric, histograms in merged.items()
    }
