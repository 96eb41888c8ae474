"""What OpenTelemetry is told of routers: by its API only, so that the application has the say."""

from __future__ import annotations

import logging
import os
import random
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import TypeVar

from opentelemetry.context import Context
from opentelemetry.metrics import (
    CallbackOptions,
    Histogram,
    Meter,
    MeterProvider,
    Observation,
    get_meter,
)

from helixnb._core.counts import Counts, Tally
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
from helixnb._records import Outcome
from helixnb._version import __version__

WINDOW_NS = 50_000_000
"""For how long it is settled which measurements are recorded."""

WINDOW_RECORDS = 50
"""About how many are recorded in that time: 1,000 a second."""

NOWHERE = Context()
"""No span: what is current when a job ends is whatever was when its router was opened."""

_Known = TypeVar("_Known", Counts, Vitals)

logger = logging.getLogger("helixnb")


class Thinning:
    """Says which measurements are recorded: all up to 1,000 a second, or else about so many.

    OpenTelemetry's histograms can't be read by a callback, and an SDK takes about 8 us to record.
    Which ones is left to chance: of jobs that come in turns, every second would be all of a kind.
    """

    __slots__ = ("_ends_ns", "_left", "_next", "_seen", "_stride")

    def __init__(self) -> None:
        self._stride = 1
        self._seen = 0
        self._next = 1
        self._left = WINDOW_RECORDS
        self._ends_ns = 0

    def due(self, times: int, now_ns: int) -> int:
        """Return how many of measurements that come now, all alike, shall be recorded."""
        if now_ns >= self._ends_ns:
            self._begin_window(now_ns)
        self._seen += times
        if self._seen < self._next:
            return 0
        records = 0
        while self._seen >= self._next:
            records += 1
            self._left -= 1
            if not self._left:  # far more come than in the window before
                self._stride *= 2
                self._left = WINDOW_RECORDS // 2
            self._next += 1 + int(random.random() * (2 * self._stride - 1))  # noqa: S311
        return records

    def _begin_window(self, now_ns: int) -> None:
        windows = max(1.0, (now_ns - self._ends_ns + WINDOW_NS) / WINDOW_NS)
        self._stride = max(1, round(self._seen / windows / WINDOW_RECORDS))
        self._next = min(self._next - self._seen, self._stride)
        self._seen = 0
        self._left = WINDOW_RECORDS
        self._ends_ns = now_ns + WINDOW_NS


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
        self.job_duration = _histogram(meter, JOB_DURATION)
        self.queue_duration = _histogram(meter, QUEUE_DURATION)
        self.batch_size = _histogram(meter, BATCH_SIZE)

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


def _histogram(meter: Meter, metric: Metric) -> Histogram:
    return meter.create_histogram(
        metric.name,
        metric.unit,
        metric.description,
        explicit_bucket_boundaries_advisory=metric.bounds,
    )


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
    """Tells OpenTelemetry of one router: counters and gauges when it asks, histograms as jobs end.

    Nothing that it raises reaches the router.
    """

    def __init__(self, vitals: Vitals, provider: MeterProvider | None) -> None:
        self._instruments = instruments = _instruments_of(provider)
        instruments.add(vitals)
        self._clock = vitals.clock
        self._jobs, self._batches = Thinning(), Thinning()
        self._failed = False

    def note_jobs(
        self,
        tally: Tally,
        jobs: int,
        now_ns: int,
        latency_ns: int,
        queue_ns: int | None,
        outcome: Outcome | None,  # noqa: ARG002  # as declared
    ) -> None:
        """Record how long jobs took."""
        due = self._jobs.due(jobs, now_ns)
        if not due:
            return
        where = {"strategy": tally.strategy.value, "kind": tally.kind}
        try:
            for _ in range(due):
                if queue_ns is not None:
                    self._instruments.queue_duration.record(queue_ns / 1e9, where, NOWHERE)
                self._instruments.job_duration.record(
                    latency_ns / 1e9, {**where, "outcome": tally.status.value}, NOWHERE
                )
        except Exception as error:
            self._warn(error)

    def note_batch(self, kind: str, jobs: int) -> None:
        """Record how many jobs were in a batch."""
        try:
            for _ in range(self._batches.due(1, self._clock())):
                self._instruments.batch_size.record(jobs, {"kind": kind}, NOWHERE)
        except Exception as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            logger.warning("a measurement wasn't recorded; further ones aren't logged: %r", error)
