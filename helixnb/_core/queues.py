"""Where jobs wait: bounded queues that a cancelled job leaves at once, and batch release."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from helixnb._core.lifecycle import Entry


class Backlog:
    """The one bound on how many jobs wait, over all queues that share it."""

    __slots__ = ("capacity", "waiting")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.waiting = 0

    @property
    def is_full(self) -> bool:
        """Whether a further job has to be dropped."""
        return self.waiting >= self.capacity


class JobQueue:
    """First in, first out; removal from the middle in constant time."""

    __slots__ = ("_backlog", "_entries")

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog
        self._entries: OrderedDict[Entry, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    @property
    def oldest_ns(self) -> int:
        """When the job at the front arrived; the queue must not be empty."""
        return next(iter(self._entries)).arrived_ns

    def push(self, entry: Entry) -> None:
        """Append a job. Whether there is room is for the caller to ask `Backlog.is_full`."""
        self._entries[entry] = None
        entry.queue = self
        self._backlog.waiting += 1

    def discard(self, entry: Entry) -> None:
        """Take a job out, wherever it stands; the queue must hold it."""
        del self._entries[entry]
        entry.queue = None
        self._backlog.waiting -= 1

    def take(self, most: int, limit_ns: float = float("inf")) -> list[Entry]:
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
        while self._entries and len(taken) < most:
            entry = next(iter(self._entries))
            total_ns += entry.predicted_ns
            if taken and total_ns > limit_ns:
                break
            self.discard(entry)
            taken.append(entry)
        return taken


def batch_release_in_ns(
    jobs: int, oldest_ns: int, now_ns: int, max_jobs: int, max_delay_ms: float
) -> int:
    """Return how long a batch still gathers, in nanoseconds; 0 when it is due.

    Due by size, or by the time since its oldest job arrived.
    """
    if jobs >= max_jobs:
        return 0
    return max(0, oldest_ns + round(max_delay_ms * 1e6) - now_ns)
