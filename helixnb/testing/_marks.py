"""How a job finds its step where it runs: a mark goes with it, by its inputs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np

from helixnb._config import RouterConfig
from helixnb._records import Array, Decision, Estimate, Job, Load
from helixnb.testing._script import Script, Step
from helixnb_kernels import BatchResult, Columns, DerivedKernel, Kernel


class Mark:
    """Goes with a job from where it is submitted, by its inputs, to where it runs."""

    __slots__ = ("step",)

    def __init__(self) -> None:
        self.step: Step | None = None

    @property
    def acts(self) -> bool:
        """Whether the run of its job is scripted."""
        return self.step is not None and self.step.acts

    def perform(self, run: Callable[[], Any]) -> Any:
        """Run its job."""
        return run() if self.step is None else self.step.perform(run)


_current: ContextVar[Mark | None] = ContextVar("helixnb_mark", default=None)
"""The mark of the job that this task submits just now."""


@contextmanager
def carried(mark: Mark | None) -> Iterator[None]:
    """Let what is submitted meanwhile have this mark."""
    before = _current.get()
    _current.set(mark)
    try:
        yield
    finally:
        # Not by a token: a coroutine that is thrown away ends in another context.
        _current.set(before)


class _Inputs(np.ndarray[Any, Any]):
    """Inputs of a job that has a mark."""

    mark: Mark | None = None


def _marked(inputs: Array, mark: Mark) -> Array:
    marked = inputs.view(_Inputs)
    marked.mark = mark
    return marked


def _mark_of(inputs: Any) -> Mark | None:
    return inputs.mark if isinstance(inputs, _Inputs) else None


@dataclass(frozen=True, kw_only=True, eq=False)
class MarkedColumns(Columns):
    """Columns of jobs that have a mark each, which `inputs_of` gives."""

    marks: Sequence[Mark]

    def inputs_of(self, job: int) -> Array:
        return _marked(super().inputs_of(job), self.marks[job])

    def take(self, jobs: Array) -> Columns:
        return _with_marks(super().take(jobs), [self.marks[job] for job in jobs.tolist()])


def _with_marks(columns: Columns, marks: Sequence[Mark]) -> Columns:
    fields = {each.name: getattr(columns, each.name) for each in dataclasses.fields(Columns)}
    return MarkedColumns(**fields, marks=marks)


class ScriptedKernel(Kernel):
    """A kernel whose jobs do what their marks say, and then what they always do."""

    @staticmethod
    def of(kernel: Any) -> Any:
        """Return the twin of a kernel. It has one state with it, so that `bind` is for both.

        Its indices are checked, if it is still to be compiled and doesn't say else. What is no
        kernel comes back as it is, for the router to refuse.
        """
        if not isinstance(kernel, Kernel) or isinstance(kernel, ScriptedKernel):
            return kernel
        if isinstance(kernel, DerivedKernel):
            kernel.check_bounds()
        twin_class = type(type(kernel).__name__, (ScriptedKernel, type(kernel)), {})
        twin: Any = object.__new__(twin_class)
        twin.__dict__ = kernel.__dict__
        return twin

    def as_inputs(self, inputs: Any) -> Array:
        array = super().as_inputs(inputs)
        mark = _current.get()
        return array if mark is None else _marked(array, mark)

    def as_columns(
        self,
        inputs: Any,
        offsets: Any,
        compute_cost: Array,
        job_id: Array,
        params: Mapping[str, Any] | None = None,
    ) -> Columns:
        columns = super().as_columns(inputs, offsets, compute_cost, job_id, params or {})
        return _with_marks(columns, [Mark() for _ in range(len(columns))])

    def solo_call(
        self, inputs: Array, compute_cost: int, job_id: int, params: tuple[int | float, ...] = ()
    ) -> Callable[[], Any]:
        run = super().solo_call(inputs.view(np.ndarray), compute_cost, job_id, params)
        mark = _mark_of(inputs)
        return run if mark is None else functools.partial(mark.perform, run)

    def run_batch(self, inputs: Sequence[Array], *columns: Any, **options: Any) -> BatchResult:
        # What has failed in a batch runs once more by itself.
        alone = [i for i, each in enumerate(inputs) if (mark := _mark_of(each)) and mark.acts]
        plain = [each.view(np.ndarray) for each in inputs]
        result = super().run_batch(plain, *columns, **options)
        return dataclasses.replace(result, failed=sorted({*result.failed, *alone}))

    def run_columns(
        self, columns: Columns, start: int, stop: int, **options: Any
    ) -> tuple[Array, Array, bool]:
        out, failed, parallel = super().run_columns(columns, start, stop, **options)
        if isinstance(columns, MarkedColumns):
            failed |= np.array([mark.acts for mark in columns.marks[start:stop]], np.uint8)
        return out, failed, parallel


class ScriptedCall(functools.partial[Any]):
    """A callable that does what its mark says; the router sees the function that it is of."""

    mark: Mark

    def __call__(self, /, *args: Any) -> Any:
        return self.mark.perform(functools.partial(super().__call__, *args))


class ScriptedPolicy:
    """Gives each job its step."""

    adaptive = False

    def __init__(self, script: Script) -> None:
        self._script = script

    def decide(
        self,
        job: Job,
        load: Load,  # noqa: ARG002  # as of every policy
        config: RouterConfig,  # noqa: ARG002
        estimate: Estimate,  # noqa: ARG002
    ) -> Decision:
        """Choose what the script says."""
        mark = _mark_of(job.inputs)
        if mark is None:
            mark = _current.get()
        else:  # of columns, which are the caller's to change later
            job = dataclasses.replace(job, inputs=np.array(job.inputs, subok=False))
        if mark is None:
            return self._script._peek(job).decision  # noqa: SLF001  # of this package
        mark.step = self._script._take(job)  # noqa: SLF001  # likewise
        return mark.step.decision
