"""Inline runs: on the event loop, which they must not hold up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import anyio

from helixnb._core.estimate import KindModel
from helixnb._core.guard import BARRED_NS, LEAST_NS
from helixnb._core.lifecycle import Entry, Ledger
from helixnb._core.queues import Backlog, JobQueue
from helixnb._core.rules import ON_TRUST
from helixnb._exec.cpu_time import collected_ns, watch_collections
from helixnb._exec.detached import interrupt_program, interruptible
from helixnb._exec.lanes import CHUNK_NS
from helixnb._exec.work import call_of, timed
from helixnb._log import SafeLogger
from helixnb._records import Decision, Status

FRESH_NS = 500_000
"""How old a reading of the CPU clock may be when a run begins, which is then blamed for what was
computed since: to read it takes 0.45 us, so it is read about once a turn of the event loop."""

logger = SafeLogger("helixnb")


def is_on_trust(decision: Decision) -> bool:
    """Tell whether `AdaptivePolicy` has decided to run a job on the event loop.

    Other policies that say so are obeyed, whatever is known by now.
    """
    return decision is ON_TRUST[0] or decision is ON_TRUST[1]


class LoopWatch:
    """Watches what jobs take of the event loop, and bars the kinds of those that hold it up.

    Must be created, and used, in the thread of the event loop.

    Parameters
    ----------
    watches
        Whether anything is to be watched, as for policies that are adaptive.
    cpu_clock
        Gives the CPU time of this thread in nanoseconds.
    collected
        How much of it went to garbage collections.
    """

    __slots__ = (
        "_collected",
        "_collected_ns",
        "_cpu_clock",
        "_cpu_ns",
        "_ledger",
        "_news",
        "stale_ns",
    )

    def __init__(
        self,
        ledger: Ledger,
        *,
        watches: bool = True,
        cpu_clock: Callable[[], int] = time.thread_time_ns,
        collected: Callable[[], int] = collected_ns,
    ) -> None:
        self._ledger = ledger
        self._cpu_clock = cpu_clock
        self._collected = collected
        self._cpu_ns = self._collected_ns = 0
        self._news: list[tuple[str, float, float, float]] = []
        self.stale_ns = -math.inf if watches else math.inf
        if watches:
            watch_collections()

    @property
    def watches(self) -> bool:
        """Whether anything is watched."""
        return self.stale_ns < math.inf

    def read(self, now_ns: int) -> None:
        """Read the CPU clock, before a run that begins at `stale_ns` or later."""
        self._cpu_ns = self._cpu_clock()
        self._collected_ns = self._collected()
        self.stale_ns = now_ns + FRESH_NS

    def judge(
        self,
        model: KindModel,
        kind: str,
        work: float,
        predicted_ns: float,
        began_ns: int,
        now_ns: int,
        *,
        is_compiled: bool,
    ) -> bool:
        """Look at a run that took more than `LEAST_NS`; returns whether its kind is barred now."""
        wall_ns = now_ns - began_ns
        cpu_ns = self._cpu_clock() - self._cpu_ns
        if is_compiled:
            cpu_ns -= self._collected() - self._collected_ns
        guard = model.guard
        if not guard.note_inline(predicted_ns, wall_ns, cpu_ns, now_ns, is_compiled=is_compiled):
            return False
        self._ledger.counts.inline_overruns += 1
        taken_ns = min(cpu_ns, wall_ns) if is_compiled else wall_ns
        model.note_overrun(work, taken_ns, now_ns)
        if guard.overruns == 1:
            self._news.append((kind, taken_ns / 1e6, predicted_ns / 1e6, BARRED_NS / 1e9))
        return True

    def tell(self) -> None:
        """Log what `judge` has found, when the jobs concerned are settled."""
        while self._news:
            logger.warning(
                "a job of kind %s held up the event loop for %.3g ms, and was predicted to take "
                "%.3g: jobs of its kind run in threads for at least %g s now. If its time can be "
                "told from its cost and its number of inputs, declare both work= and ns_per_work= "
                "of its kernel",
                *self._news.pop(),
            )

    def judge_entry(self, entry: Entry, began_ns: int, now_ns: int) -> bool:
        """Look at the run of a job, likewise."""
        kernel = entry.kernel
        return self.judge(
            entry.model,
            entry.job.kind,
            entry.work,
            entry.predicted_ns,
            began_ns,
            now_ns,
            is_compiled=kernel is not None and kernel.is_compiled,
        )


def is_barred(entry: Entry, now_ns: int) -> bool:
    """Tell whether a job that was to run on the event loop mustn't any more."""
    guard = entry.model.guard
    return guard.is_barred and is_on_trust(entry.decision) and not guard.allows(now_ns)


def run_on_loop(
    ledger: Ledger,
    watch: LoopWatch,
    entry: Entry,
    run: Callable[..., tuple[Any, int]] = timed,
) -> None:
    """Run one job here and now, on the event loop, and settle it, unless it has ended.

    That it may run there was decided just now, or `is_barred` was asked.

    Parameters
    ----------
    run
        `timed`, or what calls it.
    """
    if entry.outcome is not None:
        return
    model: KindModel = entry.model
    # As `Ledger.begin`, but no thread can begin with it, or settle it, meanwhile.
    entry.begun_ns = began_ns = ledger.clock()
    if began_ns > watch.stale_ns:
        watch.read(began_ns)
    try:
        value, taken_ns = run(call_of(entry), entry.kernel, model)
    except BaseException as error:
        now_ns = ledger.clock()
        if now_ns - began_ns > LEAST_NS and watch.watches:
            watch.judge_entry(entry, began_ns, now_ns)
        ledger.settle(entry, Status.FAILED, error=error, now_ns=now_ns)
        watch.tell()
        if isinstance(error, KeyboardInterrupt):  # not the job's doing: someone stops the program
            raise
        return
    now_ns = ledger.clock()
    if now_ns - began_ns > LEAST_NS:
        if watch.watches and watch.judge_entry(entry, began_ns, now_ns):
            ledger.settle(entry, Status.COMPLETED, value=value, now_ns=now_ns)
            watch.tell()
            return  # it was learnt from
    elif model.guard.strikes:
        model.guard.strikes = 0
    ledger.settle(entry, Status.COMPLETED, value=value, now_ns=now_ns)
    if taken_ns:
        model.learn(entry.work, taken_ns, now_ns)


def _timed(run: Callable[[], Any], kernel: Any, model: KindModel) -> tuple[Any, int]:
    return timed(run, kernel, model)


def settle_late(backlog: Backlog, ledger: Ledger) -> None:
    """Drop the jobs that waited until it was too late for them."""
    while backlog.late:
        entry = backlog.late.popleft()
        entry.expire()
        ledger.settle(entry, Status.DROPPED)


class InlineLane:
    """Inline jobs of tickets: they run on the event loop, but not inside `submit_soon`.

    Other tasks get their turn once a millisecond.

    Parameters
    ----------
    send_off
        Lets a job run elsewhere, whose kind was barred from the event loop while it waited.
    """

    def __init__(
        self,
        backlog: Backlog,
        ledger: Ledger,
        watch: LoopWatch,
        send_off: Callable[[Entry], object],
    ) -> None:
        self.queue = JobQueue(backlog)
        self._backlog = backlog
        self._ledger = ledger
        self._watch = watch
        self._send_off = send_off
        self._clock = ledger.clock
        self._news = anyio.Event()

    def push(self, entry: Entry) -> None:
        """Queue a job."""
        self.queue.push(entry)
        if len(self.queue) == 1:
            self._news.set()

    async def run(self) -> None:
        """Run what is queued, until cancelled."""
        run = interruptible(_timed)
        while True:
            if not self.queue:
                self._news = anyio.Event()
                await self._news.wait()
            turn_ends_ns = self._clock() + CHUNK_NS
            while self.queue and self._clock() < turn_ends_ns:
                now_ns = self._clock()
                for entry in self.queue.take(1, now_ns=now_ns):
                    if is_barred(entry, now_ns):
                        self._send_off(entry)
                        continue
                    try:
                        run_on_loop(self._ledger, self._watch, entry, run)
                    except KeyboardInterrupt:  # not for this task to end by
                        interrupt_program()
            settle_late(self._backlog, self._ledger)
            await anyio.lowlevel.checkpoint()
