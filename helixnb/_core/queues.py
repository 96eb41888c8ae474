"""Where jobs wait: bounded queues that a cancelled job leaves at once, and batch release."""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from helixnb._core.lifecycle import Entry

LONG_NS = 1e7
"""What a job of unknown length counts for in a queue's work."""

CONSIDERED = 4
"""Times as many jobs as a batch has at most are looked at for the best one."""

TRUST = 2
"""Times a predicted wait that doesn't count as excess yet."""

INTERVALS = 20
"""Targets that a queue must stand for: CoDel's 100 ms for 5 (RFC 8289, section 4.2)."""


class Standing:
    """Tells whether jobs have been waiting for far longer than predicted, all of them, for a while.

    CoDel's test (RFC 8289): the least excess over an interval is above a target. Predictions hold
    jobs to their budgets as long as they are about right, and first come is first served. When they
    aren't, whoever came first is late already, and whoever came last may still be in time.

    Attributes
    ----------
    target_ns
        The least excess that counts; the mean time of a job if that is more.
    """

    __slots__ = ("_at_ns", "_service_ns", "now", "target_ns")

    def __init__(self, target_ns: float) -> None:
        self.target_ns = target_ns
        self.now = False
        self._service_ns = 0.0
        self._at_ns = math.inf

    def note(self, excess_ns: float, service_ns: float, now_ns: float) -> None:
        """Take in how much longer than predicted the oldest job has waited."""
        self._service_ns += (min(service_ns, LONG_NS) - self._service_ns) / 32
        target_ns = max(self.target_ns, self._service_ns)
        if excess_ns < target_ns:
            self.now = False
            self._at_ns = math.inf
        elif self._at_ns == math.inf:
            self._at_ns = now_ns + INTERVALS * target_ns
        elif now_ns >= self._at_ns:
            self.now = True


class Backlog:
    """The one bound on how many jobs wait, over all queues that share it, and their deadlines.

    Attributes
    ----------
    late
        Jobs that left a queue since they can't be in time any more; for the event loop to settle.
    standing
        Whether they wait for too long.
    """

    __slots__ = ("_count", "_deadlines", "capacity", "late", "lock", "standing", "waiting")

    def __init__(self, capacity: float, target_ns: float = math.inf) -> None:
        self.capacity = capacity
        self.waiting = 0
        self.lock = threading.RLock()  # a finaliser may discard a job while it is held
        self.late: deque[Entry] = deque()
        self.standing = Standing(target_ns)
        self._deadlines: list[tuple[float, int, Entry]] = []
        self._count = itertools.count()

    @property
    def is_full(self) -> bool:
        """Whether a further job has to be dropped."""
        return self.waiting >= self.capacity

    def grow(self, jobs: int) -> None:
        """Count further jobs that wait, or fewer for a negative number. Thread-safe."""
        with self.lock:
            self.waiting += jobs

    def watch(self, entry: Entry) -> None:
        """Remember a job that has a deadline."""
        heapq.heappush(self._deadlines, (entry.deadline_ns, next(self._count), entry))
        if len(self._deadlines) > 2 * self.waiting + 64:  # most have left their queues
            self._deadlines = [each for each in self._deadlines if each[2].queue is not None]
            heapq.heapify(self._deadlines)

    @property
    def deadline_ns(self) -> float:
        """The earliest deadline of the jobs that wait, infinite for none."""
        while self._deadlines and self._deadlines[0][2].queue is None:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else math.inf

    def expire(self, now_ns: float) -> None:
        """Let those that are past their deadlines leave their queues, for `late`."""
        while self.deadline_ns < now_ns:
            entry = heapq.heappop(self._deadlines)[2]
            queue = entry.queue
            if queue is not None and queue.discard(entry):
                self.late.append(entry)


class JobQueue:
    """First in, first out; removal from the middle in constant time. Thread-safe.

    Attributes
    ----------
    work_ns
        Predicted time of all jobs that wait here, alone.
    scale
        Share of it that they take together.
    cohort
        What the callers of the latest jobs share; theirs to say.
    """

    __slots__ = ("_backlog", "_entries", "cohort", "scale", "work_ns")

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog
        self._entries: OrderedDict[Entry, None] = OrderedDict()
        self.work_ns = 0.0
        self.scale = 1.0
        self.cohort: Any = None

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def oldest(self) -> Entry | None:
        """The job at the front, None for an empty queue."""
        with self._backlog.lock:
            for entry in self._entries:
                return entry
        return None

    @property
    def oldest_ns(self) -> float:
        """When the job at the front arrived, infinite for an empty queue."""
        oldest = self.oldest
        return math.inf if oldest is None else oldest.arrived_ns

    def push(self, entry: Entry, *, first: bool = False) -> None:
        """Append a job, or let it be the first. Whether there is room, `Backlog.is_full` tells."""
        with self._backlog.lock:
            self._entries[entry] = None
            if first:
                self._entries.move_to_end(entry, last=False)
            entry.queue = self
            self._backlog.waiting += 1
            self.work_ns += min(entry.predicted_ns, LONG_NS)
        if entry.deadline_ns < math.inf:
            self._backlog.watch(entry)

    def discard(self, entry: Entry) -> bool:
        """Take a job out, wherever it stands, if it is still here; returns whether it was."""
        with self._backlog.lock:
            return self._remove(entry)

    def take(
        self, most: int, limit_ns: float = math.inf, *, now_ns: float = -math.inf
    ) -> list[Entry]:
        """Take jobs: at most `most`, and no further one past `limit_ns`.

        From the front, or while the queue stands, from the back. Jobs that can't be in time any
        more leave for `Backlog.late`.

        Parameters
        ----------
        most
            At least 1.
        limit_ns
            Bound on the sum of the predicted times. The first job is taken whatever it takes.
        """
        taken: list[Entry] = []
        total_ns = 0.0
        with self._backlog.lock:
            newest_first = self._stands(now_ns)
            while self._entries and len(taken) < most:
                entry = next(reversed(self._entries) if newest_first else iter(self._entries))
                if self._is_late(entry, now_ns):
                    continue
                total_ns += entry.predicted_ns
                if taken and total_ns > limit_ns:
                    break
                if self._remove(entry):
                    taken.append(entry)
        return taken

    def take_batch(
        self, most: int, now_ns: float, together_ns: Callable[[int, float], float]
    ) -> list[Entry]:
        """Take jobs for one call: as many as will be in time, for the time that the call takes.

        A larger batch takes less time a job, but all wait for its end. So those that it would make
        late are left, if that gains more than it loses.

        Parameters
        ----------
        most
            At least 1.
        together_ns
            What so many jobs, of a sum of predicted times, take in one call.
        """
        with self._backlog.lock:
            newest_first = self._stands(now_ns)
            ordered = reversed(self._entries) if newest_first else iter(self._entries)
            some = list(itertools.islice(ordered, CONSIDERED * most))
            some = [entry for entry in some if not self._is_late(entry, now_ns)]
            first = some[:most]
            ends_ns = now_ns + together_ns(len(first), sum(each.predicted_ns for each in first))
            if any(entry.deadline_ns < ends_ns for entry in first):
                mean_ns = sum(entry.predicted_ns for entry in some) / len(some)
                deadlines_ns = sorted((entry.deadline_ns for entry in some), reverse=True)
                jobs, ends_ns = _best_batch(deadlines_ns[:most], now_ns, mean_ns, together_ns)
                first = [entry for entry in some if entry.deadline_ns >= ends_ns][:jobs]
            return [entry for entry in first if self._remove(entry)]

    def _stands(self, now_ns: float) -> bool:
        standing = self._backlog.standing
        if self._entries and now_ns > -math.inf:
            oldest = next(iter(self._entries))
            excess_ns = now_ns - oldest.arrived_ns - TRUST * oldest.wait_ns
            standing.note(excess_ns, oldest.predicted_ns, now_ns)
        return standing.now

    def _is_late(self, entry: Entry, now_ns: float) -> bool:
        """Let a job go that can't be in time any more; returns whether it is one."""
        if now_ns <= entry.start_by_ns:
            return False
        if self._remove(entry):
            self._backlog.late.append(entry)
        return True

    def _remove(self, entry: Entry) -> bool:
        if self._entries.pop(entry, self) is self:
            return False
        entry.queue = None
        self._backlog.waiting -= 1
        # Sums of floats drift, by less than matters before the queue is empty again.
        self.work_ns = self.work_ns - min(entry.predicted_ns, LONG_NS) if self._entries else 0.0
        return True


def _best_batch(
    deadlines_ns: list[float],
    now_ns: float,
    mean_ns: float,
    together_ns: Callable[[int, float], float],
) -> tuple[int, float]:
    """Return how many jobs to batch, and when they end: most in time, for the time that it takes.

    `deadlines_ns` are the latest ones first; jobs of average length are assumed.
    """
    best, ends_ns, rate = 1, now_ns, 0.0
    for jobs, deadline_ns in enumerate(deadlines_ns, 1):
        taken_ns = together_ns(jobs, jobs * mean_ns)
        if deadline_ns >= now_ns + taken_ns and jobs > rate * taken_ns:
            best, ends_ns, rate = jobs, now_ns + taken_ns, jobs / taken_ns
    return best, ends_ns


def batch_release_in_ns(
    jobs: int, oldest_ns: float, now_ns: int, max_jobs: int, max_delay_ms: float
) -> float:
    """Return how long a batch still gathers, in nanoseconds; 0 when it is due.

    Due by size, or by the time since its oldest job arrived; infinite for no jobs.
    """
    if jobs >= max_jobs:
        return 0
    return max(0, oldest_ns + max_delay_ms * 1e6 - now_ns)
