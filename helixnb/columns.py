"""Jobs and outcomes by the thousand: typed columns, one block a kind."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from helixnb._core.rows import Rows
from helixnb._errors import JobError
from helixnb._records import (
    Array,
    Job,
    Outcome,
    Status,
    Strategy,
    make_outcome,
    portable_error,
)
from helixnb_kernels import Kernel
from helixnb_kernels._inputs import as_column, as_column_of, as_numbers, as_vector
from helixnb_kernels._values import brief, listed, said_by, shown

_UINT64, _INT64, _FLOAT64 = np.dtype(np.uint64), np.dtype(np.int64), np.dtype(np.float64)
_STATUSES = tuple(Status)
_STRATEGIES = tuple(Strategy)


class JobBlock:
    """Jobs of one kind, as columns with an element a job.

    Columns that have the dtype named below aren't copied: leave them alone until the outcomes are
    there. A number in place of a column holds for every job.

    Parameters
    ----------
    kind
        The name of a kernel of the router; or the kernel itself, which alone may answer then.
    inputs
        Two dimensions, a row a job, without `offsets`, as an array, a list of rows or a table; or
        one dimension, all inputs one after the other, with `offsets`. The kernel's dtype; integers
        are checked, not wrapped.
    offsets
        int64, one more than there are jobs: the inputs of job i are
        ``inputs[offsets[i]:offsets[i + 1]]``.
    compute_cost
        uint64, as of a `Job`.
    scaling_potential
        float64, 0 to 1.
    latency_budget_ms
        float64 milliseconds, NaN for a job without a budget; None where no job has one.
    id
        uint64; counted up from 0 if left out.
    params
        A column for each param of the kernel, by its name.

    Raises
    ------
    JobError
        A column has a wrong dtype, another length than the rest, or a value out of range. What
        depends on the kernel is checked when the block is submitted.
    """

    def __init__(
        self,
        kind: str | Kernel,
        inputs: Any,
        *,
        offsets: Any = None,
        compute_cost: Any,
        scaling_potential: Any = 0.0,
        latency_budget_ms: Any = None,
        id: Any = None,  # noqa: A002  # the field's name
        params: Mapping[str, Any] | None = None,
    ) -> None:
        self.kernel_digest: str | None = None
        if isinstance(kind, Kernel):
            self.kernel_digest, kind = kind.digest, kind.name
        if not isinstance(kind, str):
            raise JobError(f"kind must be the name of a kernel, got {shown(kind)}")
        if params is not None and not isinstance(params, Mapping):
            raise JobError(
                f"{brief(kind)}: params must be a mapping of names to columns, got {shown(params)}"
            )
        self.kind = str.__str__(kind)
        try:
            self._take(inputs, offsets, compute_cost, scaling_potential, latency_budget_ms, id)
            self.params = {
                name: as_column(values, f"params[{shown(name)}]", len(self))
                for name, values in (params or {}).items()
            }
        except Exception as error:  # it may be code of an object's own
            raise JobError(f"{brief(kind)}: {said_by(error)}") from error

    def _take(
        self,
        inputs: Any,
        offsets: Any,
        compute_cost: Any,
        scaling_potential: Any,
        latency_budget_ms: Any,
        job_id: Any,
    ) -> None:
        self.inputs = as_numbers(inputs, "inputs")
        shape = self.inputs.shape
        if offsets is None:
            if len(shape) != 2:
                raise ValueError(
                    "inputs must have two dimensions, a row a job, or come with offsets; "
                    f"got shape {shape}"
                )
            self.offsets = None
            jobs = len(self.inputs)
        else:
            if len(shape) != 1:
                raise ValueError(
                    f"inputs must have one dimension beside offsets, got shape {shape}"
                )
            self.offsets = as_vector(offsets, _INT64, "offsets")
            jobs = max(len(self.offsets) - 1, 0)
        self.compute_cost = as_column_of(compute_cost, _UINT64, "compute_cost", jobs)
        self.id = (
            np.arange(jobs, dtype=np.uint64)
            if job_id is None
            else as_column_of(job_id, _UINT64, "id", jobs)
        )
        scaling = as_column_of(scaling_potential, _FLOAT64, "scaling_potential", jobs)
        wrong = ~((scaling >= 0) & (scaling <= 1))
        _refuse("scaling_potential", scaling, wrong, "lie in 0 .. 1")
        self.scaling_potential = scaling
        if latency_budget_ms is None:
            latency_budget_ms = math.nan
        budgets = as_column_of(latency_budget_ms, _FLOAT64, "latency_budget_ms", jobs)
        wrong = (budgets < 0) | (budgets == math.inf)
        _refuse("latency_budget_ms", budgets, wrong, "be >= 0 and finite, or NaN")
        self.latency_budget_ms = budgets

    def __len__(self) -> int:
        return len(self.compute_cost)

    def __repr__(self) -> str:
        return f"<JobBlock {self.kind}: {len(self)} jobs>"


def _refuse(name: str, column: Array, wrong: Array, allowed: str) -> None:
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        raise ValueError(f"{name}[{at}] must {allowed}, got {column[at]}")


class JobColumns:
    """Jobs as columns: one block a kind, and an order over all of them.

    Parameters
    ----------
    blocks
        `JobBlock` of different kinds.
    order
        Integers, one a job: the i-th job is the one at ``order[i]`` of all blocks one after the
        other. Left out, that is their order.

    Raises
    ------
    JobError
        Two blocks have the same kind, or `order` doesn't name each job once.
    """

    def __init__(self, blocks: Iterable[JobBlock], order: Any = None) -> None:
        if isinstance(blocks, JobBlock) or not isinstance(blocks, Iterable):
            raise JobError(f"blocks must be a list of JobBlock, got {shown(blocks)}")
        self.blocks = tuple(blocks)
        for block in self.blocks:
            if not isinstance(block, JobBlock):
                raise JobError(f"blocks must be of JobBlock, got {shown(block)}")
        kinds = [block.kind for block in self.blocks]
        if len(set(kinds)) != len(kinds):
            raise JobError(f"there must be one block a kind, got {listed(kinds)}")
        jobs = sum(map(len, self.blocks))
        self.order: Array | None = None
        if order is not None:
            try:
                self.order = as_vector(order, _INT64, "order", jobs).copy()
            except Exception as error:  # as above
                raise JobError(
                    f"order must name each of {jobs} jobs once: {said_by(error)}"
                ) from error
            if (np.sort(self.order) != np.arange(jobs)).any():
                raise JobError(f"order must name each of {jobs} jobs once, got {shown(order)}")

    def __len__(self) -> int:
        return sum(map(len, self.blocks))

    def __repr__(self) -> str:
        kinds = ", ".join(f"{len(block)} {block.kind}" for block in self.blocks)
        return f"<JobColumns: {kinds or 'no jobs'}>"


class BlockOutcomes:
    """How the jobs of one kind ended, as columns with an element a job, in the block's order.

    Attributes
    ----------
    values
        The answers in the kernel's dtype, a row a job where one has several numbers; zero, or
        None for a kernel of unknown type, where `completed` is False.
    status, decided, strategy
        uint8 codes: ``Status.COMPLETED.code`` and the like.
    reason
        Codes into `reasons`.
    reasons
        The rules that decided, what changed the strategy, and why jobs were dropped.
    latency_ms
        float64, from the call to the outcome.
    errors
        What the kernel raised, for each failed job by its position.
    """

    def __init__(self, rows: Rows) -> None:
        self.kind = rows.kind
        # The caller may use its own arrays again now.
        self._job_id = rows.job_id.copy()
        self._latency_budget_ms = rows.latency_budget_ms.copy()
        self.values = rows.values
        self.status = rows.status
        self.decided = rows.decided
        self.strategy = rows.strategy
        self.reason = rows.reason
        self.reasons = tuple(rows.reasons)
        self.latency_ms = rows.latency_ns / 1e6
        self.errors: Mapping[int, BaseException] = rows.errors
        self._retry_after_s = rows.retry_after_s

    def __copy__(self) -> BlockOutcomes:
        return self._with(vars(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> BlockOutcomes:
        own = {name: value for name, value in vars(self).items() if name != "errors"}
        return self._with({**copy.deepcopy(own, memo), "errors": dict(self.errors)})

    def _with(self, state: dict[str, Any]) -> BlockOutcomes:
        other = object.__new__(type(self))
        vars(other).update(state)
        return other

    def __getstate__(self) -> dict[str, Any]:
        errors = {at: portable_error(error) for at, error in self.errors.items()}
        return {**vars(self), "errors": errors}

    def __len__(self) -> int:
        return len(self.status)

    def __repr__(self) -> str:
        return f"<BlockOutcomes {self.kind}: {int(self.completed.sum())} of {len(self)} completed>"

    @property
    def completed(self) -> Array:
        """Whether each job completed."""
        completed: Array = self.status == Status.COMPLETED.code
        return completed

    def outcomes(self, start: int, stop: int) -> Iterator[Outcome]:
        """Make the outcomes of some jobs in a row, by their positions in the block."""
        own = slice(start, stop)
        values = self.values[own]
        columns = (
            self._job_id[own].tolist(),
            self.status[own].tolist(),
            self.decided[own].tolist(),
            self.strategy[own].tolist(),
            self.reason[own].tolist(),
            self.latency_ms[own].tolist(),
            self._latency_budget_ms[own].tolist(),
            (row.copy() for row in values) if values.ndim > 1 else values.tolist(),
        )
        for at, (job_id, code, decided, strategy, reason, latency_ms, budget, value) in enumerate(
            zip(*columns, strict=True), start
        ):
            yield make_outcome(
                job_id,
                self.kind,
                _STATUSES[code],
                _STRATEGIES[decided],
                _STRATEGIES[strategy],
                self.reasons[reason],
                latency_ms,
                None if math.isnan(budget) else budget,
                value if code == Status.COMPLETED.code else None,
                self.errors.get(at),
                self._retry(at) if code == Status.DROPPED.code else None,
            )

    def _retry(self, at: int) -> float | None:
        if self._retry_after_s is None or math.isnan(self._retry_after_s[at]):
            return None
        return float(self._retry_after_s[at])


class Outcomes(Sequence[Outcome]):
    """How the jobs of one `Router.submit_many` ended, in the order in which they were given.

    ``outcomes[i]`` is the `Outcome` of the i-th job, made when it is asked for;
    ``outcomes["HashMix"]`` are the columns of a kind, `BlockOutcomes`.
    """

    def __init__(self, blocks: Iterable[BlockOutcomes], order: Array | None) -> None:
        self._blocks = {block.kind: block for block in blocks}
        self._list = list(self._blocks.values())
        self._starts = np.cumsum([0, *map(len, self._list)])
        self._order = order

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of which there are columns."""
        return tuple(self._blocks)

    @property
    def status(self) -> Array:
        """The status code of each job, in the order in which they were given; uint8."""
        columns = [block.status for block in self._list]
        joined = np.concatenate(columns) if columns else np.empty(0, np.uint8)
        return joined if self._order is None else joined[self._order]

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, key: int) -> Outcome: ...
    @overload
    def __getitem__(self, key: slice) -> list[Outcome]: ...
    @overload
    def __getitem__(self, key: str) -> BlockOutcomes: ...
    def __getitem__(self, key: int | slice | str) -> Outcome | list[Outcome] | BlockOutcomes:
        if isinstance(key, str):
            return self._blocks[key]
        if isinstance(key, slice):
            return [self[i] for i in range(*key.indices(len(self)))]
        at = range(len(self))[key]  # an IndexError of its own, and negative ones from the end
        if self._order is not None:
            at = int(self._order[at])
        block = int(np.searchsorted(self._starts, at, side="right")) - 1
        position = at - int(self._starts[block])
        return next(self._list[block].outcomes(position, position + 1))

    def __iter__(self) -> Iterator[Outcome]:
        made = itertools.chain.from_iterable(block.outcomes(0, len(block)) for block in self._list)
        if self._order is None:
            return made
        outcomes = list(made)
        return (outcomes[i] for i in self._order.tolist())

    def __repr__(self) -> str:
        counts = np.bincount(self.status, minlength=len(Status))
        parts = [f"{n} {status.value}" for status, n in zip(Status, counts, strict=True) if n]
        return f"<Outcomes: {', '.join(parts) or 'no jobs'}>"


def blocks_of(jobs: Sequence[Job]) -> tuple[dict[str, list[Job]], Array | None]:
    """Part jobs by kind; returns them, and where each job is in all parts one after the other."""
    parts: dict[str, list[Job]] = {}
    for job in jobs:
        part = parts.get(job.kind)
        if part is None:
            parts[job.kind] = [job]
        else:
            part.append(job)
    if len(parts) < 2:
        return parts, None
    codes = {kind: code for code, kind in enumerate(parts)}
    kinds = np.array([codes[job.kind] for job in jobs])
    order = np.empty(len(jobs), np.int64)
    order[np.argsort(kinds, kind="stable")] = np.arange(len(jobs))
    return parts, order
