"""Jobs by the thousand: converted, decided in one pass, and run from their columns."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import numpy as np
import numpy.typing as npt
from anyio.lowlevel import checkpoint

from helixnb._core.lifecycle import Ledger
from helixnb._core.policy import Policy, StaticPolicy
from helixnb._core.queues import Backlog
from helixnb._core.rows import Rows
from helixnb._decide import decide_static
from helixnb._errors import JobError, UnknownKindError
from helixnb._exec.column_lane import ColumnLane, Part
from helixnb._exec.lanes import Settings
from helixnb._exec.slots import Slots
from helixnb._exec.workers import Workers
from helixnb._observe.routing_log import log_rows
from helixnb._records import Decision, Job, Load, Status, Strategy
from helixnb.columns import BlockOutcomes, JobBlock, JobColumns, Outcomes, blocks_of
from helixnb_kernels import Columns, Kernel

SLICE = 1_024
"""Jobs that are converted, predicted or decided in Python between two turns of the event loop:
about a millisecond's."""

_ROUTER_CLOSED = Decision(Strategy.DROP, "router_closed")

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Block:
    """A block that was checked against its kernel."""

    kernel: Kernel
    columns: Columns
    scaling_potential: Array
    latency_budget_ms: Array
    predicted_ns: Array

    def job(self, at: int) -> Job:
        """Return one of them as a job."""
        names = self.kernel.params
        return Job(
            id=int(self.columns.job_id[at]),
            kind=self.kernel.name,
            inputs=self.columns.inputs_of(at),
            compute_cost=int(self.columns.compute_cost[at]),
            scaling_potential=float(self.scaling_potential[at]),
            latency_budget_ms=_budget(self.latency_budget_ms[at]),
            params={
                name: column[at].item()
                for name, column in zip(names, self.columns.params, strict=True)
            },
        )


def _budget(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)


class Many:
    """Takes calls with many jobs through the router."""

    def __init__(
        self,
        settings: Settings,
        policy: Policy,
        ledger: Ledger,
        backlog: Backlog,
        slots: Slots,
        workers: Workers,
        clock: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._ledger = ledger
        self._backlog = backlog
        self._slots = slots
        self._workers = workers
        self._clock = clock

    async def run(
        self, jobs: JobColumns | Iterable[Job], kernels: Mapping[str, Kernel]
    ) -> Outcomes:
        """Bring jobs to their outcomes; those that haven't ended are cancelled with the caller."""
        arrived_ns = self._clock()
        if isinstance(jobs, JobColumns):
            blocks = [await _check(block, kernels) for block in jobs.blocks]
            order = jobs.order
        else:
            parts, order = blocks_of(await _checked(jobs, kernels))
            blocks = [await _convert(kernels[kind], part) for kind, part in parts.items()]
        load = Load(cpu_busy=self._slots.busy)
        codes, decisions = await self._decide(blocks, order, load)
        # From here to the queues nothing awaits: all jobs meet the same backlog and settings.
        settled = anyio.Event()
        call = _Call(self._ledger, blocks, codes, decisions, arrived_ns, settled.set)
        parts_to_run = call.place(self._settings, self._backlog, order)
        for rows, block in zip(call.rows, blocks, strict=True):
            log_rows(rows, block.job, load)
        lane = ColumnLane(parts_to_run)
        self._workers.add(lane)
        try:
            self._workers.look(lane)
            await call.run_inline()
            if any(rows.pending for rows in call.rows):
                await settled.wait()
        except BaseException:
            for rows in call.rows:
                rows.settle(np.arange(len(rows.status)), Status.CANCELLED)
            raise
        finally:
            self._workers.remove(lane)
            lane.abandon()
        return Outcomes(map(BlockOutcomes, call.rows), order)

    async def _decide(
        self, blocks: Sequence[_Block], order: Array | None, load: Load
    ) -> tuple[Array, list[Decision]]:
        """Return what the policy says of each job, block by block, as positions in a list."""
        if not self._settings.is_open:
            return np.zeros(sum(len(block.columns) for block in blocks), np.uint8), [_ROUTER_CLOSED]
        if type(self._policy) is StaticPolicy and blocks:
            return decide_static(
                np.concatenate([block.columns.compute_cost for block in blocks]),
                np.concatenate([block.scaling_potential for block in blocks]),
                load,
                self._settings.config,
            )
        jobs = [(block, at) for block in blocks for at in range(len(block.columns))]
        codes = np.empty(len(jobs), np.int32)
        known: dict[Decision, int] = {}
        config = self._settings.config
        for i, position in enumerate(range(len(jobs)) if order is None else order.tolist()):
            if i % SLICE == SLICE - 1:
                await checkpoint()
            block, at = jobs[position]
            decision = self._policy.decide(block.job(at), load, config)
            codes[position] = known.setdefault(decision, len(known))
        return codes, list(known)


class _Call:
    """One call's jobs: the books of each block, and what of it runs on the event loop."""

    def __init__(
        self,
        ledger: Ledger,
        blocks: Sequence[_Block],
        codes: Array,
        decisions: Sequence[Decision],
        arrived_ns: int,
        on_settled: Callable[[], object],
    ) -> None:
        strategies = np.array([each.strategy.code for each in decisions], np.uint8)
        reasons = [each.reason for each in decisions]
        starts = list(itertools.accumulate((len(block.columns) for block in blocks), initial=0))
        self._blocks = blocks
        self._starts = starts
        self._inline: list[Part] = []
        self.rows = [
            Rows(
                ledger,
                block.kernel.name,
                block.columns.job_id,
                block.latency_budget_ms,
                strategies[codes[start:stop]],
                codes[start:stop].astype(np.int32),
                reasons,
                block.kernel.no_values(len(block.columns)),
                arrived_ns,
                lambda: on_settled() if not any(rows.pending for rows in self.rows) else None,
            )
            for block, start, stop in zip(blocks, starts, starts[1:], strict=False)
        ]

    def place(self, settings: Settings, backlog: Backlog, order: Array | None) -> list[Part]:
        """Settle what is dropped; return what waits for threads, with the rest kept to run here.

        A job without a budget waits for as long as it takes. One with a budget counts among the
        waiting jobs, and is dropped where there are too many of them.
        """
        config = settings.config
        for rows, block in zip(self.rows, self._blocks, strict=True):
            too_large = np.flatnonzero(block.predicted_ns > config.max_job_s * 1e9)
            if settings.is_open and len(too_large):
                rows.reroute(too_large, Strategy.DROP, "too_large")
        self._bound(backlog, order)
        parts = []
        for rows, block in zip(self.rows, self._blocks, strict=True):
            rows.settle(np.flatnonzero(rows.strategy == Strategy.DROP.code), Status.DROPPED)
            inline = rows.strategy == Strategy.INLINE.code
            queued = np.flatnonzero(_in_threads(rows.strategy))
            together = Strategy.CPU_POOL if block.kernel.serial is None else Strategy.BATCH
            other = queued[(rows.strategy[queued] != together.code)]
            if together is Strategy.CPU_POOL:  # a batch of such a kernel runs job by job as well
                other = other[rows.strategy[other] != Strategy.BATCH.code]
            rows.reroute(other, together, "in_columns")
            bounded = ~np.isnan(block.latency_budget_ms)
            if len(queued):
                parts.append(_part(block, rows, queued, bounded, backlog))
            if inline.any():
                self._inline.append(
                    _part(block, rows, np.flatnonzero(inline), np.zeros_like(bounded), backlog)
                )
        return parts

    def _bound(self, backlog: Backlog, order: Array | None) -> None:
        """Drop the jobs with a budget that find the backlog full, those before them included."""
        if not self.rows:
            return
        bounded = np.concatenate(
            [_in_threads(rows.strategy) & ~np.isnan(rows.latency_budget_ms) for rows in self.rows]
        )
        counted = np.flatnonzero(bounded) if order is None else order[bounded[order]]
        room = max(0, int(backlog.capacity) - backlog.waiting)
        full = np.sort(counted[room:])
        for rows, start, stop in zip(self.rows, self._starts, self._starts[1:], strict=False):
            own = full[np.searchsorted(full, start) : np.searchsorted(full, stop)] - start
            rows.reroute(own, Strategy.DROP, "queue_full")

    async def run_inline(self) -> None:
        """Run the jobs that were decided to run on the event loop, a millisecond at a time."""
        for part in self._inline:
            while (work := part.take(1)) is not None:
                work.run()
                work.settle()
                for error in part.rows.errors.values():
                    if isinstance(error, KeyboardInterrupt):  # someone stops the program
                        raise error
                await checkpoint()


def _in_threads(strategy: Array) -> Array:
    wanted: Array = (strategy != Strategy.INLINE.code) & (strategy != Strategy.DROP.code)
    return wanted


def _part(block: _Block, rows: Rows, positions: Array, bounded: Array, backlog: Backlog) -> Part:
    everything = len(positions) == len(block.columns)
    return Part(
        block.kernel,
        block.columns if everything else block.columns.take(positions),
        block.predicted_ns[positions],
        rows,
        positions,
        bounded[positions],
        backlog,
    )


async def _checked(jobs: Iterable[Job], kernels: Mapping[str, Kernel]) -> list[Job]:
    """Return jobs as a list, if each is one and of a known kind."""
    checked = []
    for i, job in enumerate(jobs):
        if i % SLICE == SLICE - 1:
            await checkpoint()
        if not isinstance(job, Job):
            raise TypeError(f"job must be a helixnb.Job, got {job!r}")
        if job.kind not in kernels:
            raise _unknown(job.kind, kernels)
        checked.append(job)
    return checked


def _unknown(kind: str, kernels: Mapping[str, Kernel]) -> UnknownKindError:
    return UnknownKindError(f"kind must be one of {', '.join(kernels) or 'none'}, got {kind!r}")


async def _convert(kernel: Kernel, jobs: Sequence[Job]) -> _Block:
    """Return jobs of one kind as a block.

    Raises
    ------
    JobError
        One doesn't fit the kernel; the message names it.
    """
    flat: list[Array] = []
    lengths: list[int] = []
    params: list[tuple[int | float, ...]] = []
    for start in range(0, len(jobs), SLICE):
        some = jobs[start : start + SLICE]
        try:
            joined, own_lengths = kernel.join_inputs([job.inputs for job in some])
            params += [kernel.as_params(job.params) for job in some]
        except Exception as error:
            for job in some:
                _blame(kernel, job)
            raise JobError(f"kind {kernel.name}: {error}") from error
        flat.append(joined)
        lengths += own_lengths
        await checkpoint()
    return await _block(
        kernel,
        np.concatenate(flat),
        np.cumsum([0, *lengths]),
        np.array([job.compute_cost for job in jobs], np.uint64),
        np.array([job.id for job in jobs], np.uint64),
        {name: np.array([each[k] for each in params]) for k, name in enumerate(kernel.params)},
        np.array([job.scaling_potential for job in jobs]),
        np.array([job.latency_budget_ms for job in jobs], np.float64),  # None becomes NaN
    )


def _blame(kernel: Kernel, job: Job) -> None:
    try:
        kernel.as_inputs(job.inputs)
        kernel.as_params(job.params)
    except Exception as error:
        raise JobError(f"job {job.id} of kind {job.kind}: {error}") from error


async def _check(block: JobBlock, kernels: Mapping[str, Kernel]) -> _Block:
    """Return a block of the user's, if it fits its kernel."""
    kernel = kernels.get(block.kind)
    if kernel is None:
        raise _unknown(block.kind, kernels)
    return await _block(
        kernel,
        block.inputs,
        block.offsets,
        block.compute_cost,
        block.id,
        block.params,
        block.scaling_potential,
        block.latency_budget_ms,
    )


async def _block(
    kernel: Kernel,
    inputs: Array,
    offsets: Array | None,
    costs: Array,
    ids: Array,
    params: Mapping[str, Any],
    scaling_potential: Array,
    latency_budget_ms: Array,
) -> _Block:
    try:
        columns = kernel.as_columns(inputs, offsets, costs, ids, params)
    except Exception as error:
        raise JobError(f"kind {kernel.name}: {error}") from error
    return _Block(
        kernel=kernel,
        columns=columns,
        scaling_potential=scaling_potential,
        latency_budget_ms=latency_budget_ms,
        predicted_ns=await _predict(kernel, columns),
    )


async def _predict(kernel: Kernel, columns: Columns) -> Array:
    """Return how long each job should take alone, in nanoseconds."""
    lengths = columns.lengths
    predicted_ns = np.empty(len(columns))
    for start in range(0, len(columns), SLICE):
        own = slice(start, start + SLICE)
        costs, inputs = columns.compute_cost[own].tolist(), lengths[own].tolist()
        done = 0
        try:
            for cost, length in zip(costs, inputs, strict=True):
                predicted_ns[start + done] = kernel.predict_ns(cost, length)
                done += 1
        except Exception as error:  # it is code of the kernel's author
            job_id = columns.job_id[start + done]
            raise JobError(f"job {job_id} of kind {kernel.name}: {error}") from error
        await checkpoint()
    return predicted_ns
