"""Worker threads: one hop carries a chunk of jobs, or a batch, out and back."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
from anyio.abc import TaskGroup

from helixnb._core.lifecycle import Entry, Ledger
from helixnb._exec.slots import Lease, Slots
from helixnb._records import Status
from helixnb_kernels import Kernel, max_threads, parallel_region_is_free

PARALLEL_PAYS_NS = 200_000
"""Predicted work of a batch from which on several threads are tried: about what a launch of
Numba's threads costs after idle (75 to 215 us, by threading layer)."""

T = TypeVar("T")
Ended = tuple[Any, BaseException | None]


class Workers:
    """Runs leased work in threads, in tasks of the router's own.

    A caller that is cancelled leaves such a task alone: a thread can't be stopped, and its slot
    is free only when it has ended.
    """

    def __init__(self, slots: Slots, ledger: Ledger, tasks: TaskGroup) -> None:
        self._slots = slots
        self._ledger = ledger
        self._tasks = tasks
        # The lease is what bounds the threads; anyio's own limiter would count them twice.
        self._unbounded = anyio.CapacityLimiter(math.inf)
        self.batches = 0
        self.batched_jobs = 0
        self.parallel_launches = 0

    def start_chunk(self, lease: Lease, entries: list[Entry]) -> None:
        """Run jobs one after the other in one thread, then release the lease."""
        self._tasks.start_soon(self._hold, lease, entries, self._chunk)

    def start_batch(self, lease: Lease, kernel: Kernel, entries: list[Entry], threads: int) -> None:
        """Run jobs of one kernel in one call, on up to `threads` threads, then release the lease.

        Further slots are added to the lease as they are free, and as the work is worth it.
        """
        self._tasks.start_soon(self._hold, lease, entries, self._batch, kernel, threads)

    async def _hold(
        self,
        lease: Lease,
        entries: list[Entry],
        run: Callable[..., Awaitable[list[Ended]]],
        *args: Any,
    ) -> None:
        """Run `entries`; whatever happens, settle all of them and release the lease."""
        try:
            ended = await run(lease, entries, *args)
            for entry, (value, error) in zip(entries, ended, strict=True):
                if error is None:
                    self._ledger.settle(entry, Status.COMPLETED, value=value)
                else:
                    self._ledger.settle(entry, Status.FAILED, error=error)
        except Exception as error:  # no thread could be started, or a fault of our own
            for entry in entries:
                self._ledger.settle(entry, Status.FAILED, error=error)
        finally:
            self._slots.release(lease)
            for entry in entries:  # cancelled before the hop: the router is closing
                self._ledger.settle(entry, Status.DROPPED, reason="router_closed")

    async def _chunk(self, _: Lease, entries: list[Entry]) -> list[Ended]:
        return await self._hop(_run_each, entries)

    async def _batch(
        self, lease: Lease, entries: list[Entry], kernel: Kernel, threads: int
    ) -> list[Ended]:
        if kernel.serial is None:
            return await self._hop(_run_each, entries)
        predicted_ns = sum(entry.predicted_ns for entry in entries)
        threads = min(threads, max_threads(), len(entries))
        if (
            threads > 1
            and predicted_ns >= PARALLEL_PAYS_NS
            and kernel.can_run_parallel
            and parallel_region_is_free()
        ):
            self._slots.extend(lease, threads - 1)
        ended, parallel = await self._hop(_run_batch, kernel, entries, lease.size)
        self.batches += 1
        self.batched_jobs += len(entries)
        self.parallel_launches += parallel
        return ended

    async def _hop(self, function: Callable[..., T], *args: Any) -> T:
        return await anyio.to_thread.run_sync(function, *args, limiter=self._unbounded)


def run_on_loop(ledger: Ledger, entry: Entry) -> None:
    """Run one job here and now, on the event loop, and settle it."""
    try:
        value = _call(entry)
    except KeyboardInterrupt as error:  # not the job's doing: someone stops the program
        ledger.settle(entry, Status.FAILED, error=error)
        raise
    except BaseException as error:
        ledger.settle(entry, Status.FAILED, error=error)
    else:
        ledger.settle(entry, Status.COMPLETED, value=value)


def _call(entry: Entry) -> Any:
    entry.started = True
    return entry.call() if entry.context is None else entry.context.run(entry.call)


def _run_each(entries: list[Entry]) -> list[Ended]:
    """Run jobs one after the other in this worker thread; what one raises is its result."""
    ended: list[Ended] = []
    for entry in entries:
        if entry.outcome is not None:  # settled while it waited for its turn: it never runs
            ended.append((None, None))
            continue
        try:
            ended.append((_call(entry), None))
        except BaseException as error:  # a SystemExit of one job must not end the others' thread
            ended.append((None, error))
    return ended


def _run_batch(kernel: Kernel, entries: list[Entry], threads: int) -> tuple[list[Ended], bool]:
    """Run jobs in one kernel call in this worker thread; those that fail in it, once alone."""
    live = [entry for entry in entries if entry.outcome is None]
    for entry in live:
        entry.started = True
    try:
        result = kernel.run_batch(
            [entry.inputs for entry in live],
            [entry.job.compute_cost for entry in live],
            [entry.job.id for entry in live],
            [entry.params for entry in live],
            threads=threads,
            weights=[entry.predicted_ns for entry in live],
        )
    except BaseException:
        alone, parallel = live, False
        values: dict[Entry, Any] = {}
    else:
        alone, parallel = [live[i] for i in result.failed], result.parallel
        values = dict(zip(live, result.values, strict=True))
    for entry in alone:
        entry.started = False
    ended: dict[Entry, Ended] = {entry: (value, None) for entry, value in values.items()}
    ended |= dict(zip(alone, _run_each(alone), strict=True))
    return [ended.get(entry, (None, None)) for entry in entries], parallel
