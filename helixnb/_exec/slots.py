"""The one owner of CPU slots: no kernel runs in a worker thread without a lease from here."""

from __future__ import annotations

import threading
from typing import Any

import anyio


class Lease:
    """The hold of one worker thread on slots.

    Attributes
    ----------
    size
        How many slots are held, and so on how many threads the holder may compute; 0 for none.
    begun
        Whether its thread has begun.
    ends_ns
        When it should be done with what it has in hand.
    lane
        The lane that the thread was sent for.
    wanted
        Held; released to wake the thread, which has slots again then.
    """

    __slots__ = ("begun", "ends_ns", "lane", "size", "wanted")

    def __init__(self) -> None:
        self.size = 0
        self.begun = False
        self.ends_ns = 0.0
        self.lane: Any = None
        self.wanted = threading.Lock()
        self.wanted.acquire()


class Slots:
    """CPU slots, over all strategies.

    Must be created on the event loop. `extend`, `shrink` and `release` are for worker threads too.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.busy = 0
        self._lock = threading.RLock()
        self._taken = anyio.Event()

    @property
    def idle(self) -> int:
        """How many are free; none while more are held than there are, after a `resize`."""
        return max(0, self.total - self.busy)

    async def wait_busy(self) -> None:
        """Wait until a slot is held."""
        while not self.busy:
            self._taken = anyio.Event()
            await self._taken.wait()

    def resize(self, total: int) -> None:
        """Change how many there are. Leases that are out stay out."""
        with self._lock:
            self.total = total

    def take(self, lease: Lease) -> None:
        """Take a slot, if `idle` is more than 0, for a lease that has none."""
        with self._lock:
            self.busy += 1
            lease.size = 1
        self._taken.set()

    def extend(self, lease: Lease, extras: int) -> None:
        """Add up to `extras` slots to a lease, as many as are free now.

        Never waits: two holders that waited for each other's slots would wait for ever.
        """
        with self._lock:
            added = max(0, min(extras, self.total - self.busy))
            self.busy += added
            lease.size += added

    def shrink(self, lease: Lease) -> None:
        """Give all slots of a lease back but one."""
        with self._lock:
            self.busy -= lease.size - 1
            lease.size = 1

    def release(self, lease: Lease) -> None:
        """Give all slots of a lease back, once its thread uses them no more."""
        with self._lock:
            self.busy -= lease.size
            lease.size = 0
