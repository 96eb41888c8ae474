"""Jobs of one kernel as columns: one array a field, an element or a row a job."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from helixnb_kernels._inputs import Array, as_array, as_vector
from helixnb_kernels._types import DTYPES, Spec
from helixnb_kernels._values import listed, shown


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Columns:
    """Jobs of one kernel, as its batch forms take them; made by `Kernel.as_columns`.

    Attributes
    ----------
    inputs
        All inputs, one job after the other; for a kernel with inputs of a fixed length a row a
        job.
    offsets
        The inputs of job i are ``inputs[offsets[i]:offsets[i + 1]]``, or ``inputs[i]`` where they
        have a fixed length; int64, one more than there are jobs.
    compute_cost, job_id
        uint64.
    params
        One a param, in the declared order.
    """

    inputs: Array
    offsets: Array
    compute_cost: Array
    job_id: Array
    params: tuple[Array, ...] = ()

    def __len__(self) -> int:
        return len(self.compute_cost)

    @property
    def rows(self) -> bool:
        """Whether the inputs have a row a job."""
        return self.inputs.ndim > 1

    @property
    def lengths(self) -> Array:
        """The number of inputs of each job."""
        lengths: Array = np.diff(self.offsets)
        return lengths

    def inputs_of(self, job: int) -> Array:
        """Return the inputs of one job."""
        at = job if self.rows else slice(self.offsets[job], self.offsets[job + 1])
        inputs: Array = self.inputs[at]
        return inputs

    def take(self, jobs: Array) -> Columns:
        """Return some of the jobs, by their positions."""
        lengths = self.lengths[jobs]
        offsets = offsets_of(lengths)
        if self.rows:
            inputs = self.inputs[jobs]
        else:  # each job's inputs move from its old start to its new one
            moved = np.repeat(self.offsets[:-1][jobs] - offsets[:-1], lengths)
            inputs = self.inputs[moved + np.arange(offsets[-1])]
        return Columns(
            inputs=inputs,
            offsets=offsets,
            compute_cost=self.compute_cost[jobs],
            job_id=self.job_id[jobs],
            params=tuple(column[jobs] for column in self.params),
        )


def offsets_of(lengths: Any) -> Array:
    """Return where each job's inputs begin, and where the last one's end."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def join(inputs: Sequence[Any], spec: Spec) -> tuple[Array, list[int]]:
    """Return the inputs of single jobs one after the other, and the number of each; checked."""
    if all(type(each) is list for each in inputs):
        flat = as_vector(list(itertools.chain.from_iterable(inputs)), spec.dtype, "inputs")
        lengths = list(map(len, inputs))
        if spec.length is not None and any(length != spec.length for length in lengths):
            raise ValueError(f"inputs must have {spec.length} elements")
        return flat, lengths
    arrays = [as_vector(each, spec.dtype, "inputs", spec.length) for each in inputs]
    flat = np.concatenate(arrays) if arrays else np.empty(0, spec.dtype)
    return flat, list(map(len, arrays))


def gather(
    inputs: Sequence[Array],
    costs: Sequence[int],
    ids: Sequence[int],
    params: Sequence[tuple[int | float, ...]],
    spec: Spec,
    param_specs: Sequence[Spec],
) -> Columns:
    """Return single jobs, whose inputs and params were converted, as columns."""
    flat = np.concatenate(inputs) if inputs else np.empty(0, spec.dtype)
    return Columns(
        inputs=flat if spec.length is None else flat.reshape(len(inputs), spec.length),
        offsets=offsets_of([len(each) for each in inputs]),
        compute_cost=as_vector(costs, DTYPES["uint64"], "costs"),
        job_id=as_vector(ids, DTYPES["uint64"], "ids"),
        params=tuple(
            np.array([each[k] for each in params], param.dtype)
            for k, param in enumerate(param_specs)
        ),
    )


def convert(
    inputs: Any,
    offsets: Any,
    compute_cost: Any,
    job_id: Any,
    params: Mapping[str, Any],
    spec: Spec,
    param_specs: Mapping[str, Spec],
) -> Columns:
    """Return columns as a kernel's batch forms take them; see `Kernel.as_columns`."""
    jobs = len(compute_cost)
    given = as_array(inputs, spec.dtype, "inputs")
    if given.ndim == 2:
        if len(given) != jobs:
            raise ValueError(f"inputs must have a row a job, {jobs}, got {len(given)}")
        if spec.length not in (None, given.shape[1]):
            raise ValueError(f"inputs must have {spec.length} columns, got {given.shape[1]}")
        offsets = np.arange(jobs + 1, dtype=np.int64) * given.shape[1]
    elif given.ndim != 1:
        raise ValueError(f"inputs must have one or two dimensions, got shape {given.shape}")
    else:
        offsets = _column(as_array(offsets, DTYPES["int64"], "offsets"))
        _check_offsets(offsets, jobs, len(given))
        if (
            spec.length is not None
            and (wrong := np.flatnonzero(np.diff(offsets) != spec.length)).size
        ):
            first = int(wrong[0])
            raise ValueError(
                f"inputs must have {spec.length} elements a job, but job {first} has "
                f"{offsets[first + 1] - offsets[first]}"
            )
        given = given[offsets[0] : offsets[-1]] if spec.length is not None else given
    flat = np.require(given, requirements=("C", "A"))
    flat = flat.reshape(-1) if spec.length is None else flat.reshape(jobs, spec.length)
    if params.keys() != param_specs.keys():
        raise ValueError(f"params must be {listed(param_specs)}, got {listed(params)}")
    columns = []
    for name, param in param_specs.items():
        field = f"params[{shown(name)}]"
        column = _column(as_array(params[name], param.dtype, field))
        if column.shape != (jobs,):
            raise ValueError(
                f"{field} must have one element a job, {jobs}, got shape {column.shape}"
            )
        columns.append(column)
    return Columns(
        inputs=flat,
        offsets=offsets,
        compute_cost=_column(as_vector(compute_cost, DTYPES["uint64"], "compute_cost")),
        job_id=_column(as_vector(job_id, DTYPES["uint64"], "job_id", jobs)),
        params=tuple(columns),
    )


def _column(values: Array) -> Array:
    """Return a column as the batch forms take it; one that can't be written to isn't their type."""
    return np.require(values, requirements=("C", "A", "W"))


def _check_offsets(offsets: Array, jobs: int, inputs: int) -> None:
    if offsets.shape != (jobs + 1,):
        raise ValueError(
            f"offsets must have one element more than there are jobs, {jobs + 1}, got shape "
            f"{offsets.shape}"
        )
    # Differences could wrap; comparisons can't.
    if offsets[0] < 0 or offsets[-1] > inputs or (offsets[1:] < offsets[:-1]).any():
        raise ValueError(
            f"offsets must rise from 0 or more to at most {inputs}, the inputs' number"
        )
