"""What OpenTelemetry is told of routers: by its API only, so that the application has the say."""

from __future__ import annotations

import logging
import os
import random
import threading
import weakref
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import TypeVar

from opentelemetry.context import Context
from opentelemetry.metrics import (
    CallbackOptions,
    Meter,
    MeterProvider,
    Observation,
    get_meter,
)

from helixnb._core.counts import Counts, Measured
from helixnb._observe.metrics import (
    BATCH_SIZE,
    JOB_DURATION,
    QUEUE_DURATION,
    READ_COUNTS,
    READ_VITALS,
    Metric,
    Values,
    Vitals,
)
from helixnb._version import __version__

RECORDS_PER_S = 1_000
"""How many durations of jobs are recorded at most, in the long run."""

MOST_AT_ONCE = 50
"""How many at once: SDKs take the event loop 0.8 ms for that, and for the waits as much again."""

NOWHERE = Context()
"""No span: what is current when a job ends is whatever was when its router was opened."""

_Known = TypeVar("_Known", Counts, Vitals)

logger = logging.getLogger("helixnb")


class Instruments:
    """The instruments of one meter provider, which all its routers share.

    An SDK doesn't take the callbacks of a second instrument of the same name, nor lets go of one's.
    What is counted only grows: what a router has counted stays when it is gone.
    """

    def __init__(self, meter: Meter) -> None:
        self.forget()
        for metric, read_counts in READ_COUNTS.items():
            self._observe(meter, metric, read_counts, self._counts)
        for metric, read_vitals in READ_VITALS.items():
            self._observe(meter, metric, read_vitals, self._vitals)
        self.histograms = {
            metric: meter.create_histogram(
                metric.name,
                metric.unit,
                metric.description,
                explicit_bucket_boundaries_advisory=metric.bounds,
            )
            for metric in (JOB_DURATION, QUEUE_DURATION, BATCH_SIZE)
        }

    def forget(self) -> None:
        """Begin anew, without any router: as after a fork, whose routers are the parent's."""
        self._lock = threading.RLock()  # a finaliser may be run while it is held
        self._gone = Counts()
        self._routers: list[tuple[weakref.ref[Vitals], Counts]] = []

    def add(self, vitals: Vitals) -> None:
        """Show a router too, for as long as there is something to show."""
        with self._lock:
            self._counts()
            self._routers.append((weakref.ref(vitals), vitals.counts))

    def _counts(self) -> list[Counts]:
        """Return what was counted, with that of routers that are gone put together."""
        for router in list(self._routers):
            if router[0]() is None:
                self._routers.remove(router)
                self._gone.merge(router[1])
        return [self._gone, *(counts for _, counts in self._routers)]

    def _vitals(self) -> list[Vitals]:
        known = [vitals() for vitals, _ in self._routers]
        return [vitals for vitals in known if vitals is not None and vitals.is_live]

    def _observe(
        self,
        meter: Meter,
        metric: Metric,
        read: Callable[[list[_Known]], Values],
        known: Callable[[], list[_Known]],
    ) -> None:
        def observe(options: CallbackOptions) -> Iterable[Observation]:  # noqa: ARG001
            with self._lock:  # no router may leave while it is read
                values = read(known())
            return [
                Observation(value, dict(zip(metric.attributes, attributes, strict=True)))
                for attributes, value in values.items()
                if isinstance(value, int | float)
            ]

        create = getattr(meter, f"create_observable_{metric.instrument}")
        create(metric.name, [observe], metric.unit, metric.description)


_lock = threading.RLock()
_instruments: dict[MeterProvider | None, Instruments] = {}


def _instruments_of(provider: MeterProvider | None) -> Instruments:
    """Return the instruments of a provider; None is what is global, now or later."""
    with _lock:
        if provider not in _instruments:
            meter = get_meter("helixnb", __version__, provider)
            _instruments[provider] = Instruments(meter)
        return _instruments[provider]


def _forget_routers() -> None:
    global _lock
    _lock = threading.RLock()
    for instruments in _instruments.values():
        instruments.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_routers)


class Telemetry:
    """Tells OpenTelemetry of one router: counters and gauges when it asks, histograms now and then.

    Its histograms have no callback, and an SDK takes about 8 us to record a value. So of more than
    1,000 a second only so many are recorded, by chance: of jobs that come in turns, every second
    one would be all of a kind. Nothing that an SDK raises reaches the router.
    """

    def __init__(self, vitals: Vitals, provider: MeterProvider | None) -> None:
        self._instruments = instruments = _instruments_of(provider)
        instruments.add(vitals)
        self._counts = vitals.counts
        self._latencies = vitals.counts.latencies = deque[Measured]()
        self._queues = vitals.counts.queues = deque[Measured]()
        self._batches: list[tuple[str, int]] = []
        self._clock = vitals.clock
        self._told_ns = self._clock()
        self._allowance = float(MOST_AT_ONCE)
        self._failed = False

    def note_batch(self, kind: str, jobs: int) -> None:
        """Note how many jobs were in a batch."""
        self._batches.append((kind, jobs))

    def tell(self) -> None:
        """Record what was measured since the last call, or some of it."""
        now_ns = self._clock()
        earned = (now_ns - self._told_ns) / 1e9 * RECORDS_PER_S
        self._told_ns = now_ns
        self._allowance = min(self._allowance + earned, MOST_AT_ONCE)
        most = int(self._allowance)
        self._counts.fold()
        try:
            recorded = self._tell_durations(self._latencies, JOB_DURATION, most)
            self._tell_durations(self._queues, QUEUE_DURATION, most)
            self._tell_batches(most)
        except Exception as error:
            recorded = most
            if not self._failed:
                self._failed = True
                logger.warning(
                    "a measurement wasn't recorded; further ones aren't logged: %r", error
                )
        self._allowance -= recorded

    def _tell_durations(self, measured: deque[Measured], metric: Metric, most: int) -> int:
        """Record some of the durations, up to so many; returns how many."""
        blocks = [measured.popleft() for _ in range(len(measured))]
        ends = list(accumulate(len(each.values_ns) * each.times for each in blocks))
        if not ends:
            return 0
        chosen = _chosen(ends[-1], most)
        histogram = self._instruments.histograms[metric]
        for i in chosen:
            at = bisect_right(ends, i)
            tally, values_ns, times = blocks[at]
            value_ns = values_ns[(i - (ends[at - 1] if at else 0)) // times]
            attributes = {"strategy": tally.strategy.value, "kind": tally.kind}
            if metric is JOB_DURATION:
                attributes["outcome"] = tally.status.value
            histogram.record(value_ns / 1e9, attributes, NOWHERE)
        return len(chosen)

    def _tell_batches(self, most: int) -> None:
        batches, self._batches = self._batches, []
        for i in _chosen(len(batches), most):
            kind, jobs = batches[i]
            self._instruments.histograms[BATCH_SIZE].record(jobs, {"kind": kind}, NOWHERE)


def _chosen(values: int, most: int) -> Sequence[int]:
    """Return which of some values to record: all, or as many as there may be."""
    return range(values) if values <= most else random.sample(range(values), most)
