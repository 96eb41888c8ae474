"""The lanes: where jobs wait for a worker thread, and what a thread takes from each at once."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from helixnb._config import RouterConfig
from helixnb._core.estimate import KindModel
from helixnb._core.lifecycle import Entry, Ledger
from helixnb._core.queues import Backlog, JobQueue, batch_release_in_ns
from helixnb._core.rules import HAND_BACK_NS
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

    @property
    def hop_us(self) -> float:
        """What a hop takes; see `RouterConfig`."""
        ...

    @property
    def stretch(self) -> float:
        """How many times longer than its CPU time a job takes, while all slots are busy."""
        ...

    @property
    def is_adaptive(self) -> bool:
        """Whether the policy wants batches as soon as a slot is free; see `Policy`."""
        ...


class Lane(ABC):
    """Work that waits for worker threads. `take` is called in them, one at a time.

    Attributes
    ----------
    sent
        How many threads are on their way because of this lane.
    served_ns
        Predicted time of what was taken from here, by the threads' account of it.
    queue
        What waits here, if it waits in a queue.
    """

    sent = 0
    served_ns = 0.0
    queue: JobQueue | None = None

    @abstractmethod
    def due_in_ns(self) -> float:
        """Return how soon there is work to take: 0 for now, infinite for none in sight."""

    @property
    @abstractmethod
    def threads_worth(self) -> int:
        """How many threads what waits here is worth, if it is due."""

    @property
    def left_ns(self) -> float:
        """Predicted time of what waits here."""
        return 0.0 if self.queue is None else self.queue.work_ns * self.queue.scale

    def expire(self, now_ns: float) -> float:  # noqa: ARG002  # those with a queue share a watch
        """Settle what waits past its deadline; returns the next one."""
        return math.inf

    @abstractmethod
    def take(self, lease: Lease, *, gather: bool) -> Work | None:
        """Take what one thread shall do now, None if nothing is due.

        Parameters
        ----------
        lease
            The slot of the thread, which may be extended.
        gather
            Whether the thread has other lanes to turn to, if this one would rather gather more.
        """


class QueueLane(Lane):
    """A lane with a queue of jobs."""

    queue: JobQueue

    def __init__(self, backlog: Backlog, ledger: Ledger) -> None:
        self.queue = JobQueue(backlog)
        self._ledger = ledger

    def due_in_ns(self) -> float:
        return 0 if self.queue else math.inf


class PoolLane(QueueLane):
    """``cpu_pool``: while all slots are busy jobs gather, and a thread takes a chunk of them."""

    @property
    def threads_worth(self) -> int:
        jobs = len(self.queue)
        # One thread keeps up with jobs that the event loop takes longer to hand over.
        work_ns = self.queue.work_ns - jobs * HAND_BACK_NS
        return min(jobs, 1 + int(work_ns / HOP_PAYS_NS)) if work_ns > 0 else min(jobs, 1)

    def take(self, lease: Lease, *, gather: bool) -> Work | None:  # noqa: ARG002  # as declared
        share = -(-len(self.queue) // (1 + self.sent))
        if not share:
            return None
        now_ns = self._ledger.clock()
        entries = self.queue.take(min(share, CHUNK_JOBS), CHUNK_NS, now_ns=now_ns)
        return Chunk(self._ledger, entries) if entries else None


class TurnLane(QueueLane):
    """Calls of which one runs at a time, as Numba's workqueue layer needs it; see `TurnEntry`.

    The others wait here, where they can expire and be cancelled, and hold neither a thread nor a
    slot.
    """

    _running: Turn | None = None

    @property
    def threads_worth(self) -> int:
        return min(len(self.queue), 1) if self._running is None else 0

    def take(self, lease: Lease, *, gather: bool) -> Work | None:  # noqa: ARG002  # as declared
        if self._running is not None:  # its thread comes back here, or wakes the loop
            return None
        entries = self.queue.take(1, now_ns=self._ledger.clock())
        if not entries:
            return None
        self._running = Turn(self._ledger, entries, self._end)
        return self._running

    def _end(self, turn: Turn) -> None:
        if self._running is turn:
            self._running = None


class Turn(Chunk):
    """One of those calls; `on_ended` is called when another one may begin."""

    def __init__(
        self, ledger: Ledger, entries: list[Entry], on_ended: Callable[[Turn], object]
    ) -> None:
        super().__init__(ledger, entries)
        self._on_ended = on_ended

    def run(self) -> None:
        try:
            super().run()
        finally:
            self._on_ended(self)

    def fail(self, error: BaseException) -> None:
        self._on_ended(self)  # no thread could be started
        super().fail(error)


class BatchLane(QueueLane):
    """The batcher of one kernel: gathers, then makes one kernel call of what has gathered."""

    def __init__(
        self,
        backlog: Backlog,
        ledger: Ledger,
        slots: Slots,
        kernel: Kernel,
        model: KindModel,
        settings: Settings,
    ) -> None:
        super().__init__(backlog, ledger)
        self._slots = slots
        self._kernel = kernel
        self._model = model
        self._settings = settings

    @property
    def threads_worth(self) -> int:
        return -(-len(self.queue) // self._settings.config.batch_max_jobs)

    def due_in_ns(self) -> float:
        # No company to wait for any more; or who asks has a slot, and jobs gather while none has.
        if not self._settings.is_open or self._settings.is_adaptive:
            return super().due_in_ns()
        config = self._settings.config
        return batch_release_in_ns(
            len(self.queue),
            self.queue.oldest_ns,
            self._ledger.clock(),
            config.batch_max_jobs,
            config.batch_max_delay_ms,
        )

    def take(self, lease: Lease, *, gather: bool) -> Work | None:
        config = self._settings.config
        model = self._model
        self.queue.scale = model.gains.scale(len(self.queue))
        most = config.batch_max_jobs
        if self._settings.is_adaptive:
            most = min(most, model.gains.largest)
        cause = self._cause(most)
        if cause is None:
            if gather or not self._settings.is_adaptive:
                return None
            cause = "slot_free"
        if self._settings.is_adaptive:
            now_ns = self._ledger.clock()
            stretch = self._settings.stretch
            entries = self.queue.take_batch(
                most, now_ns, lambda jobs, alone_ns: stretch * model.together_ns(jobs, alone_ns)
            )
        else:
            entries = self.queue.take(most)
        if not entries:
            return None
        alone_ns = sum(entry.predicted_ns for entry in entries)
        threads = min(config.cpu_parallelism, max_threads(), len(entries))
        if (
            threads > 1
            and config.parallel_kernels == "auto"
            and alone_ns >= PARALLEL_PAYS_NS
            and self._kernel.can_run_parallel
            and parallel_region_is_free()
        ):
            self._slots.extend(lease, threads - 1)
        predicted_ns = model.together_ns(len(entries), alone_ns) / lease.size
        return Batch(self._ledger, entries, lease.size, predicted_ns, cause)

    def _cause(self, most: int) -> str | None:
        """Say why a batch is due; None if it had better wait for more jobs."""
        jobs = len(self.queue)
        oldest = self.queue.oldest
        if oldest is None:
            return None
        if not self._settings.is_open:
            return "closing"
        if jobs >= most:
            return "full"
        if self._settings.is_adaptive and jobs >= self._model.gains.enough:
            return "enough"
        delay_ns = self._settings.config.batch_max_delay_ms * 1e6
        if oldest.deadline_ns < math.inf:
            ends_ns = oldest.deadline_ns - self._model.together_ns(jobs, self.queue.work_ns)
            delay_ns = (ends_ns - oldest.arrived_ns) / 2
        return "delay" if self._ledger.clock() >= oldest.arrived_ns + delay_ns else None
