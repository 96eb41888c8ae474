"""What a worker thread does in one turn: a chunk of jobs, or a batch."""

from __future__ import annotations

import functools
import time
import weakref
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

from helixnb._core.estimate import KindModel
from helixnb._core.lifecycle import Entry, Ledger
from helixnb._core.queues import LONG_NS
from helixnb._exec.cpu_time import compiled_time_ns
from helixnb._exec.detached import carry_inside
from helixnb._log import SafeLogger
from helixnb._records import Status
from helixnb_kernels import Kernel

TOGETHER = 8
"""Jobs of one kernel in a chunk from which on they run in one call: that many calls cost more,
each of which takes the GIL back at its end."""

logger = SafeLogger("helixnb")

_warned: weakref.WeakSet[Kernel] = weakref.WeakSet()


class Run(NamedTuple):
    """What came of one job that ran alone.

    Attributes
    ----------
    value, error
        Its answer, or what it raised.
    taken_ns, cpu_ns
        What it took, by `timer`, and of the CPU; 0 where that wasn't measured.
    """

    value: Any
    error: BaseException | None = None
    taken_ns: int = 0
    cpu_ns: int = 0


Ended = tuple[Entry, Run]
"""A job, and what came of it."""


class Work(ABC):
    """One turn of a worker thread.

    Attributes
    ----------
    predicted_ns
        How long it should take.
    batched
        How many jobs it ran in one call as a batch, 0 for none.
    kind, cause
        Of those jobs, and of their release.
    parallel
        Whether that call ran on several threads.
    interrupt
        The KeyboardInterrupt that ended it early, which its jobs had no part in.
    """

    predicted_ns = 0.0
    batched = 0
    kind = ""
    cause = ""
    parallel = False
    interrupt: KeyboardInterrupt | None = None

    @abstractmethod
    def run(self) -> None:
        """Do it, in a worker thread; it may raise what is not the jobs' own fault."""

    def trace(self) -> None:  # noqa: B027  # what is no batch has nothing to trace
        """Trace the kernel call of a batch, before it is settled."""

    @abstractmethod
    def settle(self) -> None:
        """Settle its jobs, on the event loop."""

    @abstractmethod
    def fail(self, error: BaseException) -> None:
        """Settle its jobs as failed, on the event loop: no thread could do it, or `run` raised."""


class Called(NamedTuple):
    """A kernel call for several jobs.

    Attributes
    ----------
    entries
        Its jobs.
    taken_ns
        Of all threads together.
    parallel
        Whether they were several.
    began_ns, ended_ns
        When, by the router's clock.
    cpu_ns
        What it took of the CPU, 0 where that wasn't measured.
    """

    entries: list[Entry]
    taken_ns: int
    parallel: bool
    began_ns: int
    ended_ns: int
    cpu_ns: int


class Chunk(Work):
    """Jobs of any kinds, one after the other; those of one kernel in one call if they are many."""

    def __init__(self, ledger: Ledger, entries: list[Entry]) -> None:
        self._ledger = ledger
        self.entries = entries
        self.predicted_ns = sum(min(entry.predicted_ns, LONG_NS) for entry in entries)
        self._ended: list[Ended] = []
        self._calls: list[Called] = []

    def run(self) -> None:
        for group in _groups(self.entries):
            kernel = group[0].kernel
            if len(group) >= TOGETHER and kernel is not None and kernel.serial is not None:
                self._run_together(group, 1)
            else:
                self._ended += run_each(self._ledger, group)

    def _run_together(self, entries: list[Entry], threads: int) -> None:
        """Run jobs in one call; a few of a kind alone first, if nothing is known of it."""
        if to_learn := entries[0].model.to_learn:
            self._ended += run_each(self._ledger, entries[:to_learn])
            entries = entries[to_learn:]
        ended, called = run_together(self._ledger, entries, threads)
        self._ended += ended
        if called is not None:
            self._calls.append(called)

    def settle(self) -> None:
        now_ns = self._ledger.clock()
        for entry, run in self._ended:
            model: KindModel = entry.model
            if run.taken_ns:
                model.watch(entry.work, entry.predicted_ns, run.taken_ns, run.cpu_ns, now_ns)
            if run.error is None:
                self._ledger.settle(entry, Status.COMPLETED, value=run.value)
                if run.taken_ns:
                    model.learn(entry.work, run.taken_ns, now_ns)
            else:
                self._ledger.settle(entry, Status.FAILED, error=run.error)
        for called in self._calls:
            entries = called.entries
            work = sum(entry.work for entry in entries)
            model = entries[0].model
            if called.cpu_ns and model.learns:
                model.watch_batch(len(entries), work, called.cpu_ns, now_ns)
            model.learn_batch(len(entries), work, called.taken_ns, now_ns)

    def fail(self, error: BaseException) -> None:
        for entry in self.entries:
            self._ledger.settle(entry, Status.FAILED, error=error)


class Batch(Chunk):
    """Jobs of one kernel, in one call."""

    def __init__(
        self,
        ledger: Ledger,
        entries: list[Entry],
        threads: int,
        predicted_ns: float,
        cause: str,
    ) -> None:
        super().__init__(ledger, entries)
        self.kind = entries[0].job.kind
        self.cause = cause
        self.predicted_ns = predicted_ns
        self._threads = threads

    def run(self) -> None:
        if self.entries[0].kernel.serial is None:
            self._ended = run_each(self._ledger, self.entries)
        else:
            self._run_together(self.entries, self._threads)
            self.batched = sum(len(called.entries) for called in self._calls)
            self.parallel = any(called.parallel for called in self._calls)

    def trace(self) -> None:
        for called in self._calls:
            spans = [
                entry.span
                for entry in called.entries
                if entry.span is not None and entry.outcome is None  # or else it has ended
            ]
            if spans:
                spans[0].share(
                    spans[1:],
                    self.kind,
                    self.cause,
                    len(called.entries),
                    called.began_ns,
                    called.ended_ns,
                )


def _groups(entries: list[Entry]) -> list[list[Entry]]:
    """Part jobs by kernel, if there may be enough of one to run together."""
    if len(entries) < TOGETHER:
        return [entries]
    groups = defaultdict(list)
    for entry in entries:
        groups[entry.kernel].append(entry)
    return list(groups.values())


def call_of(entry: Entry) -> Callable[[], Any]:
    """Return what runs one job."""
    if entry.call is not None:
        run = entry.call
    else:
        job = entry.job
        run = entry.kernel.solo_call(entry.inputs, job.compute_cost, job.id, entry.params)
    if entry.context is not None:
        carry_inside(entry.context)
        run = functools.partial(entry.context.run, run)
    return run


def timer(kernel: Kernel | None) -> Callable[[], int]:
    """Return the clock for a job's time: of the CPU for what only computes.

    It doesn't count the wait for the GIL at the end, and other programs' share of the CPU.
    """
    if kernel is not None and kernel.is_compiled:
        return compiled_time_ns
    return time.perf_counter_ns


def timed(run: Callable[[], Any], kernel: Kernel | None, model: KindModel) -> tuple[Any, int]:
    """Run a job; returns its value, and the nanoseconds that it took, 0 if it isn't to be timed."""
    if not model.is_due():
        return run(), 0
    clock = timer(kernel)
    began_ns = clock()
    value = run()
    return value, clock() - began_ns


def attempt(run: Callable[[], Any], kernel: Kernel | None, model: KindModel) -> Run:
    """Run a job in a worker thread, and time it if it is to be timed; returns what it raises."""
    if not model.is_due():
        try:
            return Run(run())
        except BaseException as error:  # a SystemExit of one job must not end the others' thread
            return Run(None, error)
    clock = timer(kernel)
    value: Any = None
    raised: BaseException | None = None
    began_cpu_ns, began_ns = time.thread_time_ns(), clock()
    try:
        value = run()
    except BaseException as error:
        raised = error
    taken_ns = cpu_ns = clock() - began_ns
    if clock is not compiled_time_ns:
        cpu_ns = time.thread_time_ns() - began_cpu_ns
    return Run(value, raised, taken_ns, cpu_ns)


def run_each(ledger: Ledger, entries: list[Entry]) -> list[Ended]:
    """Run jobs one after the other in this worker thread; what one raises is its result.

    One that was settled while it waited for its turn doesn't run.
    """
    ended: list[Ended] = []
    for entry in entries:
        if not ledger.begin((entry,)):
            continue
        try:
            run = call_of(entry)
        except BaseException as error:
            ended.append((entry, Run(None, error)))
        else:
            ended.append((entry, attempt(run, entry.kernel, entry.model)))
    return ended


def run_together(
    ledger: Ledger, entries: list[Entry], threads: int
) -> tuple[list[Ended], Called | None]:
    """Run jobs of one kernel in one call in this thread; those that fail in it, once alone."""
    live = ledger.begin(entries)
    if not live:
        return [], None
    if len(live) == 1:
        return _rerun(ledger, live), None
    kernel = live[0].kernel
    clock = time.perf_counter_ns if threads > 1 else timer(kernel)
    began_ns = clock()
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
        return _rerun(ledger, live), None
    taken_ns = clock() - began_ns
    called = Called(
        live,
        taken_ns * (threads if result.parallel else 1),
        result.parallel,
        live[0].begun_ns or 0,
        ledger.clock(),
        taken_ns if clock is compiled_time_ns else 0,
    )
    ended: list[Ended] = [
        (entry, Run(value)) for entry, value in zip(live, result.values, strict=True)
    ]
    if result.failed:
        failed = set(result.failed)
        ended = [each for i, each in enumerate(ended) if i not in failed]
        ended += _rerun(ledger, [live[i] for i in result.failed])
    return ended, called


def warn_of_batch(kernel: Kernel, error: BaseException) -> None:
    """Log that a batch form raised, once a kernel: its jobs have lost what it gains."""
    if kernel not in _warned:
        _warned.add(kernel)
        logger.warning(
            "a batch of kernel %s raised %r as a whole; its jobs run one by one", kernel.name, error
        )


def _rerun(ledger: Ledger, entries: list[Entry]) -> list[Ended]:
    for entry in entries:
        entry.begun_ns = None  # so that those whose turn hasn't come may still be evicted
    return run_each(ledger, entries)
