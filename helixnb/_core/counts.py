"""What is counted of jobs and batches, by what they have in common; totals are sums of these."""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from helixnb._records import Status, Strategy

WINDOW = 4_096
"""How many latencies a strategy keeps for its quantiles; the oldest give way."""

OTHER = "_OTHER"
"""Stands for kinds and reasons beyond `MOST`: the term of OpenTelemetry's conventions."""

MOST = 64
"""How many kinds, and how many reasons, are told apart. The router's own are some dozens; but
callables and policies may name theirs as they like."""

BOUNDS_NS = (*(digit * 10**power for power in range(3, 10) for digit in (1, 2, 5)), 10**10)
"""Upper bounds of the buckets for durations: 1 us to 10 s, three a decade."""

BOUNDS_JOBS = tuple(2**power for power in range(13))
"""Upper bounds of the buckets for sizes: 1 to 4,096 jobs."""


class Histogram:
    """Counts of values by bucket, and their sum. A value on a bound belongs below it.

    Attributes
    ----------
    bounds
        Upper bounds of the buckets but the last, ascending.
    buckets
        How many values fell in each; one more than bounds.
    sum
        Of all values.
    """

    __slots__ = ("bounds", "buckets", "sum")

    def __init__(self, bounds: Sequence[int]) -> None:
        self.bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.sum = 0

    def record(self, value: int, times: int = 1) -> None:
        """Count a value."""
        self.buckets[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def extend(self, values: Sequence[int]) -> None:
        """Count several values."""
        if len(values) < 32:  # where NumPy takes longer
            for value in values:
                self.buckets[bisect_left(self.bounds, value)] += 1
        else:
            where = np.searchsorted(self.bounds, values)
            counts = np.bincount(where, minlength=len(self.buckets)).tolist()
            self.buckets = [old + new for old, new in zip(self.buckets, counts, strict=True)]
        self.sum += sum(values)

    @property
    def count(self) -> int:
        """How many values were recorded."""
        return sum(self.buckets)

    def merge(self, other: Histogram) -> None:
        """Count what another one with these bounds has counted."""
        self.buckets = [
            mine + theirs for mine, theirs in zip(self.buckets, other.buckets, strict=True)
        ]
        self.sum += other.sum


class LatencyWindow:
    """The latest latencies of one strategy in nanoseconds, and the sum over all of them."""

    __slots__ = ("_oldest", "_size", "count", "latest_ns", "sum_ns")

    def __init__(self, size: int = WINDOW) -> None:
        self._size = size
        self._oldest = 0
        self.latest_ns = array("q")
        self.count = 0
        self.sum_ns = 0

    def record(self, latency_ns: int, times: int = 1) -> None:
        """Keep a latency, of one job or of several; the oldest give way."""
        self._keep([latency_ns] * min(times, self._size))
        self.count += times
        self.sum_ns += latency_ns * times

    def extend(self, latencies_ns: Sequence[int]) -> None:
        """Keep several, the newest last."""
        self._keep(latencies_ns[-self._size :])
        self.count += len(latencies_ns)
        self.sum_ns += sum(latencies_ns)

    def _keep(self, latencies_ns: Sequence[int]) -> None:
        for latency_ns in latencies_ns:
            if len(self.latest_ns) < self._size:
                self.latest_ns.append(latency_ns)
            else:
                self.latest_ns[self._oldest] = latency_ns
                self._oldest = (self._oldest + 1) % self._size

    def kept_ns(self) -> array[int]:
        """Return the latencies kept, in no particular order."""
        return self.latest_ns[:]


class Tally:
    """Jobs that ended alike: of one kind, by one strategy, in one way, for one reason.

    Attributes
    ----------
    kind, strategy, status, reason
        What they have in common; kind and reason may be `OTHER`.
    latency_ns
        From submit to outcome.
    queue_ns
        From submit to when they began to run, of those that did.
    noted_latencies_ns, noted_queues_ns
        What isn't in these yet; see `Counts.fold`.
    """

    __slots__ = (
        "kind",
        "latency_ns",
        "noted_latencies_ns",
        "noted_queues_ns",
        "queue_ns",
        "reason",
        "status",
        "strategy",
    )

    def __init__(self, kind: str, strategy: Strategy, status: Status, reason: str) -> None:
        self.kind = kind
        self.strategy = strategy
        self.status = status
        self.reason = reason
        self.latency_ns = Histogram(BOUNDS_NS)
        self.queue_ns = Histogram(BOUNDS_NS)
        self.noted_latencies_ns: list[int] = []
        self.noted_queues_ns: list[int] = []

    @property
    def jobs(self) -> int:
        """How many were folded in."""
        return self.latency_ns.count

    def merge(self, other: Tally) -> None:
        """Count what another one has counted."""
        self.latency_ns.merge(other.latency_ns)
        self.queue_ns.merge(other.queue_ns)


class Measured(NamedTuple):
    """Values that were measured of jobs that ended alike, each for so many jobs."""

    tally: Tally
    values_ns: Sequence[int]
    times: int


class Counts:
    """What a router has counted so far.

    A job is noted on the event loop in as little time as there is, by its latency at the end of a
    list; what follows from that is worked out now and then, or by who reads, for many at a time.

    Parameters
    ----------
    most
        How many kinds, and how many reasons, are told apart.

    Attributes
    ----------
    tallies
        Jobs that have ended; by kind, code of the strategy, code of the status, and reason.
    windows
        The latest latencies of completed jobs, by the code of the strategy.
    latencies, queues
        What was folded in, for whoever takes it out; None while nobody does.
    releases
        Sizes of the kernel calls made for batches, by kind and by what released them.
    shadow_compared, shadow_disagreements
        Jobs that a shadow policy was asked for, and those that it would have let run otherwise.
    inline_overruns
        Jobs that ran on the event loop and held it up.
    """

    __slots__ = (
        "_folding",
        "_kinds",
        "_most",
        "_reasons",
        "inline_overruns",
        "latencies",
        "lock",
        "queues",
        "releases",
        "shadow_compared",
        "shadow_disagreements",
        "tallies",
        "windows",
    )

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._folding = False
        self.tallies: dict[tuple[str, int, int, str], Tally] = {}
        self.releases: dict[tuple[str, str], Histogram] = {}
        self.windows = [LatencyWindow() for _ in Strategy]
        self.latencies: deque[Measured] | None = None
        self.queues: deque[Measured] | None = None
        self.lock = threading.RLock()  # a finaliser may be run while it is held
        self.shadow_compared = 0
        self.shadow_disagreements = 0
        self.inline_overruns = 0
        self._kinds: set[str] = set()
        self._reasons: set[str] = set()

    def tally(self, kind: str, strategy: Strategy, status: Status, reason: str) -> Tally:
        """Return the tally of jobs that end so."""
        key = (kind, strategy.code, status.code, reason)
        tally = self.tallies.get(key)
        if tally is not None:
            return tally
        kind = _bounded(kind, self._kinds, self._most)
        reason = _bounded(reason, self._reasons, self._most)
        key = (kind, strategy.code, status.code, reason)
        return self.tallies.setdefault(key, Tally(kind, strategy, status, reason))

    def release(self, kind: str, cause: str) -> Histogram:
        """Return the sizes of the kernel calls made for batches that this cause released."""
        sizes = self.releases.get((kind, cause))
        if sizes is not None:
            return sizes
        kind = _bounded(kind, self._kinds, self._most)
        return self.releases.setdefault((kind, cause), Histogram(BOUNDS_JOBS))

    def fold(self) -> None:
        """Put what was noted in histograms and windows. Thread-safe, as all that reads them."""
        with self.lock:
            if self._folding:  # by what a finaliser or a signal has interrupted in this thread
                return
            self._folding = True
            try:
                for tally in list(self.tallies.values()):  # the router may be adding some
                    if tally.noted_latencies_ns or tally.noted_queues_ns:
                        self._fold(tally)
            finally:
                self._folding = False

    def _fold(self, tally: Tally) -> None:
        latencies_ns = _taken(tally.noted_latencies_ns)
        tally.latency_ns.extend(latencies_ns)
        if tally.status is Status.COMPLETED:
            self.windows[tally.strategy.code].extend(latencies_ns)
        queues_ns = _taken(tally.noted_queues_ns)
        tally.queue_ns.extend(queues_ns)
        if self.latencies is not None and latencies_ns:
            self.latencies.append(Measured(tally, latencies_ns, 1))
        if self.queues is not None and queues_ns:
            self.queues.append(Measured(tally, queues_ns, 1))

    def add(self, tally: Tally, jobs: int, latency_ns: int, queue_ns: int | None) -> None:
        """Count jobs that ended alike, and at once. Thread-safe."""
        with self.lock:
            tally.latency_ns.record(latency_ns, jobs)
            if tally.status is Status.COMPLETED:
                self.windows[tally.strategy.code].record(latency_ns, jobs)
            if self.latencies is not None:
                self.latencies.append(Measured(tally, [latency_ns], jobs))
            if queue_ns is not None:
                tally.queue_ns.record(queue_ns, jobs)
                if self.queues is not None:
                    self.queues.append(Measured(tally, [queue_ns], jobs))

    def merge(self, other: Counts) -> None:
        """Count what another router has counted."""
        other.fold()
        for theirs in list(other.tallies.values()):  # its router may be adding some
            self.tally(theirs.kind, theirs.strategy, theirs.status, theirs.reason).merge(theirs)
        for (kind, cause), sizes in list(other.releases.items()):
            self.release(kind, cause).merge(sizes)
        self.inline_overruns += other.inline_overruns
        self.shadow_compared += other.shadow_compared
        self.shadow_disagreements += other.shadow_disagreements


def _taken(noted: list[int]) -> list[int]:
    """Take all out that stands in a list; something may be appended meanwhile."""
    taken = noted[:]
    del noted[: len(taken)]
    return taken


def _bounded(name: str, known: set[str], most: int) -> str:
    if name not in known:
        if len(known) >= most:
            return OTHER
        known.add(name)
    return name
