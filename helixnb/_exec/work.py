"""What a worker thread does in one turn: a chunk of jobs, or a batch."""

from __future__ import annotations

import logging
import weakref
from abc import ABC, abstractmethod
from collections import defaultdict
from typing import Any

from helixnb._core.lifecycle import Entry, Ledger
from helixnb._records import Status
from helixnb_kernels import Kernel

TOGETHER = 8
"""Jobs of one kernel in a chunk from which on they run in one call: that many calls cost more,
each of which takes the GIL back at its end."""

logger = logging.getLogger("helixnb")

_warned: weakref.WeakSet[Kernel] = weakref.WeakSet()

Ended = tuple[Entry, Any, BaseException | None]


class Work(ABC):
    """One turn of a worker thread.

    Attributes
    ----------
    batched
        How many jobs it ran in one call as a batch, 0 for none.
    parallel
        Whether that call ran on several threads.
    interrupt
        The KeyboardInterrupt that ended it early, which its jobs had no part in.
    """

    batched = 0
    parallel = False
    interrupt: KeyboardInterrupt | None = None

    @abstractmethod
    def run(self) -> None:
        """Do it, in a worker thread; it may raise what is not the jobs' own fault."""

    @abstractmethod
    def settle(self) -> None:
        """Settle its jobs, on the event loop."""

    @abstractmethod
    def fail(self, error: BaseException) -> None:
        """Settle its jobs as failed, on the event loop: no thread could do it, or `run` raised."""


class Chunk(Work):
    """Jobs of any kinds, one after the other; those of one kernel in one call if they are many."""

    def __init__(self, ledger: Ledger, entries: list[Entry]) -> None:
        self._ledger = ledger
        self.entries = entries
        self._ended: list[Ended] = []

    def run(self) -> None:
        for group in _groups(self.entries):
            kernel = group[0].kernel
            if len(group) < TOGETHER or kernel is None or kernel.serial is None:
                self._ended += run_each(self._ledger, group)
            else:
                ended, _ = run_together(self._ledger, kernel, group, 1)
                self._ended += ended

    def settle(self) -> None:
        for entry, value, error in self._ended:
            if error is None:
                self._ledger.settle(entry, Status.COMPLETED, value=value)
            else:
                self._ledger.settle(entry, Status.FAILED, error=error)

    def fail(self, error: BaseException) -> None:
        for entry in self.entries:
            self._ledger.settle(entry, Status.FAILED, error=error)


class Batch(Chunk):
    """Jobs of one kernel, in one call."""

    def __init__(self, ledger: Ledger, kernel: Kernel, entries: list[Entry], threads: int) -> None:
        super().__init__(ledger, entries)
        self._kernel = kernel
        self._threads = threads

    def run(self) -> None:
        if self._kernel.serial is None:
            self._ended = run_each(self._ledger, self.entries)
        else:
            self._ended, self.parallel = run_together(
                self._ledger, self._kernel, self.entries, self._threads
            )
            self.batched = len(self._ended)


def _groups(entries: list[Entry]) -> list[list[Entry]]:
    """Part jobs by kernel, if there may be enough of one to run together."""
    if len(entries) < TOGETHER:
        return [entries]
    groups = defaultdict(list)
    for entry in entries:
        groups[entry.kernel].append(entry)
    return list(groups.values())


def call(entry: Entry) -> Any:
    """Run one job here and now."""
    if entry.call is not None:
        run = entry.call
    else:
        job = entry.job
        run = entry.kernel.solo_call(entry.inputs, job.compute_cost, job.id, entry.params)
    return run() if entry.context is None else entry.context.run(run)


def run_each(ledger: Ledger, entries: list[Entry]) -> list[Ended]:
    """Run jobs one after the other in this worker thread; what one raises is its result.

    One that was settled while it waited for its turn doesn't run.
    """
    ended: list[Ended] = []
    for entry in entries:
        if not ledger.begin((entry,)):
            continue
        try:
            ended.append((entry, call(entry), None))
        except BaseException as error:  # a SystemExit of one job must not end the others' thread
            ended.append((entry, None, error))
    return ended


def run_together(
    ledger: Ledger, kernel: Kernel, entries: list[Entry], threads: int
) -> tuple[list[Ended], bool]:
    """Run jobs in one kernel call in this worker thread; those that fail in it, once alone."""
    live = ledger.begin(entries)
    if not live:
        return [], False
    try:
        result = kernel.run_batch(
            [entry.inputs for entry in live],
            [entry.job.compute_cost for entry in live],
            [entry.job.id for entry in live],
            [entry.params for entry in live],
            threads=threads,
            weights=[entry.predicted_ns for entry in live] if threads > 1 else None,
        )
    except BaseException as error:
        warn_of_batch(kernel, error)
        return _rerun(ledger, live), False
    if not result.failed:
        return [
            (entry, value, None) for entry, value in zip(live, result.values, strict=True)
        ], result.parallel
    failed = set(result.failed)
    ended: list[Ended] = [
        (entry, value, None)
        for i, (entry, value) in enumerate(zip(live, result.values, strict=True))
        if i not in failed
    ]
    return ended + _rerun(ledger, [live[i] for i in result.failed]), result.parallel


def warn_of_batch(kernel: Kernel, error: BaseException) -> None:
    """Log that a batch form raised, once a kernel: its jobs have lost what it gains."""
    if kernel not in _warned:
        _warned.add(kernel)
        logger.warning(
            "a batch of kernel %s raised %r as a whole; its jobs run one by one", kernel.name, error
        )


def _rerun(ledger: Ledger, entries: list[Entry]) -> list[Ended]:
    for entry in entries:
        entry.started = False  # so that those whose turn hasn't come may still be evicted
    return run_each(ledger, entries)
