"""What OpenTelemetry is told of routers: by its API only, so that the application has the say."""

from __future__ import annotations

import functools
import os
import random
import threading
import weakref
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from typing import Any, TypeVar

from opentelemetry.context import Context
from opentelemetry.metrics import (
    CallbackOptions,
    Meter,
    MeterProvider,
    NoOpMeterProvider,
    Observation,
    get_meter,
    get_meter_provider,
)

from helixnb._core.counts import MOST, Counts, Measured
from helixnb._log import SafeLogger
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

NS_PER_RECORD = 1_000_000
"""How long it takes until another duration may be recorded: 1,000 a second."""

MOST_AT_ONCE = 50
"""How many at once: SDKs take the event loop 0.4 ms for that, and for the waits as much again."""

MOST_GONE = 16 * MOST
"""How many kinds of routers that are gone, and how many reasons, are told apart."""

MOST_WAITING = 1_000
"""How many wait to be recorded."""

NOWHERE = Context()
"""No span: what is current when a job ends is whatever was when its router was opened."""

_Known = TypeVar("_Known", Counts, Vitals)
Attributes = Mapping[str, str]
Measurement = tuple[float, Attributes]


class _Global:
    """Stands for the provider that is global, now or later."""


GLOBAL = _Global()

logger = SafeLogger("helixnb")


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
        self._gone = Counts(MOST_GONE)
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
            ]

        create = getattr(meter, f"create_observable_{metric.instrument}")
        create(metric.name, [observe], metric.unit, metric.description)


_lock = threading.RLock()
_instruments: list[tuple[Callable[[], MeterProvider | None], Instruments]] = []
"""Those of each provider, as long as there is one."""


def _instruments_of(provider: MeterProvider | None) -> Instruments:
    """Return the instruments of a provider; of what is global, now or later, for None."""
    with _lock:
        current = get_meter_provider()
        if provider is None or provider is current:
            wanted: tuple[Any, ...] = (GLOBAL, current)
            provider = None
        else:
            wanted = (provider,)
        _instruments[:] = [each for each in _instruments if each[0]() is not None]
        for known, instruments in _instruments:
            if any(known() is each for each in wanted):
                return instruments
        instruments = Instruments(get_meter("helixnb", __version__, provider))
        _instruments.append((_weakly(GLOBAL if provider is None else provider), instruments))
        return instruments


def _weakly(provider: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(provider)
    except TypeError:
        return lambda: provider


def _forget_routers() -> None:
    global _lock
    _lock = threading.RLock()
    for _, instruments in _instruments:
        instruments.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_routers)


def new_telemetry(vitals: Vitals, provider: MeterProvider | None) -> Telemetry:
    """Return what tells OpenTelemetry of a router; nobody is told if the provider fails."""
    try:
        instruments = _instruments_of(provider)
    except Exception as error:
        logger.warning("no metrics will be recorded: %r", error)
        instruments = Instruments(NoOpMeterProvider().get_meter("helixnb"))
    return Telemetry(vitals, instruments)


class Telemetry:
    """Tells OpenTelemetry of one router: counters and gauges when it asks, histograms now and then.

    Its histograms have no callback, and an SDK takes about 8 us to record a value. So up to 1,000
    are recorded a second; more wait, and where more than 1,000 wait, chance says which. Nothing
    that an SDK raises reaches the router.
    """

    def __init__(self, vitals: Vitals, instruments: Instruments) -> None:
        instruments.add(vitals)
        self._counts = vitals.counts
        self._latencies = vitals.counts.latencies = deque[Measured]()
        self._queues = vitals.counts.queues = deque[Measured]()
        self._batches: deque[tuple[str, int]] = deque(maxlen=MOST_WAITING)
        self._waiting = {metric: Waiting() for metric in instruments.histograms}
        self._histograms = instruments.histograms
        self._clock = vitals.clock
        self._told_ns = self._clock()
        self._earned_ns = 0
        self._failed = False

    def note_batch(self, kind: str, jobs: int) -> None:
        """Note how many jobs were in a batch."""
        self._batches.append((kind, jobs))

    def tell(self) -> None:
        """Record what was measured, or some of it; the rest another time."""
        now_ns = self._clock()
        self._earned_ns = min(
            self._earned_ns + now_ns - self._told_ns, MOST_AT_ONCE * NS_PER_RECORD
        )
        self._told_ns = now_ns
        self._take_in()
        most = self._earned_ns // NS_PER_RECORD
        recorded = max(self._record(metric, most) for metric in self._waiting)
        self._earned_ns -= recorded * NS_PER_RECORD

    def close(self) -> None:
        """Record all that still waits, and take in no more."""
        self._take_in()
        self._counts.latencies = self._counts.queues = None
        for metric in self._waiting:
            self._record(metric, MOST_WAITING)

    def _take_in(self) -> None:
        """Let what was measured since the last call wait, or as much as may."""
        self._counts.fold()
        for metric, measured in ((JOB_DURATION, self._latencies), (QUEUE_DURATION, self._queues)):
            blocks = [measured.popleft() for _ in range(len(measured))]
            if blocks:
                ends = list(accumulate(len(each.values_ns) * each.times for each in blocks))
                one = functools.partial(_duration, blocks, ends, metric)
                self._waiting[metric].add(ends[-1], one)
        sizes = [self._batches.popleft() for _ in range(len(self._batches))]
        self._waiting[BATCH_SIZE].add(len(sizes), lambda i: (sizes[i][1], {"kind": sizes[i][0]}))

    def _record(self, metric: Metric, most: int) -> int:
        """Record up to so many of those that wait; returns how many."""
        now = self._waiting[metric].take(most)
        try:
            for value, attributes in now:
                self._histograms[metric].record(value, attributes, NOWHERE)
        except (KeyboardInterrupt, SystemExit):  # for the program, not for the router
            raise
        except BaseException as error:
            if not self._failed:
                self._failed = True
                logger.warning(
                    "a measurement wasn't recorded; further ones aren't logged: %r", error
                )
        return len(now)


class Waiting:
    """Measurements that wait to be recorded; where more come than may wait, chance says which.

    Each that has come since all of them could wait is as likely to be among those that do. What is
    let in is worked out for many at a time: to draw for each took a quarter of the event loop
    at 36,000 jobs a second.
    """

    def __init__(self) -> None:
        self._values: list[Measurement] = []
        self._come = 0

    def add(self, new: int, value_of: Callable[[int], Measurement]) -> None:
        """Let so many new ones wait, ``value_of(i)`` each, or some in the place of others."""
        if not new:
            return
        room = MOST_WAITING - len(self._values)
        if new <= room:
            self._values += map(value_of, range(new))
            self._come = len(self._values)
            return
        self._come = self._come + new if self._values else new
        share = int(MOST_WAITING * new / self._come + random.random())  # noqa: S311  # no secret
        chosen = random.sample(range(new), max(room, share))
        places = random.sample(range(len(self._values)), len(chosen) - room)
        for place, i in zip(places, chosen[room:], strict=True):
            self._values[place] = value_of(i)
        self._values += map(value_of, chosen[:room])

    def __len__(self) -> int:
        return len(self._values)

    def take(self, most: int) -> list[Measurement]:
        """Take out up to so many."""
        taken, self._values = self._values[:most], self._values[most:]
        return taken


def _duration(blocks: list[Measured], ends: list[int], metric: Metric, i: int) -> Measurement:
    """Return the i-th of the durations in some blocks, which end where `ends` says."""
    at = bisect_right(ends, i)
    tally, values_ns, times = blocks[at]
    value_ns = values_ns[(i - (ends[at - 1] if at else 0)) // times]
    attributes: Attributes = {"strategy": tally.strategy.value, "kind": tally.kind}
    if metric is JOB_DURATION:
        attributes = {**attributes, "outcome": tally.status.value}
    return value_ns / 1e9, attributes
