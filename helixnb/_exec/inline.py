"""Inline runs: on the event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio

from helixnb._core.lifecycle import Entry, Ledger
from helixnb._core.queues import Backlog, JobQueue
from helixnb._exec.detached import interrupt_program, interruptible
from helixnb._exec.lanes import CHUNK_NS
from helixnb._exec.work import call
from helixnb._records import Status


def run_on_loop(
    ledger: Ledger, entry: Entry, run: Callable[[Entry], tuple[Any, int]] = call
) -> None:
    """Run one job here and now, on the event loop, and settle it, unless it has ended."""
    if not ledger.begin((entry,)):
        return
    try:
        value, taken_ns = run(entry)
    except KeyboardInterrupt as error:  # not the job's doing: someone stops the program
        ledger.settle(entry, Status.FAILED, error=error)
        raise
    except BaseException as error:
        ledger.settle(entry, Status.FAILED, error=error)
    else:
        ledger.settle(entry, Status.COMPLETED, value=value)
        if taken_ns:
            entry.model.learn(entry.work, taken_ns, ledger.clock())


def _call(entry: Entry) -> tuple[Any, int]:
    return call(entry)


def settle_late(backlog: Backlog, ledger: Ledger) -> None:
    """Drop the jobs that waited until it was too late for them."""
    while backlog.late:
        entry = backlog.late.popleft()
        entry.expire()
        ledger.settle(entry, Status.DROPPED)


class InlineLane:
    """Inline jobs of tickets: they run on the event loop, but not inside `submit_soon`.

    Other tasks get their turn once a millisecond.
    """

    def __init__(self, backlog: Backlog, ledger: Ledger) -> None:
        self.queue = JobQueue(backlog)
        self._backlog = backlog
        self._ledger = ledger
        self._clock = ledger.clock
        self._news = anyio.Event()

    def push(self, entry: Entry) -> None:
        """Queue a job."""
        self.queue.push(entry)
        if len(self.queue) == 1:
            self._news.set()

    async def run(self) -> None:
        """Run what is queued, until cancelled."""
        run = interruptible(_call)
        while True:
            if not self.queue:
                self._news = anyio.Event()
                await self._news.wait()
            turn_ends_ns = self._clock() + CHUNK_NS
            while self.queue and self._clock() < turn_ends_ns:
                for entry in self.queue.take(1, now_ns=self._clock()):
                    try:
                        run_on_loop(self._ledger, entry, run)
                    except KeyboardInterrupt:  # not for this task to end by
                        interrupt_program()
            settle_late(self._backlog, self._ledger)
            await anyio.lowlevel.checkpoint()
