"""Where jobs wait: bounded queues that a cancelled job leaves at once, and batch release."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from typing import Any

from helixnb._core.lifecycle import Entry

LONG_NS = 1e12
"""What a job of unknown length counts for in a queue's work."""


class Backlog:
    """The one bound on how many jobs wait, over all queues that share it."""

    __slots__ = ("capacity", "lock", "waiting")

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self.waiting = 0
        self.lock = threading.RLock()  # a finaliser may discard a job while it is held

    @property
    def is_full(self) -> bool:
        """Whether a further job has to be dropped."""
        return self.waiting >= self.capacity

    def grow(self, jobs: int) -> None:
        """Count further jobs that wait, or fewer for a negative number. Thread-safe."""
        with self.lock:
            self.waiting += jobs


class JobQueue:
    """First in, first out; removal from the middle in constant time. Thread-safe.

    Attributes
    ----------
    work_ns
        Predicted time of all jobs that wait here.
    cohort
        What the callers of the latest jobs share; theirs to say.
    """

    __slots__ = ("_backlog", "_entries", "cohort", "work_ns")

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog
        self._entries: OrderedDict[Entry, None] = OrderedDict()
        self.work_ns = 0.0
        self.cohort: Any = None

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def oldest_ns(self) -> float:
        """When the job at the front arrived, infinite for an empty queue."""
        with self._backlog.lock:
            for entry in self._entries:
                return entry.arrived_ns
        return math.inf

    def push(self, entry: Entry) -> None:
        """Append a job. Whether there is room is for the caller to ask `Backlog.is_full`."""
        with self._backlog.lock:
            self._entries[entry] = None
            entry.queue = self
            self._backlog.waiting += 1
            self.work_ns += min(entry.predicted_ns, LONG_NS)

    def discard(self, entry: Entry) -> None:
        """Take a job out, wherever it stands, if it is still here."""
        with self._backlog.lock:
            self._remove(entry)

    def take(self, most: int, limit_ns: float = math.inf) -> list[Entry]:
        """Take jobs from the front: at most `most`, and no further one past `limit_ns`.

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
            while self._entries and len(taken) < most:
                entry = next(iter(self._entries))
                total_ns += entry.predicted_ns
                if taken and total_ns > limit_ns:
                    break
                if self._remove(entry):
                    taken.append(entry)
        return taken

    def _remove(self, entry: Entry) -> bool:
        if self._entries.pop(entry, self) is self:
            return False
        entry.queue = None
        self._backlog.waiting -= 1
        # Sums of floats drift, by less than matters before the queue is empty again.
        self.work_ns = self.work_ns - min(entry.predicted_ns, LONG_NS) if self._entries else 0.0
        return True


def batch_release_in_ns(
    jobs: int, oldest_ns: float, now_ns: int, max_jobs: int, max_delay_ms: float
) -> float:
    """Return how long a batch still gathers, in nanoseconds; 0 when it is due.

    Due by size, or by the time since its oldest job arrived; infinite for no jobs.
    """
    if jobs >= max_jobs:
        return 0
    return max(0, oldest_ns + max_delay_ms * 1e6 - now_ns)
