"""Jobs by the thousand, converted and checked against their kernels."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import numpy as np

from helixnb._core.estimate import CostModel, KindModel
from helixnb._errors import JobError, UnknownKindError
from helixnb._exec.lanes import CHUNK_NS
from helixnb._records import Array, Job
from helixnb.columns import JobBlock, JobColumns, blocks_of
from helixnb_kernels import Columns, Kernel
from helixnb_kernels._values import brief, listed, said_by, shown

T = TypeVar("T")

LARGE = 16_384
"""Jobs from which on what NumPy does with them takes a thread: a millisecond and more."""

LONG = 16
"""Inputs that take as long as a job."""

SLICE = 64
"""Jobs that are handled in Python between two looks at the clock."""


class Turns:
    """Lets the event loop turn about once a millisecond of work.

    `in_thread` calls a function in a thread, `converting` one that runs code of somebody else's.
    None is for a router that is closed: it sends none, and has little to do for each job.
    """

    def __init__(
        self,
        clock: Callable[[], int],
        in_thread: Callable[[Callable[[], Any]], Awaitable[Any]] | None,
        converting: Callable[[Callable[[], Any]], Awaitable[Any]] | None = None,
    ) -> None:
        self._clock = clock
        self._in_thread = in_thread
        self._converting = converting
        self._ends_ns = clock() + CHUNK_NS

    async def pass_on(self) -> None:
        """Let other tasks run, if the turn is over."""
        if self._clock() > self._ends_ns:
            await anyio.lowlevel.checkpoint()
            self._ends_ns = self._clock() + CHUNK_NS

    async def call(self, function: Callable[[], T], jobs: int) -> T:
        """Call what handles so many jobs by NumPy: in a thread, if they are many."""
        if jobs < LARGE or self._in_thread is None:
            return function()
        result: T = await self._in_thread(function)
        return result

    async def convert(self, function: Callable[[], T], *, at_once: bool) -> T:
        """Call what converts inputs: in a thread, unless that is short."""
        if at_once or self._converting is None:
            return function()
        result: T = await self._converting(function)
        return result


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """Jobs of one kind that were checked against their kernel, as columns.

    Attributes
    ----------
    bounded
        Whether each has a budget.
    work
        What the time of each depends on; see `Entry`.
    cold
        Whether that is what the kernel's author declared, since too little was measured.
    predicted_ns
        How long each should take alone.
    """

    kernel: Kernel
    model: KindModel
    columns: Columns
    scaling_potential: Array
    latency_budget_ms: Array
    bounded: Array
    work: Array
    cold: bool
    predicted_ns: Array

    def __len__(self) -> int:
        return len(self.columns)

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


async def checked_blocks(
    jobs: JobColumns | Iterable[Job],
    kernels: Mapping[str, Kernel],
    costs: CostModel,
    turns: Turns,
) -> tuple[list[Block], Array | None]:
    """Return jobs as blocks, and their order; see `JobColumns`.

    Raises
    ------
    JobError
        One doesn't fit its kernel, or there is none of its kind; the message says which.
    """
    if isinstance(jobs, JobColumns):
        return [
            await _of_columns(block, kernels, costs, turns) for block in jobs.blocks
        ], jobs.order
    held = dict(kernels)  # others may take their places meanwhile
    models = {kind: costs.of_kernel(kind) for kind in held}
    known: list[Job] = []
    for i, job in enumerate(jobs):
        if i % SLICE == 0:
            await turns.pass_on()
        kernel_of(job, held)
        known.append(job)
    parts, order = blocks_of(known)
    return [
        await _of_jobs(held[kind], models[kind], part, turns) for kind, part in parts.items()
    ], order


def kernel_of(job: Job | JobBlock, kernels: Mapping[str, Kernel]) -> Kernel:
    """Return the kernel of a job, or of jobs in columns.

    Raises
    ------
    JobError
        There is none, it isn't the one that the job was made by, or it can't see a change of what
        it was compiled with.
    """
    if not isinstance(job, (Job, JobBlock)):
        raise TypeError(f"job must be a helixnb.Job, got {shown(job)}")
    kernel = kernels.get(job.kind)
    if kernel is None:
        raise UnknownKindError(
            f"kind must be one of {listed(kernels)}, got {shown(job.kind)}: "
            "a router has the kernels that it was given"
        )
    digest = job.kernel_digest
    if digest is not None and digest != kernel.digest and digest not in kernel.earlier_digests:
        raise JobError(
            f"kind {job.kind!r}: the job was made by another kernel of that name than the "
            "router's: make it anew, or await router.replace_kernel(...) first"
        )
    if kernel.has_reads and (change := kernel.change()):
        raise JobError(f"kind {job.kind!r}: {change}, or await router.replace_kernel(...)")
    return kernel


async def _of_columns(
    block: JobBlock, kernels: Mapping[str, Kernel], costs: CostModel, turns: Turns
) -> Block:
    kernel, model = kernel_of(block, kernels), costs.of_kernel(block.kind)
    convert = functools.partial(
        kernel.as_columns,
        block.inputs,
        block.offsets,
        block.compute_cost,
        block.id,
        block.params,
    )
    try:
        columns = await turns.call(convert, max(len(block), block.inputs.size // LONG))
    except Exception as error:  # it may be code of an object's own
        raise JobError(f"kind {brief(kernel.name)}: {said_by(error)}") from error
    return await _block(
        kernel, model, columns, block.scaling_potential, block.latency_budget_ms, turns
    )


async def _of_jobs(kernel: Kernel, model: KindModel, jobs: Sequence[Job], turns: Turns) -> Block:
    flat: list[Array] = []
    lengths: list[int] = []
    params: list[tuple[int | float, ...]] = []
    for start in range(0, len(jobs), SLICE):
        some = jobs[start : start + SLICE]
        given = [job.inputs for job in some]
        join = functools.partial(kernel.join_inputs, given)
        try:
            joined, own_lengths = await turns.convert(join, at_once=kernel.joins_at_once(given))
            params += [kernel.as_params(job.params) for job in some]
        except Exception as error:  # it may be code of an object's own
            for job in some:
                await _blame(kernel, job, turns)
            raise JobError(f"kind {brief(kernel.name)}: {said_by(error)}") from error
        flat.append(joined)
        lengths += own_lengths
        await turns.pass_on()

    def convert() -> Columns:
        return kernel.as_columns(
            np.concatenate(flat),
            np.cumsum([0, *lengths]),
            np.array([job.compute_cost for job in jobs], np.uint64),
            np.array([job.id for job in jobs], np.uint64),
            {name: np.array([each[k] for each in params]) for k, name in enumerate(kernel.params)},
        )

    # Few jobs of thousands of numbers each are as long to copy.
    columns = await turns.call(convert, max(len(jobs), sum(lengths) // LONG))
    return await _block(
        kernel,
        model,
        columns,
        np.array([job.scaling_potential for job in jobs]),
        np.array([job.latency_budget_ms for job in jobs], np.float64),  # None becomes NaN
        turns,
    )


async def _blame(kernel: Kernel, job: Job, turns: Turns) -> None:
    try:
        convert = functools.partial(kernel.as_inputs, job.inputs)
        await turns.convert(convert, at_once=kernel.takes_at_once(job.inputs))
        kernel.as_params(job.params)
    except Exception as error:
        raise job_error(job.id, job.kind, error) from error


def job_error(job_id: int, kind: str, error: BaseException) -> JobError:
    """Return what says of a job that it can't be, and why."""
    return JobError(f"job {job_id} of kind {brief(kind)}: {said_by(error)}")


async def _block(
    kernel: Kernel,
    model: KindModel,
    columns: Columns,
    scaling_potential: Array,
    latency_budget_ms: Array,
    turns: Turns,
) -> Block:
    work = await _work(kernel, columns, turns)
    return Block(
        kernel=kernel,
        model=model,
        columns=columns,
        scaling_potential=scaling_potential,
        latency_budget_ms=latency_budget_ms,
        bounded=~np.isnan(latency_budget_ms),
        work=work,
        cold=model.is_cold,
        predicted_ns=model.predict_ns(work, work),
    )


async def _work(kernel: Kernel, columns: Columns, turns: Turns) -> Array:
    lengths = columns.lengths
    work = np.empty(len(columns))
    for start in range(0, len(columns), SLICE):
        own = slice(start, start + SLICE)
        costs, inputs = columns.compute_cost[own].tolist(), lengths[own].tolist()
        done = start
        try:
            for cost, length in zip(costs, inputs, strict=True):
                work[done] = kernel.predict_ns(cost, length)
                done += 1
        except Exception as error:  # it is code of the kernel's author
            job_id = columns.job_id[done]
            raise job_error(job_id, kernel.name, error) from error
        await turns.pass_on()
    return work
