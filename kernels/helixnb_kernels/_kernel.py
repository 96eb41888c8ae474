"""The record of a kernel, and how a batch of its jobs runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from helixnb_kernels._inputs import UInt64Array, as_uint64_vector
from helixnb_kernels._jit import compile_once, is_warm
from helixnb_kernels._threads import parallel_is_safe, parallel_region

SOLO_OF_UINT64 = "uint64(uint64[::1], uint64, uint64)"
SOLO_OF_FLOAT64 = "float64(uint64[::1], uint64, uint64)"
BATCH_OF_UINT64 = "void(uint64[::1], int64[::1], uint64[::1], uint64[::1], uint64[::1])"
BATCH_OF_FLOAT64 = "void(uint64[::1], int64[::1], uint64[::1], uint64[::1], float64[::1])"

Progress = Callable[[int, int, str], None]
SoloForm = Callable[[UInt64Array, Any, Any], Any]
BatchForm = Callable[
    [UInt64Array, npt.NDArray[np.int64], UInt64Array, UInt64Array, npt.NDArray[Any]], None
]


def _cost_itself(compute_cost: int, inputs: int) -> float:
    return float(compute_cost)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """What one kernel call gave for a batch.

    Attributes
    ----------
    values
        One a job, in order, of the type that the solo form gives.
    parallel
        Whether the parallel form ran, on several threads.
    """

    values: list[Any]
    parallel: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kernel:
    """One kind of job: what it computes, alone and in batches.

    Parameters
    ----------
    name
        The `kind` of its jobs; unique in a router.
    solo
        ``solo(inputs, compute_cost, job_id)`` gives one job's value. `inputs` is a contiguous
        uint64 array, the other two are integers in 0 .. 2**64-1. It may raise.
    serial, parallel
        ``batch(flat, offsets, costs, ids, out)`` writes the value of job i into ``out[i]``. The
        job's inputs are ``flat[offsets[i]:offsets[i + 1]]``, with `offsets` int64 and of one more
        element than the others. The parallel form spreads the jobs over Numba's threads. Without
        a serial form there are no batches: the jobs run one after the other.
    result_dtype
        The dtype of `out`. Needed with a batch form only.
    work
        ``work(compute_cost, inputs)`` counts the steps of a job with that many inputs, in a unit
        of the kernel's own. The default takes the cost as it is.
    ns_per_work
        Nanoseconds a unit of work takes solo, roughly: what is assumed until it is measured.
    needs
        Jitted functions that the forms call, in the order in which to compile them.
    """

    name: str
    solo: SoloForm
    serial: BatchForm | None = None
    parallel: BatchForm | None = None
    result_dtype: np.dtype[Any] | None = None
    work: Callable[[int, int], float] = _cost_itself
    ns_per_work: float = 1.0
    needs: tuple[Callable[..., Any], ...] = ()

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):
            raise ValueError(f"name must be a non-empty string, got {self.name!r}")
        if self.serial is not None and self.result_dtype is None:
            raise ValueError(f"kernel {self.name}: a batch form needs a result_dtype")
        if self.parallel is not None and self.serial is None:
            raise ValueError(f"kernel {self.name}: a parallel form needs a serial form beside it")

    def as_inputs(self, inputs: Any) -> UInt64Array:
        """Return a job's inputs as the array that the forms take; raises if they don't fit."""
        return as_uint64_vector(inputs, "inputs")

    def predict_ns(self, compute_cost: int, inputs: int) -> float:
        """Estimate how long a job takes solo, before anything was measured."""
        return self.work(compute_cost, inputs) * self.ns_per_work

    def forms(self, *, parallel: bool = True) -> list[Callable[..., Any]]:
        """List what `warm_up` compiles, in order."""
        forms: list[Callable[..., Any]] = [*self.needs, self.solo]
        if self.serial is not None:
            forms.append(self.serial)
        if self.parallel is not None and parallel and parallel_is_safe():
            forms.append(self.parallel)
        return forms

    @property
    def can_run_parallel(self) -> bool:
        """Whether the parallel form can run now: there is one, it is warm, and it is safe."""
        return self.parallel is not None and is_warm(self.parallel) and parallel_is_safe()

    def run_batch(
        self, inputs: Sequence[UInt64Array], costs: Sequence[int], ids: Sequence[int], threads: int
    ) -> BatchResult:
        """Run several jobs in one call, with the values that they would have solo.

        `warm_up` comes first. Thread-safe. A batch form that raises leaves no values: run the
        jobs solo then, so that only those fail that raise by themselves.

        Parameters
        ----------
        inputs, costs, ids
            One element a job; `inputs` as `as_inputs` returns them.
        threads
            How many threads the parallel form may use, 1 for the serial form. The serial form
            runs too where the parallel one can't (see `can_run_parallel`), and while another
            parallel region is running in this process.

        Raises
        ------
        ValueError
            The kernel has no batch form.
        """
        if self.serial is None:
            raise ValueError(f"kernel {self.name} has no batch form: run its jobs solo")
        offsets = np.zeros(len(inputs) + 1, np.int64)
        np.cumsum([len(each) for each in inputs], out=offsets[1:])
        out = np.empty(len(inputs), self.result_dtype)
        columns = (
            np.concatenate(inputs) if inputs else np.empty(0, np.uint64),
            offsets,
            np.array(costs, np.uint64),
            np.array(ids, np.uint64),
            out,
        )
        with parallel_region(threads if self.can_run_parallel else 1) as granted:
            form = self.parallel if granted and self.parallel is not None else self.serial
            form(*columns)
        return BatchResult(values=out.tolist(), parallel=granted)


def warm_up(
    kernels: Iterable[Kernel], *, parallel: bool = True, progress: Progress | None = None
) -> None:
    """Compile every form of `kernels`, or read it from the disk cache. Thread-safe.

    Nothing compiles afterwards. A form that is warm costs nothing.

    Parameters
    ----------
    kernels
        Kernels of a router, or any.
    parallel
        Compile parallel forms too, where this process can run them safely. That initialises
        Numba's threading layer; under OpenMP it takes parallel code from children forked later.
    progress
        Called as ``progress(done, total, kernel_name)`` before each form and once at the end.
    """
    pending = [
        (kernel.name, form) for kernel in kernels for form in kernel.forms(parallel=parallel)
    ]
    for done, (name, form) in enumerate(pending):
        if progress is not None:
            progress(done, len(pending), name)
        compile_once(form)
    if progress is not None:
        progress(len(pending), len(pending), "")
