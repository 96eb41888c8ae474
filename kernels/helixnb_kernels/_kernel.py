"""A kernel: its forms, the conversions in front of them, and how a batch of its jobs runs."""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib
import logging
import pickle
import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from numba.core.dispatcher import Dispatcher

from helixnb_kernels._columns import Columns, convert, gather, join
from helixnb_kernels._errors import KernelError
from helixnb_kernels._fingerprint import fingerprint
from helixnb_kernels._inputs import (
    FEW,
    Array,
    are_few,
    as_array,
    as_number,
    as_vector,
    effort,
)
from helixnb_kernels._jit import compiled, is_warm
from helixnb_kernels._jitted import Jitted
from helixnb_kernels._reads import Reads
from helixnb_kernels._threads import parallel_is_safe, parallel_region
from helixnb_kernels._types import Spec
from helixnb_kernels._values import as_real, listed, shown

logger = logging.getLogger("helixnb.kernels")

Form = Callable[..., Any]

_NOTHING: Mapping[str, Any] = MappingProxyType({})


def _cost_itself(compute_cost: int, inputs: int) -> float:
    return float(compute_cost)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """What one kernel call gave for a batch.

    Attributes
    ----------
    values
        One a job, in order, of the type that the solo form gives.
    failed
        The positions of jobs whose function raised; their values mean nothing. A solo run of
        such a job raises the error.
    parallel
        Whether the parallel form ran, on several threads.
    """

    values: list[Any]
    failed: list[int]
    parallel: bool


class Kernel:
    """One kind of job: what it computes, alone and in batches.

    Most kernels come from `kernel`. Made by hand, one may be plain Python.

    Parameters
    ----------
    name
        The `kind` of its jobs; unique in a router.
    solo
        ``solo(inputs, *arguments)`` gives one job's value, with `arguments` as named below; for a
        result of several numbers it takes ``out`` too and fills it. It may raise.
    serial, parallel
        ``batch(inputs, offsets, parts, *arguments, failed, out)`` writes the value of job i into
        ``out[i]``, or 1 into ``failed[i]``. The inputs of job i are
        ``inputs[offsets[i]:offsets[i + 1]]``, or ``inputs[i]`` where they have a fixed length;
        arguments are columns with an element a job, and shared arrays as they are. The jobs
        ``parts[t]`` to ``parts[t + 1] - 1`` are for thread t. Without a serial form there are
        no batches: the jobs run one after the other.
    inputs, returns
        ``"uint64[:]"`` and the like: the dtype of a job's inputs, and their number or ``:`` for
        any; the dtype of its result, with a number of elements if it is an array. `returns` is
        needed with a batch form only.
    arguments
        The names of what the forms take after the inputs, in order.
    params
        The dtype of each number that a job gives by name.
    shared
        The type of each read-only array that all jobs share; see `bind`.
    work
        ``work(compute_cost, inputs)`` counts the steps of a job with that many inputs, in a unit
        of the kernel's own. The default takes the cost as it is.
    ns_per_work
        Nanoseconds a unit of work takes solo, roughly: what is assumed until it is measured. None,
        the default, is not declared; 1 is assumed then. See `declares_time`.
    needs
        Jitted functions that the forms call, in the order in which to compile them.

    Attributes
    ----------
    earlier_digests
        What `digest` was for jobs that were made before a global was bound anew and the kernel
        compiled.
    has_reads
        Whether the compiled code reads anything from outside that `change` looks at.
    declares_time
        Whether both `work` and `ns_per_work` were given: only then it is known beforehand what a
        job takes.

    Raises
    ------
    ValueError
        A declaration can't be; the message names it.
    """

    _default_work: Callable[[int, int], float] = staticmethod(_cost_itself)

    def __init__(
        self,
        *,
        name: str,
        solo: Form,
        serial: Form | None = None,
        parallel: Form | None = None,
        inputs: str = "uint64[:]",
        returns: str | None = None,
        arguments: tuple[str, ...] = ("compute_cost", "job_id"),
        params: Mapping[str, str] = _NOTHING,
        shared: Mapping[str, str] = _NOTHING,
        work: Callable[[int, int], float] | None = None,
        ns_per_work: float | None = None,
        needs: tuple[Form, ...] = (),
    ) -> None:
        if not name or not isinstance(name, str):
            raise ValueError(f"name must be a non-empty string, got {shown(name)}")
        if serial is not None and returns is None:
            raise ValueError(f"kernel {name}: a batch form needs to declare what it returns")
        if parallel is not None and serial is None:
            raise ValueError(f"kernel {name}: a parallel form needs a serial form beside it")
        unit_ns = 1.0 if ns_per_work is None else as_real(ns_per_work)
        if unit_ns is None or not unit_ns > 0:
            raise ValueError(
                f"kernel {name}: ns_per_work must be more than 0, got {shown(ns_per_work)}"
            )
        self.name = name
        self.solo = solo
        self.serial = serial
        self.parallel = parallel
        self.arguments = arguments
        self.needs = needs
        self.declares_time = work is not None and ns_per_work is not None
        self.work = self._default_work if work is None else work
        self._ns_per_work = unit_ns
        self._inputs = Spec.vector(inputs, "inputs")
        self._returns = None if returns is None else Spec.result(returns, "returns")
        self._params = {key: Spec.number(text, f"params[{key!r}]") for key, text in params.items()}
        self._shared = {key: Spec.array(text, f"shared[{key!r}]") for key, text in shared.items()}
        self._functions: tuple[Form, ...] = tuple(
            each for each in (*needs, solo, serial, parallel) if each is not None
        )
        self._token = secrets.token_hex(12)
        self._digest: str | None = None
        self.earlier_digests: tuple[str, ...] = ()
        self._reads: Reads | None = None
        self.has_reads = False
        self._compiling = 0
        self._numbers = [
            (key, spec.dtype, f"params[{shown(key)}]") for key, spec in self._params.items()
        ]
        self._bound: tuple[Array, ...] = ()
        self._binding = threading.Lock()
        given = ("compute_cost", "job_id", *self._params, *self._shared)
        if unknown := set(arguments) - set(given):
            raise ValueError(f"kernel {name}: arguments must be among {given}, got {unknown}")
        self._order = tuple(given.index(each) for each in arguments)
        # Compiled code gives plain numbers, and what is undeclared may be anything.
        self._returns_itself = arguments == ("compute_cost", "job_id") and (
            self._returns is None or (self.is_compiled and not self._returns.ndim)
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {self._inputs} -> {self._returns}>"

    # -- What it is ---------------------------------------------------------------------------

    @property
    def digest(self) -> str:
        """What tells this kernel from any other of its name.

        It comes from the code, all that it reads and the declarations, so that a module that is
        loaded again, in this process or in another one of the same Python version, gives the same.
        Where the code reads what can't be digested, no other kernel has the same.
        """
        if self._digest is None:
            self._digest = self._look().digest or self._token
        return self._digest

    def _look(self) -> Reads:
        declared = [str(self), str(self._ns_per_work), *self._declared(), *self.arguments]
        for name, spec in (*self._params.items(), *self._shared.items()):
            declared += [name, str(spec)]
        return Reads(*self._functions, *declared, fingerprint(self.work))

    def _declared(self) -> tuple[str, ...]:
        """Return what else tells kernels apart."""
        return ()

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Note what the compiled code will have read from outside; `warm_up` compiles in this.

        Raises
        ------
        KernelError
            Some of that has changed since, or meanwhile.
        """
        if not self.is_compiled:  # plain Python reads what there is
            yield
            return
        reads = None if self._is_fixed() else self._look()
        with self._binding:
            self._compiling += 1
            fixed = reads is None or self._is_fixed(others=1)
            if reads is not None and not fixed:
                self._reads, self.has_reads = reads, bool(reads)
                before, self._digest = self._digest, reads.digest or self._token
                if before not in (None, self._digest):  # jobs were made already
                    self.earlier_digests = (*self.earlier_digests, str(before))
        try:
            if fixed:
                self.check_reads()
            else:
                self._warn_of_writeable()
            yield
            self.check_reads()
        finally:
            with self._binding:
                self._compiling -= 1

    def _is_fixed(self, *, others: int = 0) -> bool:
        """Tell whether compiled code may have read its globals already."""
        if self._reads is None:
            return False
        return self._compiling > others or any(map(is_warm, self.forms(parallel=False)))

    def _warn_of_writeable(self) -> None:
        for name in self._reads.writeable if self._reads is not None else ():
            with contextlib.suppress(Exception):  # an application's own handler may raise
                logger.warning(
                    "kernel %s reads the global array %s, which can be written to, but compiled "
                    "code keeps its values: declare it in shared=, or set its flags.writeable to "
                    "False",
                    self.name,
                    name,
                )

    def change(self, *, whole: bool = False) -> str | None:
        """Say which global has changed since it was compiled in, None if none is known to have.

        Parameters
        ----------
        whole
            Look at all of each array, rather than at a part of one now and then.
        """
        if self._reads is None:
            return None
        change = self._reads.change(whole=whole)
        return change and f"{change}, which compiled code may not see: declare it in shared="

    def blame(self, error: KernelError) -> KernelError:
        """Return the error to raise for one of compiling: of what Numba takes pages to refuse."""
        for name, value in self._reads.collections if self._reads is not None else ():
            what = type(value).__name__ + (" of objects" if isinstance(value, np.ndarray) else "")
            return KernelError(
                f"kernel {self.name}: global {name!r} is a {what}, which can't be compiled in: "
                "make it a tuple or a NumPy array of numbers, or declare it in shared="
            )
        return error

    def check_reads(self, *, whole: bool = True) -> None:
        """Raise a `KernelError` if a global has changed; see `change`."""
        if change := self.change(whole=whole):
            raise KernelError(f"kernel {self.name}: {change}, or make the kernel anew")

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes by the name under which a module has it, as functions do."""
        return _imported, _import_path(self)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    # -- What a job brings ----------------------------------------------------------------------

    def as_inputs(self, inputs: Any) -> Array:
        """Return a job's inputs as the array that the forms take.

        Raises
        ------
        TypeError, ValueError
            They don't fit; the message says which value, and what is allowed.
        """
        return as_vector(inputs, self._inputs.dtype, "inputs", self._inputs.length)

    def takes_at_once(self, inputs: Any) -> bool:
        """Tell whether `as_inputs` is short: no long list, and no object with code of its own."""
        if type(inputs) is np.ndarray and inputs.size <= FEW:  # most often
            return True
        return effort(inputs, self._inputs.dtype) <= FEW

    def joins_at_once(self, inputs: Sequence[Any]) -> bool:
        """Tell the same of `join_inputs`."""
        return are_few(inputs, self._inputs.dtype)

    @property
    def params(self) -> tuple[str, ...]:
        """The names of its params, in the declared order."""
        return tuple(self._params)

    def join_inputs(self, inputs: Sequence[Any]) -> tuple[Array, list[int]]:
        """Return the inputs of several jobs one after the other, and the number of each.

        Raises
        ------
        TypeError, ValueError
            Those of some job don't fit; `as_inputs` says which value.
        """
        return join(inputs, self._inputs)

    def as_params(self, params: Mapping[str, Any]) -> tuple[int | float, ...]:
        """Return a job's params as the numbers that the forms take, in the declared order.

        Raises
        ------
        TypeError, ValueError
            One is missing, unknown, of a wrong type or out of range.
        """
        if not self._numbers and not params:
            return ()
        try:
            numbers = [
                value
                if type(value := params[name]) is float and dtype.kind == "f"
                else as_number(value, dtype, field)
                for name, dtype, field in self._numbers
            ]
        except KeyError:
            numbers = None
        if numbers is None or len(params) != len(numbers):
            raise ValueError(f"params must be {listed(self._params)}, got {listed(params)}")
        return tuple(numbers)

    def predict_ns(self, compute_cost: int, inputs: int) -> float:
        """Estimate how long a job takes solo, before anything was measured.

        Raises
        ------
        ValueError
            The kernel's `work` gave no number of steps.
        """
        steps = self.work(compute_cost, inputs)
        if type(steps) is not float or not steps >= 0:
            given = as_real(steps)
            if given is None or not given >= 0:
                raise ValueError(f"kernel {self.name}: work must be 0 or more, got {shown(steps)}")
            steps = given
        return steps * self._ns_per_work

    # -- What all jobs share ----------------------------------------------------------------------

    def bind(self, **arrays: Any) -> None:
        """Set shared arrays, all at once or some of them, or swap them under traffic.

        Nothing compiles. The arrays are copied. Jobs that are running keep the arrays that they
        started with; every job that starts afterwards has the new ones, and never a mixture.
        Thread-safe.

        Raises
        ------
        TypeError
            An array has a wrong dtype.
        ValueError
            A name isn't declared, a value is out of range, or an array has another number of
            dimensions or elements.
        """
        converted = {}
        for name, value in arrays.items():
            if name not in self._shared:
                raise ValueError(f"shared arrays are {listed(self._shared)}, got {shown(name)}")
            converted[name] = _as_shared(value, self._shared[name], name)
        with self._binding:
            bound = dict(zip(self._shared, self._bound, strict=True)) if self._bound else {}
            bound |= converted
            if missing := [name for name in self._shared if name not in bound]:
                raise ValueError(
                    f"all shared arrays must be bound the first time, got no {missing[0]!r}"
                )
            self._bound = tuple(bound[name] for name in self._shared)

    # -- Running --------------------------------------------------------------------------------

    def solo_call(
        self, inputs: Array, compute_cost: int, job_id: int, params: tuple[int | float, ...] = ()
    ) -> Callable[[], Any]:
        """Return what runs one job: a call of the solo form without arguments.

        `warm_up` comes first: a call before it is a ``TypeError``.
        """
        if self._returns_itself:
            return functools.partial(self.solo, inputs, compute_cost, job_id)
        return functools.partial(self._run_solo, inputs, (compute_cost, job_id, *params))

    def _run_solo(self, inputs: Array, given: tuple[Any, ...]) -> Any:
        given = (*given, *self._bound)
        arguments = [given[i] for i in self._order]
        if self._returns is None or not self._returns.ndim:
            value = self.solo(inputs, *arguments)
            plain = self._returns is not None and isinstance(value, np.generic)
            return value.item() if plain else value
        out = np.zeros(self._returns.length or 0, self._returns.dtype)
        self.solo(inputs, *arguments, out)
        return out

    def forms(self, *, parallel: bool = True) -> list[Form]:
        """List what `warm_up` compiles, in order."""
        forms: list[Form] = [*self.needs, self.solo]
        if self.serial is not None:
            forms.append(self.serial)
        if self.parallel is not None and parallel and parallel_is_safe():
            forms.append(self.parallel)
        return forms

    def use_compiled(self) -> None:
        """Call what is warm without a detour from now on; `warm_up` does this."""
        self.needs = tuple(compiled(each) for each in self.needs)
        self.solo = compiled(self.solo)
        self.serial = None if self.serial is None else compiled(self.serial)
        self.parallel = None if self.parallel is None else compiled(self.parallel)

    @property
    def is_warm(self) -> bool:
        """Whether nothing compiles any more but, maybe, the parallel form."""
        return all(map(is_warm, self.forms(parallel=False)))

    @property
    def is_compiled(self) -> bool:
        """Whether a solo run is compiled code, which computes all the time and waits for nothing.

        Its CPU time is what it takes, then; of plain Python's nothing is known.
        """
        return isinstance(self.solo, (Jitted, Dispatcher))

    @property
    def can_run_parallel(self) -> bool:
        """Whether the parallel form can run now: there is one, it is warm, and it is safe."""
        return self.parallel is not None and is_warm(self.parallel) and parallel_is_safe()

    def run_batch(
        self,
        inputs: Sequence[Array],
        costs: Sequence[int],
        ids: Sequence[int],
        params: Sequence[tuple[int | float, ...]] = (),
        *,
        threads: int = 1,
        weights: Sequence[float] | None = None,
    ) -> BatchResult:
        """Run several jobs in one call, with the values that they would have solo.

        `warm_up` comes first. Thread-safe. A batch form that raises leaves no values: run the
        jobs solo then, so that only those fail that raise by themselves.

        Parameters
        ----------
        inputs, costs, ids, params
            One element a job; `inputs` and `params` as `as_inputs` and `as_params` return them.
            `params` may be left out where the kernel has none.
        threads
            How many threads the parallel form may use, 1 for the serial form. The serial form
            runs too where the parallel one can't (see `can_run_parallel`), and while another
            parallel region is running in this process.
        weights
            Predicted time of each job in any unit, by which the threads share the jobs; all
            alike by default.

        Raises
        ------
        ValueError
            The kernel has no batch form, or the sequences have different lengths.
        """
        if self.serial is None or self._returns is None:
            raise ValueError(f"kernel {self.name} has no batch form: run its jobs solo")
        jobs = len(inputs)
        lengths = {"costs": len(costs), "ids": len(ids)}
        lengths |= {"params": len(params)} if self._params else {}
        lengths |= {"weights": len(weights)} if weights is not None else {}
        for name, length in lengths.items():
            if length != jobs:
                raise ValueError(f"{name} must have one element a job, {jobs}, got {length}")
        columns = gather(inputs, costs, ids, params, self._inputs, [*self._params.values()])
        out, failed, parallel = self.run_columns(columns, 0, jobs, threads=threads, weights=weights)
        values = [row.copy() for row in out] if out.ndim == 2 else out.tolist()
        return BatchResult(values=values, failed=np.flatnonzero(failed).tolist(), parallel=parallel)

    def as_columns(
        self,
        inputs: Any,
        offsets: Any,
        compute_cost: Array,
        job_id: Array,
        params: Mapping[str, Any] = _NOTHING,
    ) -> Columns:
        """Return columns of jobs as the batch forms take them.

        Parameters
        ----------
        inputs, offsets
            Two dimensions, a row a job, and no offsets; or all inputs one after the other, those
            of job i being ``inputs[offsets[i]:offsets[i + 1]]``.
        compute_cost, job_id
            uint64, one element a job.
        params
            A column a param.

        Raises
        ------
        TypeError, ValueError
            They don't fit the kernel or each other; the message says which, and what is allowed.
        """
        return convert(inputs, offsets, compute_cost, job_id, params, self._inputs, self._params)

    def run_columns(
        self,
        columns: Columns,
        start: int,
        stop: int,
        *,
        threads: int = 1,
        weights: Sequence[float] | None = None,
    ) -> tuple[Array, Array, bool]:
        """Run the jobs ``start`` to ``stop - 1`` of `columns` in one call, as `run_batch` does.

        Returns
        -------
        tuple
            The value of each job, as an array; 1 for each job that failed, as uint8; and whether
            the parallel form ran.

        Raises
        ------
        ValueError
            The kernel has no batch form.
        """
        if self.serial is None or self._returns is None:
            raise ValueError(f"kernel {self.name} has no batch form: run its jobs solo")
        jobs = stop - start
        own = (columns.compute_cost, columns.job_id, *columns.params)
        given = (*(column[start:stop] for column in own), *self._bound)
        arguments = [given[i] for i in self._order]
        inputs = columns.inputs[start:stop] if columns.rows else columns.inputs
        offsets = columns.offsets[start : stop + 1]
        failed = np.zeros(jobs, np.uint8)
        out = self.no_values(jobs)
        with parallel_region(threads if self.can_run_parallel else 1) as granted:
            form = self.parallel if granted and self.parallel is not None else self.serial
            parts = _share(jobs, threads if granted else 1, weights)
            form(inputs, offsets, parts, *arguments, failed, out)
        return out, failed, granted

    def no_values(self, jobs: int) -> Array:
        """Return an array of zeros for the values of so many jobs, of objects if unknown."""
        if self._returns is None:
            return np.full(jobs, None)
        elements = () if self._returns.length is None else (self._returns.length,)
        return np.zeros((jobs, *elements), self._returns.dtype)

    def check_bound(self) -> None:
        """Raise a `KernelError` if a shared array is missing."""
        if len(self._bound) != len(self._shared):
            raise KernelError(
                f"kernel {self.name}: bind its shared arrays first: "
                f"bind({', '.join(f'{name}=...' for name in self._shared)})"
            )


def _import_path(kernel: Kernel) -> tuple[str, str]:
    """Return a module, and the name that a kernel has in it."""
    functions = [getattr(each, "py_func", each) for each in kernel._functions]  # noqa: SLF001
    modules = dict.fromkeys(str(getattr(each, "__module__", None)) for each in functions)
    for each in functions:  # as in the body of a class
        module, path = str(getattr(each, "__module__", "")), getattr(each, "__qualname__", "")
        with contextlib.suppress(AttributeError, KeyError):
            if _is_same(functools.reduce(getattr, path.split("."), sys.modules[module]), kernel):
                return module, path
    # Where its functions are, most often; else wherever it was made of them.
    for module in (*modules, *sys.modules):
        for name, value in list(vars(sys.modules.get(module, builtins)).items()):
            if _is_same(value, kernel):
                return module, name
    raise pickle.PicklingError(
        f"kernel {kernel.name} can't be pickled: it travels by its name, and "
        f"{' and '.join(modules)} has none for it at the top level"
    )


def _is_same(value: Any, kernel: Kernel) -> bool:
    """Tell whether something is a kernel, or the twin of it that tests have."""
    return isinstance(value, Kernel) and vars(value) is vars(kernel)


def _imported(module: str, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), importlib.import_module(module))


def _as_shared(value: Any, spec: Spec, name: str) -> Array:
    array = as_array(value, spec.dtype, name)
    if array.ndim != spec.ndim or (spec.length is not None and len(array) != spec.length):
        raise ValueError(f"{name} must be {spec}, got shape {array.shape}")
    copy = np.array(array, order="C")
    copy.setflags(write=False)
    return copy


def _share(jobs: int, threads: int, weights: Sequence[float] | None) -> Array:
    """Cut jobs into one part a thread, of about the same weight, in order."""
    if jobs == 0 or threads == 1:
        return np.array([0, jobs], np.int64)
    total = np.cumsum(np.ones(jobs) if weights is None else weights)
    targets = total[-1] * np.arange(1, threads) / threads
    cuts = np.searchsorted(total, targets) + 1
    return np.array([0, *np.minimum(cuts, jobs), jobs], np.int64)
