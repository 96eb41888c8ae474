"""The lanes: where jobs wait for a worker thread, and what a thread takes from each at once."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from helixnb._config import RouterConfig
from helixnb._core.lifecycle import Ledger
from helixnb._core.queues import Backlog, JobQueue, batch_release_in_ns
from helixnb._exec.slots import Lease, Slots
from helixnb._exec.work import Batch, Chunk, Work
from helixnb_kernels import Kernel, max_threads, parallel_region_is_free

CHUNK_NS = 1_000_000
"""Predicted time of the jobs that a worker thread takes at once, and of inline work between two
turns of the event loop: long beside a hop (0.1 ms), short beside a budget."""

CHUNK_JOBS = 256
"""How many jobs a thread takes at once at most: to settle that many takes the loop 1 ms."""

HOP_PAYS_NS = 200_000
"""Predicted work that is worth a further thread's hop (0.1 ms) while one is on its way already."""

PARALLEL_PAYS_NS = 200_000
"""Predicted work of a batch from which on several threads are tried: about what a launch of
Numba's threads costs after idle (75 to 215 us, by threading layer)."""


class Settings(Protocol):
    """Where a lane reads how its router is set, and whether it still takes jobs."""

    @property
    def config(self) -> RouterConfig:
        """The configuration in force."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether further jobs may come."""
        ...


class Lane(ABC):
    """Work that waits for worker threads. `take` is called in them, one at a time.

    Attributes
    ----------
    sent
        How many threads are on their way because of this lane.
    """

    sent = 0

    @abstractmethod
    def due_in_ns(self) -> float:
        """Return how soon there is work to take: 0 for now, infinite for none in sight."""

    @property
    @abstractmethod
    def threads_worth(self) -> int:
        """How many threads what waits here is worth, if it is due."""

    @abstractmethod
    def take(self, lease: Lease) -> Work | None:
        """Take what one thread shall do now, None if nothing is due.

        `lease` is the slot of the thread, which may be extended.
        """


class QueueLane(Lane):
    """A lane with a queue of jobs."""

    def __init__(self, backlog: Backlog, ledger: Ledger) -> None:
        self.queue = JobQueue(backlog)
        self._ledger = ledger

    def due_in_ns(self) -> float:
        return 0 if self.queue else math.inf


class PoolLane(QueueLane):
    """``cpu_pool``: while all slots are busy jobs gather, and a thread takes a chunk of them."""

    @property
    def threads_worth(self) -> int:
        return min(len(self.queue), 1 + int(self.queue.work_ns / HOP_PAYS_NS))

    def take(self, lease: Lease) -> Work | None:  # noqa: ARG002  # as declared
        share = -(-len(self.queue) // (1 + self.sent))
        entries = self.queue.take(min(share, CHUNK_JOBS), CHUNK_NS) if share else []
        return Chunk(self._ledger, entries) if entries else None


class BatchLane(QueueLane):
    """The batcher of one kernel: gathers, then makes one kernel call of what has gathered."""

    def __init__(
        self,
        backlog: Backlog,
        ledger: Ledger,
        slots: Slots,
        kernel: Kernel,
        settings: Settings,
        clock: Callable[[], int],
    ) -> None:
        super().__init__(backlog, ledger)
        self._slots = slots
        self._kernel = kernel
        self._settings = settings
        self._clock = clock

    @property
    def threads_worth(self) -> int:
        return -(-len(self.queue) // self._settings.config.batch_max_jobs)

    def due_in_ns(self) -> float:
        if not self._settings.is_open:  # no company to wait for any more
            return super().due_in_ns()
        config = self._settings.config
        return batch_release_in_ns(
            len(self.queue),
            self.queue.oldest_ns,
            self._clock(),
            config.batch_max_jobs,
            config.batch_max_delay_ms,
        )

    def take(self, lease: Lease) -> Work | None:
        if self.due_in_ns() > 0:
            return None
        config = self._settings.config
        entries = self.queue.take(config.batch_max_jobs)
        if not entries:
            return None
        threads = min(config.cpu_parallelism, max_threads(), len(entries))
        if (
            threads > 1
            and config.parallel_kernels == "auto"
            and sum(entry.predicted_ns for entry in entries) >= PARALLEL_PAYS_NS
            and self._kernel.can_run_parallel
            and parallel_region_is_free()
        ):
            self._slots.extend(lease, threads - 1)
        return Batch(self._ledger, self._kernel, entries, lease.size)
