"""What is counted of jobs and batches, by what they have in common; totals are sums of these."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from helixnb._records import Status, Strategy

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
    """

    __slots__ = ("kind", "latency_ns", "queue_ns", "reason", "status", "strategy")

    def __init__(self, kind: str, strategy: Strategy, status: Status, reason: str) -> None:
        self.kind = kind
        self.strategy = strategy
        self.status = status
        self.reason = reason
        self.latency_ns = Histogram(BOUNDS_NS)
        self.queue_ns = Histogram(BOUNDS_NS)

    @property
    def jobs(self) -> int:
        """How many."""
        return self.latency_ns.count

    def merge(self, other: Tally) -> None:
        """Count what another one has counted."""
        self.latency_ns.merge(other.latency_ns)
        self.queue_ns.merge(other.queue_ns)


class Counts:
    """What a router has counted so far; written on its event loop, read from anywhere.

    Attributes
    ----------
    tallies
        Jobs that have ended; by kind, code of the strategy, code of the status, and reason.
    releases
        Sizes of the kernel calls made for batches, by kind and by what released them.
    shadow_compared, shadow_disagreements
        Jobs that a shadow policy was asked for, and those that it would have let run otherwise.
    """

    __slots__ = (
        "_kinds",
        "_reasons",
        "releases",
        "shadow_compared",
        "shadow_disagreements",
        "tallies",
    )

    def __init__(self) -> None:
        self.tallies: dict[tuple[str, int, int, str], Tally] = {}
        self.releases: dict[tuple[str, str], Histogram] = {}
        self.shadow_compared = 0
        self.shadow_disagreements = 0
        self._kinds: set[str] = set()
        self._reasons: set[str] = set()

    def tally(self, kind: str, strategy: Strategy, status: Status, reason: str) -> Tally:
        """Return the tally of jobs that end so."""
        key = (kind, strategy.code, status.code, reason)
        tally = self.tallies.get(key)
        if tally is not None:
            return tally
        kind = _bounded(kind, self._kinds)
        reason = _bounded(reason, self._reasons)
        key = (kind, strategy.code, status.code, reason)
        return self.tallies.setdefault(key, Tally(kind, strategy, status, reason))

    def release(self, kind: str, cause: str) -> Histogram:
        """Return the sizes of the kernel calls made for batches that this cause released."""
        sizes = self.releases.get((kind, cause))
        if sizes is not None:
            return sizes
        kind = _bounded(kind, self._kinds)
        return self.releases.setdefault((kind, cause), Histogram(BOUNDS_JOBS))

    def merge(self, other: Counts) -> None:
        """Count what another router has counted."""
        for theirs in list(other.tallies.values()):  # its router may be adding some
            self.tally(theirs.kind, theirs.strategy, theirs.status, theirs.reason).merge(theirs)
        for (kind, cause), sizes in list(other.releases.items()):
            self.release(kind, cause).merge(sizes)
        self.shadow_compared += other.shadow_compared
        self.shadow_disagreements += other.shadow_disagreements


def _bounded(name: str, known: set[str]) -> str:
    if name not in known:
        if len(known) >= MOST:
            return OTHER
        known.add(name)
    return name
