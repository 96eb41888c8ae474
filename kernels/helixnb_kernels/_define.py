"""``@kernel``: one scalar function becomes a kind of job."""

from __future__ import annotations

import inspect
import keyword
import types
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from numba.core import config
from numba.core.dispatcher import Dispatcher

from helixnb_kernels._derive import Shape, both_forms, derive_batch, derive_solo
from helixnb_kernels._errors import KernelError
from helixnb_kernels._jit import jit, place
from helixnb_kernels._jitted import Jitted
from helixnb_kernels._kernel import Form, Kernel
from helixnb_kernels._types import Spec
from helixnb_kernels._values import shown

_NOTHING: Mapping[str, str] = MappingProxyType({})
# What the derived forms use, and what `helixnb.UserKernel.job` takes beside params.
_RESERVED = (
    *("inputs", "offsets", "parts", "failed", "out", "len", "range", "Exception"),
    *("self", "id", "scaling_potential", "latency_budget_ms"),
)


def _larger(compute_cost: int, inputs: int) -> float:
    return float(compute_cost if compute_cost > inputs else inputs)  # noqa: FURB136  # max takes 0.1 us


class DerivedKernel(Kernel):
    """A kernel whose forms come from one scalar function; `kernel` makes them."""

    _default_work = staticmethod(_larger)

    def __init__(
        self,
        scalar: types.FunctionType,
        shape: Shape,
        *,
        boundscheck: bool | None = None,
        **fields: Any,
    ) -> None:
        self._shape = shape
        self._boundscheck = self._declared_boundscheck = boundscheck
        # The source texts are this package's part of what is compiled.
        sources = (scalar, str(shape.batch_signature), shape.solo_source(), shape.batch_source())
        compiled = jit(shape.scalar_signature, boundscheck=boundscheck, sources=sources)(scalar)
        self._sources = (compiled, *sources)  # its options are a part of what calls it
        serial, parallel = derive_batch(compiled, shape, self._sources)
        super().__init__(
            solo=derive_solo(compiled, shape, self._sources),
            serial=serial,
            parallel=parallel,
            needs=(compiled,),
            **fields,
        )
        self._functions = (scalar,)

    def _declared(self) -> tuple[str, ...]:
        return (repr(self._declared_boundscheck),)

    def check_bounds(self) -> None:
        """Check indices from now on, unless `boundscheck` was declared, or it is compiled already.

        It is what ``helixnb.testing`` does with a kernel.
        """
        scalar = self.needs[0]
        if self._boundscheck is not None or not isinstance(scalar, Jitted) or scalar.warm:
            return
        self._boundscheck = True
        scalar.boundscheck = True
        scalar.forget_dispatcher()
        if len(self._functions) > 1:
            self._use_batch(self._functions[1], parallel=False)

    def _use_batch(self, batch: Form, *, parallel: bool) -> None:
        """Take a hand-written batch form."""
        self._functions = (self._functions[0], batch)
        self.serial, self.parallel = both_forms(
            batch, self._shape, (batch, *self._sources), boundscheck=self._boundscheck
        )
        # Numba loses what is raised in a parallel loop, and the jobs after it.
        if not parallel or self._boundscheck or config.BOUNDSCHECK:
            self.parallel = None

    def batch(self, *, parallel: bool = True) -> Callable[[Form], Form]:
        """Replace the derived batch form by a hand-written one; a decorator.

        The function takes ``inputs, offsets, parts``, the scalar function's other arguments in
        its order, as columns, then ``failed, out``; see `Kernel`. It must give the values of solo
        runs to the last bit, and must not raise: it writes 1 into ``failed[i]`` instead.

        Parameters
        ----------
        parallel
            Compile it for several threads too, where its ``prange`` loop over ``len(parts) - 1``
            spreads the parts; otherwise a batch runs on one, as it does where indices are checked:
            Numba loses what is raised in a parallel loop.

        Raises
        ------
        KernelError
            The function takes other arguments; the message names its file and line.
        """

        def replace(function: Form) -> Form:
            plain = getattr(function, "py_func", function)
            given = plain.__code__.co_varnames[: plain.__code__.co_argcount]
            expected = ("inputs", "offsets", "parts", *self.arguments, "failed", "out")
            if given != expected:
                raise KernelError(
                    f"{place(plain)} must take ({', '.join(expected)}), but takes "
                    f"({', '.join(given)})"
                )
            self._use_batch(plain, parallel=parallel)
            self._digest = None
            return function

        return replace


def kernel(
    *,
    inputs: str = "uint64[:]",
    returns: str,
    params: Mapping[str, str] = _NOTHING,
    shared: Mapping[str, str] = _NOTHING,
    work: Callable[[int, int], float] | None = None,
    ns_per_work: float | None = None,
    name: str | None = None,
    boundscheck: bool | None = None,
    kernel_class: type[DerivedKernel] = DerivedKernel,
) -> Callable[[Callable[..., Any]], DerivedKernel]:
    """Make a kernel of a function that computes one job.

    The function must be one that Numba compiles in nopython mode. It takes the job's inputs
    first, then by name, in any order, what it needs of ``compute_cost`` and ``job_id`` (uint64),
    the `params` and the `shared` arrays; and last ``out``, an array to fill, if the result has
    several numbers. It gets a solo form, and a batch form whose values are the same to the last
    bit. Where it raises, only that job fails.

    Nothing compiles here, but when the kernel is warmed up. uint64 with int64 gives int64 or
    float64 in Numba: wrap the constants of integer kernels in ``np.uint64``.

    Parameters
    ----------
    inputs, returns
        Such as ``"float64[:]"`` for any number of inputs, ``"float64[8]"`` for exactly 8; and
        ``"float64"`` or ``"float64[3]"``. dtypes are uint64, int64 and float64.
    params
        The dtype of each number that a job gives by name (`Job.params`).
    shared
        The type of each read-only array that all jobs share, such as ``"float64[:,:]"``; set and
        swapped with ``bind``.
    work, ns_per_work
        See `Kernel`. By default a job's work is its cost, or its number of inputs if it has none,
        and its time is not declared: the first jobs of the kind run in threads, to be timed.
    name
        The kind of its jobs; the function's name by default.
    boundscheck
        Check indices: one out of range is an ``IndexError`` of its job then, where it otherwise
        reads or writes what lies there. By default as Numba is set to: not at all, or everywhere
        with ``NUMBA_BOUNDSCHECK=1``. Jitted functions that the kernel calls have an option of
        their own.
    kernel_class
        What to make of it.

    Raises
    ------
    KernelError
        The function takes other arguments than these; the message names its file and line.
    ValueError
        A declaration isn't one.
    """
    if boundscheck is not None and not isinstance(boundscheck, bool):
        raise ValueError(f"boundscheck must be True, False or None, got {shown(boundscheck)}")

    def decorate(function: Callable[..., Any]) -> DerivedKernel:
        scalar = _plain(function)
        result = Spec.result(returns, "returns")
        arguments = _arguments(scalar, params, shared, vector=result.ndim > 0)
        shape = Shape(
            Spec.vector(inputs, "inputs"),
            result,
            arguments,
            {key: Spec.number(text, f"params[{key!r}]") for key, text in params.items()},
            {key: Spec.array(text, f"shared[{key!r}]") for key, text in shared.items()},
        )
        return kernel_class(
            scalar,
            shape,
            name=scalar.__name__ if name is None else name,
            boundscheck=boundscheck,
            inputs=inputs,
            returns=returns,
            arguments=arguments,
            params=params,
            shared=shared,
            work=work,
            ns_per_work=ns_per_work,
        )

    return decorate


def _plain(function: Any) -> types.FunctionType:
    """Return the Python function, without Numba's decorator if it has that."""
    if isinstance(function, Dispatcher):
        options = {key for key, value in function.targetoptions.items() if value}
        if extra := options - {"nopython", "nogil"}:
            raise KernelError(
                f"{place(function.py_func)}: kernels set the options of njit themselves, so apply "
                f"@kernel to the plain function, without {', '.join(sorted(extra))}"
            )
        function = function.py_func
    if not isinstance(function, types.FunctionType):
        raise KernelError(f"a kernel must be made of a plain function, got {shown(function)}")
    if function.__code__.co_flags & (inspect.CO_COROUTINE | inspect.CO_GENERATOR):
        raise KernelError(f"{place(function)} must be a plain function, not async or a generator")
    return function


def _arguments(
    function: Any, params: Mapping[str, str], shared: Mapping[str, str], *, vector: bool
) -> tuple[str, ...]:
    """Return the names of what a scalar function takes after the inputs, without ``out``."""
    where = place(function)
    declared = ("compute_cost", "job_id", *params, *shared)
    for name in (*params, *shared):
        if (
            not name.isidentifier()
            or keyword.iskeyword(name)
            or name.startswith("_")
            or name in _RESERVED
            or declared.count(name) > 1
        ):
            raise KernelError(f"{where}: {name!r} can't be the name of a param or shared array")
    names = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
            raise KernelError(f"{where} must take plain arguments only, but takes {parameter}")
        names.append(parameter.name)
    if not names:
        raise KernelError(f"{where} must take the inputs first, but takes nothing")
    rest = names[1:]
    if vector:
        if not rest or rest[-1] != "out":
            raise KernelError(f"{where} must take `out` last, since its result has several numbers")
        rest = rest[:-1]
    for name in rest:
        if name not in declared:
            raise KernelError(
                f"{where} must take only {', '.join(declared)} after the inputs, but takes {name!r}"
                ": declare it in params, if each job brings its own, or in shared"
            )
    for name in (*params, *shared):
        if name not in rest:
            raise KernelError(f"{where} doesn't take {name!r}, which is declared")
    return tuple(rest)
