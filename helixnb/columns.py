"""Jobs and outcomes by the thousand: typed columns, one block a kind."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from helixnb._core.rows import Rows
from helixnb._errors import JobError
from helixnb._records import Array, Job, Outcome, Status, Strategy, make_outcome
from helixnb_kernels._inputs import as_vector

_STATUSES = tuple(Status)
_STRATEGIES = tuple(Strategy)


class JobBlock:
    """Jobs of one kind, as columns with an element a job.

    Columns that have the dtype named below aren't copied: leave them alone until the outcomes are
    there. A number in place of a column holds for every job.

    Parameters
    ----------
    kind
        The name of a kernel of the router.
    inputs
        Two dimensions, a row a job, without `offsets`; or one dimension, all inputs one after the
        other, with `offsets`. The kernel's dtype; integers are checked, not wrapped.
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
        kind: str,
        inputs: Any,
        *,
        offsets: Any = None,
        compute_cost: Any,
        scaling_potential: Any = 0.0,
        latency_budget_ms: Any = None,
        id: Any = None,  # noqa: A002  # the field's name
        params: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(kind, str):
            raise JobError(f"kind must be the name of a kernel, got {kind!r}")
        self.kind = kind
        self.inputs = self._array("inputs", inputs)
        if offsets is None and self.inputs.ndim != 2:
            raise JobError(
                f"inputs must have two dimensions, a row a job, or come with offsets; got shape "
                f"{self.inputs.shape}"
            )
        if offsets is not None and self.inputs.ndim != 1:
            raise JobError(
                f"inputs must have one dimension beside offsets, got shape {self.inputs.shape}"
            )
        self.offsets = None if offsets is None else self._array("offsets", offsets)
        jobs = len(self.inputs) if self.offsets is None else max(len(self.offsets) - 1, 0)
        self.compute_cost = self._integers("compute_cost", compute_cost, jobs)
        self.id = np.arange(jobs, dtype=np.uint64) if id is None else self._integers("id", id, jobs)
        self.scaling_potential = self._floats("scaling_potential", scaling_potential, jobs)
        wrong = ~((self.scaling_potential >= 0) & (self.scaling_potential <= 1))
        self._refuse("scaling_potential", self.scaling_potential, wrong, "lie in 0 .. 1")
        if latency_budget_ms is None:
            latency_budget_ms = math.nan
        self.latency_budget_ms = self._floats("latency_budget_ms", latency_budget_ms, jobs)
        wrong = (self.latency_budget_ms < 0) | (self.latency_budget_ms == math.inf)
        self._refuse(
            "latency_budget_ms", self.latency_budget_ms, wrong, "be >= 0 and finite, or NaN"
        )
        if params is not None and not isinstance(params, Mapping):
            raise JobError(f"{kind}: params must be a mapping of names to columns, got {params!r}")
        self.params = {}
        for name, values in (params or {}).items():
            column = self._array(f"params[{name!r}]", values)
            self.params[name] = np.full(jobs, column) if column.ndim == 0 else column

    def __len__(self) -> int:
        return len(self.compute_cost)

    def __repr__(self) -> str:
        return f"<JobBlock {self.kind}: {len(self)} jobs>"

    def _array(self, name: str, values: Any) -> Array:
        if isinstance(values, np.ma.MaskedArray):
            raise JobError(
                f"{self.kind}: {name} must not be masked: fill it, or compress it, first"
            )
        array = np.asarray(values)
        if array.size == 0 and not isinstance(values, np.ndarray):
            return array.astype(np.int64)  # nothing has no dtype of its own
        return array

    def _integers(self, name: str, values: Any, jobs: int) -> Array:
        if isinstance(values, (list, tuple)):  # of which NumPy would make floats above 2**63
            try:
                column = as_vector(values, np.dtype(np.uint64), name)
            except (TypeError, ValueError) as error:
                raise JobError(f"{self.kind}: {error}") from error
        else:
            column = self._array(name, values)
        if column.dtype.kind not in "ui":
            raise JobError(f"{self.kind}: {name} must have an integer dtype, got {column.dtype}")
        if column.dtype.kind == "i":
            self._refuse(name, column, column < 0, "lie in 0 .. 2**64-1")
        return self._shaped(name, column, np.uint64, jobs)

    def _floats(self, name: str, values: Any, jobs: int) -> Array:
        column = self._array(name, values)
        if column.dtype.kind not in "uif":
            raise JobError(f"{self.kind}: {name} must have a real dtype, got {column.dtype}")
        return self._shaped(name, column, np.float64, jobs)

    def _shaped(self, name: str, column: Array, dtype: Any, jobs: int) -> Array:
        if column.ndim == 0:
            return np.full(jobs, column, dtype)
        if column.shape != (jobs,):
            raise JobError(
                f"{self.kind}: {name} must have one element a job, {jobs}, got shape {column.shape}"
            )
        return np.ascontiguousarray(column, dtype)

    def _refuse(self, name: str, column: Array, wrong: Array, allowed: str) -> None:
        if wrong.any():
            at = f"[{int(np.flatnonzero(wrong)[0])}]" if wrong.ndim else ""
            value = column[wrong][0] if wrong.ndim else column
            raise JobError(f"{self.kind}: {name}{at} must {allowed}, got {value}")


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
        self.blocks = tuple(blocks)
        for block in self.blocks:
            if not isinstance(block, JobBlock):
                raise JobError(f"blocks must be of JobBlock, got {block!r}")
        kinds = [block.kind for block in self.blocks]
        if len(set(kinds)) != len(kinds):
            raise JobError(f"there must be one block a kind, got {', '.join(kinds)}")
        jobs = sum(map(len, self.blocks))
        self.order: Array | None = None
        if order is not None:
            self.order = np.array(order) if len(order) else np.empty(0, np.int64)
            named = self.order.dtype.kind in "ui" and self.order.shape == (jobs,)
            if not named or (np.sort(self.order) != np.arange(jobs)).any():
                raise JobError(f"order must name each of {jobs} jobs once, got {self.order!r}")
            self.order = self.order.astype(np.int64, copy=False)

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
