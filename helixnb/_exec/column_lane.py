"""The lane of one call with columns: they are the queue, and a thread takes a piece at a time."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from helixnb._core.estimate import KindModel
from helixnb._core.queues import Backlog
from helixnb._core.rows import Rows
from helixnb._exec.lanes import CHUNK_NS, HOP_PAYS_NS, Lane
from helixnb._exec.slots import Lease
from helixnb._exec.work import Run, Work, attempt, timer, warn_of_batch
from helixnb._records import Array
from helixnb_kernels import Columns, Kernel

PIECE_JOBS = 4_096
"""How many jobs one kernel call takes at most: to settle that many takes the loop 0.3 ms."""

FIRST_JOBS, GROWTH = 16, 4
"""How many it takes at first, while nothing is known but a prediction, and how fast that grows."""

GATHER_JOBS, GATHER_NS = 64, 10_000_000
"""Where a millisecond has fewer jobs than this, a call takes up to so many, and up to so long: few
jobs side by side gain little from sharing it."""

ALONE_JOBS = 64
"""How many jobs that run one by one a thread takes at most."""


class Pace:
    """How a kernel's calls went so far, over all calls with columns.

    Attributes
    ----------
    scale
        What the last one took, over what its jobs were predicted to take alone.
    most
        How many jobs the next one may have.
    """

    __slots__ = ("most", "scale")

    def __init__(self) -> None:
        self.scale = 1.0
        self.most = FIRST_JOBS

    def learn(self, jobs: int, predicted_ns: float, computed_ns: int) -> None:
        """Note how long a call took."""
        self.scale = max(computed_ns / max(predicted_ns, 1.0), 1e-6)
        self.most = min(PIECE_JOBS, max(self.most, GROWTH * jobs))


class Jobs(Protocol):
    """Jobs of one kernel, in columns."""

    @property
    def kernel(self) -> Kernel:
        """What runs them."""
        ...

    @property
    def columns(self) -> Columns:
        """What it takes."""
        ...

    @property
    def work(self) -> Array:
        """What the time of each depends on."""
        ...

    @property
    def predicted_ns(self) -> Array:
        """How long each should take alone."""
        ...

    @property
    def model(self) -> KindModel:
        """What is known of the kind."""
        ...


class CallTrace(Protocol):
    """What traces a call with columns; see `Tracing`."""

    def share(self, kind: str, cause: str, jobs: int, began_ns: int, ended_ns: int) -> None:
        """Note a kernel call for some of its jobs."""
        ...

    def below(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """Return a function that runs another, so that what it traces is below the call."""
        ...


class Part:
    """Jobs of one kernel that wait in columns, first in, first out.

    Parameters
    ----------
    block, rows
        What they belong to, and its books.
    ranks
        Where each job of the block comes in the order of the call.
    positions
        Where each of them stands in the block.
    bounded
        Whether each counts among the waiting jobs of the backlog.
    trace
        What traces the call, None where nobody asked for that.
    """

    def __init__(
        self,
        block: Jobs,
        rows: Rows,
        ranks: Array,
        positions: Array,
        bounded: Array,
        *,
        backlog: Backlog,
        pace: Pace,
        trace: CallTrace | None = None,
    ) -> None:
        self.trace = trace
        self.kernel = block.kernel
        self.model = block.model
        self.work = block.work
        self.columns = block.columns
        self.rows = rows
        self.positions = positions
        self._ranks = ranks
        self.alone: deque[int] = deque()
        self.pace = pace
        self._until_ns = np.cumsum(block.predicted_ns[positions])
        self._taken = 0
        self._whole = len(positions) == len(block.columns)
        self._bounded = np.concatenate(([0], np.cumsum(bounded)))
        self._backlog = backlog
        self._by_deadline = _by_deadline(rows, positions)
        self._expired = 0

    @property
    def bounded(self) -> int:
        """How many count among the waiting jobs."""
        return int(self._bounded[-1] - self._bounded[self._taken])

    @property
    def left_ns(self) -> float:
        """Predicted time of what waits, at the pace seen so far."""
        alone_ns = float(len(self.alone) * HOP_PAYS_NS)
        if self._taken == len(self.positions):
            return alone_ns
        queued_ns = self.predicted_ns(self._taken, len(self.positions)) * self.pace.scale
        return alone_ns + max(1.0, queued_ns)

    def predicted_ns(self, start: int, stop: int) -> float:
        """Return how long some jobs should take one after the other."""
        before_ns = self._until_ns[start - 1] if start else 0.0
        return float(self._until_ns[stop - 1] - before_ns)

    @property
    def rank(self) -> float:
        """Where the next job comes in the order of the call; what runs again is first."""
        if self.alone:
            return -1
        if self._taken == len(self.positions):
            return math.inf
        return int(self._ranks[self.positions[self._taken]])

    def take(self, sharers: int, *, gather: bool = True) -> Work | None:
        """Take what is worth about a millisecond, or a fair share of less.

        Parameters
        ----------
        sharers
            How many threads are about to take, this one included.
        gather
            Take longer where that millisecond has few jobs.
        """
        if self.alone:
            share = -(-len(self.alone) // sharers)
            return Alone(self, [self.alone.popleft() for _ in range(min(share, ALONE_JOBS))])
        start = self._taken
        if start == len(self.positions):
            return None
        fair_ns = max(self.left_ns / sharers, HOP_PAYS_NS)
        stop = self._reach(min(CHUNK_NS, fair_ns))
        if stop < start + GATHER_JOBS and gather:
            stop = min(self._reach(min(GATHER_NS, fair_ns)), start + GATHER_JOBS)
        most = self.pace.most
        alone = self.kernel.serial is None
        if alone:
            most = min(most, ALONE_JOBS)
        elif to_learn := self.model.to_learn:
            alone, most = True, to_learn
        stop = min(max(stop, start + 1), start + most, len(self.positions))
        self._release(stop)
        if alone:
            return Alone(self, list(range(start, stop)))
        live = self.rows.begin(self.positions[start:stop])
        return Piece(self, start, stop, live=len(live) > 0)

    def _reach(self, limit_ns: float) -> int:
        """Return up to where the jobs that come next should take so long."""
        before_ns = self._until_ns[self._taken - 1] if self._taken else 0.0
        until_ns = before_ns + limit_ns / self.pace.scale
        return int(np.searchsorted(self._until_ns, until_ns, side="right"))

    def _release(self, stop: int) -> None:
        counted = int(self._bounded[stop] - self._bounded[self._taken])
        self._taken = stop
        self._backlog.grow(-counted)

    def expire(self, now_ns: float) -> float:
        """Drop what waits past its deadline; returns the next one."""
        if self.rows.deadline_ns is None:
            return math.inf
        deadlines_ns = self.rows.deadline_ns[self._by_deadline[self._expired :]]
        late = int(np.searchsorted(deadlines_ns, now_ns))
        if late:
            self.rows.expire(self._by_deadline[self._expired : self._expired + late])
            self._expired += late
        return float(deadlines_ns[late]) if late < len(deadlines_ns) else math.inf

    def call_of(self, at: int) -> Callable[[], Any]:
        """Return what runs the job at a position of the block alone."""
        columns = self.columns
        run = self.kernel.solo_call(
            columns.inputs_of(at),
            int(columns.compute_cost[at]),
            int(columns.job_id[at]),
            tuple(column[at].item() for column in columns.params),
        )
        if self.trace is not None and not self.kernel.is_compiled:
            run = self.trace.below(run)
        return run

    def take_rows(self, most: int) -> range:
        """Take so many jobs that wait, or fewer, to run them one by one."""
        start = self._taken
        stop = min(start + most, len(self.positions))
        self._release(stop)
        return range(start, stop)

    def give_back(self, start: int) -> None:
        """Let those of the jobs that were taken last wait again that come from here on."""
        stop, self._taken = self._taken, start
        self.rows.put_back(self.positions[start:stop])

    @property
    def taken(self) -> int:
        """How many were taken so far."""
        return self._taken

    @property
    def rest(self) -> Array:
        """The positions of what waits."""
        return self.positions[self._taken :]

    def abandon(self) -> None:
        """Take nothing any more."""
        self._release(len(self.positions))
        self.alone.clear()

    def cut(self, start: int, stop: int) -> tuple[Columns, int, int]:
        """Return columns that have some of the jobs in a row, and where in them."""
        if self._whole:
            return self.columns, start, stop
        return self.columns.take(self.positions[start:stop]), 0, stop - start


def _by_deadline(rows: Rows, positions: Array) -> Array:
    """Return those of some jobs that have a deadline, the earliest first."""
    if rows.deadline_ns is None:
        return positions[:0]
    finite = positions[np.isfinite(rows.deadline_ns[positions])]
    ordered: Array = finite[np.argsort(rows.deadline_ns[finite], kind="stable")]
    return ordered


class Piece(Work):
    """Jobs of a part, in one kernel call."""

    cause = "columns"

    def __init__(self, part: Part, start: int, stop: int, *, live: bool) -> None:
        self._part = part
        self.kind = part.kernel.name
        self._taken_ns = 0
        self._began_ns = self._ended_ns = 0
        self._alone_ns = part.predicted_ns(start, stop)
        self.predicted_ns = self._alone_ns * part.pace.scale
        self._start = start
        self._stop = stop
        self._live = live
        self._values: Array | None = None
        self._failed: Array | None = None

    def run(self) -> None:
        if not self._live:  # the call was cancelled, or the router closed
            return
        part = self._part
        self._began_ns = part.rows.clock()
        clock = timer(part.kernel)
        began_ns = clock()
        try:
            self._values, self._failed, _ = part.kernel.run_columns(
                *part.cut(self._start, self._stop)
            )
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # they run alone, so that only those fail that must
            warn_of_batch(part.kernel, error)
            return
        self.batched = self._stop - self._start
        self._taken_ns = clock() - began_ns
        self._ended_ns = part.rows.clock()
        part.pace.learn(self.batched, self._alone_ns, self._taken_ns)

    def settle(self) -> None:
        part = self._part
        positions = part.positions[self._start : self._stop]
        part.rows.expire(positions)
        if not self._live:
            return
        if self._taken_ns:
            work = float(part.work[positions].sum())
            now_ns = part.rows.clock()
            if part.kernel.is_compiled and part.model.learns:
                part.model.watch_batch(self.batched, work, self._taken_ns, now_ns)
            part.model.learn_batch(self.batched, work, self._taken_ns, now_ns)
        if self._values is None or self._failed is None:
            failed = np.arange(len(positions))
        else:
            completed = self._failed == 0
            part.rows.complete(positions[completed], self._values[completed])
            failed = np.flatnonzero(self._failed)
        if len(failed):
            part.rows.put_back(positions[failed])
            part.alone.extend((self._start + failed).tolist())

    def trace(self) -> None:
        trace = self._part.trace
        if trace is not None:
            trace.share(self.kind, self.cause, self.batched, self._began_ns, self._ended_ns)

    def fail(self, error: BaseException) -> None:
        self._part.rows.fail(self._part.positions[self._start : self._stop], error)


class Alone(Work):
    """Jobs of a part, one after the other; those that a millisecond doesn't see go back."""

    def __init__(self, part: Part, jobs: list[int]) -> None:
        self._part = part
        self._jobs = jobs
        self.predicted_ns = sum(part.predicted_ns(job, job + 1) for job in jobs)
        self._completed: list[int] = []
        self._values = part.kernel.no_values(len(jobs))
        self._failed: list[tuple[int, BaseException]] = []
        self._timed: list[tuple[int, Run]] = []
        self._left: list[int] = []

    def run(self) -> None:
        part = self._part
        began_ns = time.perf_counter_ns()
        predicted_ns = 0.0
        for done, job in enumerate(self._jobs):
            taken_ns = time.perf_counter_ns() - began_ns
            if part.kernel.serial is None and done:
                part.pace.learn(done, predicted_ns, taken_ns)
            if done and taken_ns > CHUNK_NS:
                self._left = self._jobs[done:]
                return
            predicted_ns += part.predicted_ns(job, job + 1)
            at = int(part.positions[job])
            if not len(part.rows.begin(part.positions[job : job + 1])):
                continue
            try:
                run = attempt(part.call_of(at), part.kernel, part.model)
                if run.taken_ns:
                    self._timed.append((job, run))
                error = run.error
                if error is None:
                    self._values[len(self._completed)] = run.value
            except BaseException as fault:  # a value isn't what was declared
                error = fault
            if error is None:
                self._completed.append(job)
                continue
            self._failed.append((job, error))
            if isinstance(error, KeyboardInterrupt):
                self.interrupt = error
                self._left = self._jobs[done + 1 :]
                return

    def settle(self) -> None:
        part = self._part
        part.rows.expire(part.positions[self._jobs])
        if self._completed:
            values = self._values[: len(self._completed)]
            part.rows.complete(part.positions[self._completed], values)
        now_ns = part.rows.clock()
        for job, run in self._timed:
            work = float(part.work[part.positions[job]])
            predicted_ns = part.predicted_ns(job, job + 1)
            part.model.watch(work, predicted_ns, run.taken_ns, run.cpu_ns, now_ns)
            if run.error is None:
                part.model.learn(work, run.taken_ns, now_ns)
        for job, error in self._failed:
            part.rows.fail(part.positions[job : job + 1], error)
        part.alone.extendleft(reversed(self._left))

    def fail(self, error: BaseException) -> None:
        self._part.rows.fail(self._part.positions[self._jobs], error)


class ColumnLane(Lane):
    """What waits of one call with columns."""

    def __init__(self, parts: list[Part]) -> None:
        self._parts = parts

    def due_in_ns(self) -> float:
        return 0 if self.threads_worth else math.inf

    @property
    def left_ns(self) -> float:
        return sum(part.left_ns for part in self._parts)

    @property
    def threads_worth(self) -> int:
        left_ns = self.left_ns
        return 1 + int(left_ns / HOP_PAYS_NS) if left_ns else 0

    def expire(self, now_ns: float) -> float:
        return min((part.expire(now_ns) for part in self._parts), default=math.inf)

    def take(self, lease: Lease, *, gather: bool) -> Work | None:  # noqa: ARG002  # as declared
        if not self._parts:
            return None
        return min(self._parts, key=lambda part: part.rank).take(1 + self.sent)

    def add(self, part: Part) -> None:
        """Let further jobs of the call be taken."""
        self._parts = [*self._parts, part]

    def abandon(self) -> None:
        """Let nothing be taken any more: the call is over."""
        for part in self._parts:
            part.abandon()
