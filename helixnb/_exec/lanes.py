"""The lanes in front of the workers: pool dispatcher, batcher, and inline runs of tickets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import anyio
from anyio.lowlevel import checkpoint

from helixnb._config import RouterConfig
from helixnb._core.lifecycle import Entry, Ledger
from helixnb._core.queues import Backlog, JobQueue, batch_release_in_ns
from helixnb._exec.slots import Slots
from helixnb._exec.workers import Workers, run_on_loop
from helixnb_kernels import Kernel

CHUNK_NS = 1_000_000
"""Predicted time of the jobs that one thread hop carries, and of inline work between two turns
of the event loop: long beside a hop (0.1 ms), short beside a budget."""


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
    """A queue and the task that empties it."""

    def __init__(self, backlog: Backlog) -> None:
        self.queue = JobQueue(backlog)
        self._news = anyio.Event()

    def push(self, entry: Entry) -> None:
        """Queue a job."""
        self.queue.push(entry)
        if len(self.queue) == 1:
            self.wake()

    @abstractmethod
    async def run(self) -> None:
        """Empty the queue until cancelled."""

    def wake(self) -> None:
        """Let the task look again."""
        self._news.set()

    async def _next_news(self, timeout_s: float | None = None) -> None:
        self._news = anyio.Event()
        with anyio.move_on_after(timeout_s):
            await self._news.wait()


class PoolLane(Lane):
    """The single consumer of ``cpu_pool``.

    It clocks itself: while all slots are busy, jobs gather, and a slot that comes free takes a
    chunk of them in one thread hop. Jobs wait for nothing else.
    """

    def __init__(self, backlog: Backlog, slots: Slots, workers: Workers) -> None:
        super().__init__(backlog)
        self._slots = slots
        self._workers = workers

    async def run(self) -> None:
        while True:
            while not self.queue:
                await self._next_news()
            lease = await self._slots.take()
            share = -(-len(self.queue) // (1 + self._slots.idle))  # the idle slots take theirs
            entries = self.queue.take(max(share, 1), CHUNK_NS)
            if entries:
                self._workers.start_chunk(lease, entries)
            else:  # all were cancelled while we waited for the slot
                self._slots.release(lease)


class BatchLane(Lane):
    """The batcher of one kernel: gathers, then makes one kernel call of what has gathered."""

    def __init__(
        self,
        backlog: Backlog,
        slots: Slots,
        workers: Workers,
        kernel: Kernel,
        settings: Settings,
        clock: Callable[[], int],
    ) -> None:
        super().__init__(backlog)
        self._slots = slots
        self._workers = workers
        self._kernel = kernel
        self._settings = settings
        self._clock = clock

    def push(self, entry: Entry) -> None:
        """Queue a job; the one that fills the batch releases it."""
        super().push(entry)
        if len(self.queue) >= self._settings.config.batch_max_jobs:
            self.wake()

    async def run(self) -> None:
        while True:
            while not self.queue:
                await self._next_news()
            config = self._settings.config
            gather_ns = batch_release_in_ns(
                len(self.queue),
                self.queue.oldest_ns,
                self._clock(),
                config.batch_max_jobs,
                config.batch_max_delay_ms,
            )
            if gather_ns > 0 and self._settings.is_open:
                await self._next_news(gather_ns / 1e9)
                continue
            lease = await self._slots.take()
            config = self._settings.config
            entries = self.queue.take(config.batch_max_jobs)
            if entries:
                threads = config.cpu_parallelism if config.parallel_kernels == "auto" else 1
                self._workers.start_batch(lease, self._kernel, entries, threads)
            else:  # all were cancelled while we waited for the slot
                self._slots.release(lease)


class InlineLane(Lane):
    """Inline jobs of tickets: they run on the event loop, but not inside `submit_soon`.

    Other tasks get their turn once a millisecond.
    """

    def __init__(self, backlog: Backlog, ledger: Ledger, clock: Callable[[], int]) -> None:
        super().__init__(backlog)
        self._ledger = ledger
        self._clock = clock

    async def run(self) -> None:
        while True:
            while not self.queue:
                await self._next_news()
            turn_ends_ns = self._clock() + CHUNK_NS
            while self.queue and self._clock() < turn_ends_ns:
                (entry,) = self.queue.take(1)
                run_on_loop(self._ledger, entry)
            await checkpoint()
