"""The forms of a kernel, derived from one scalar function: solo, serial batch, parallel batch."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from numba import prange, types
from numba.core import config
from numba.core.imputils import impl_ret_new_ref
from numba.extending import intrinsic

from helixnb_kernels._jit import helper, jit
from helixnb_kernels._types import Spec

_UINT64 = types.uint64


def _make_borrowed() -> Callable[..., Any]:
    if config.DISABLE_JIT:
        return lambda array: array

    @intrinsic  # type: ignore[untyped-decorator]  # numba ships no type hints
    def borrowed(typing_context: Any, array: Any) -> Any:
        """Give the same array without a reference to its memory, which the caller keeps alive.

        A raise in compiled code skips the clean-up of the frames that it leaves, so that each
        array alive in them would leak a reference, and with it its memory.
        """

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            view = context.make_array(signature.args[0])(context, builder, args[0])
            view.meminfo = view.meminfo.type(None)
            view.parent = view.parent.type(None)
            return impl_ret_new_ref(context, builder, signature.return_type, view._getvalue())  # noqa: SLF001

        return array(array), codegen

    return borrowed  # type: ignore[no-any-return]  # as above


borrowed = _make_borrowed()


class Shape:
    """What a kernel takes and gives, as Numba types and as source text.

    Parameters
    ----------
    inputs, returns
        Declarations of a job's inputs and result.
    arguments
        What the scalar function takes after the inputs, in order: ``compute_cost``, ``job_id``,
        the names of `params` and those of `shared`.
    """

    def __init__(
        self,
        inputs: Spec,
        returns: Spec,
        arguments: tuple[str, ...],
        params: Mapping[str, Spec],
        shared: Mapping[str, Spec],
    ) -> None:
        self.inputs = inputs
        self.returns = returns
        self.arguments = arguments
        self.shared = shared
        numbers = {"compute_cost": _UINT64, "job_id": _UINT64}
        numbers |= {name: spec.numba() for name, spec in params.items()}
        arrays = {name: spec.numba(readonly=True) for name, spec in shared.items()}
        columns = {name: types.Array(number, 1, "C") for name, number in numbers.items()}
        self._solo_types = [(numbers | arrays)[name] for name in arguments]
        self._batch_types = [(columns | arrays)[name] for name in arguments]

    @functools.cached_property
    def scalar_signature(self) -> Any:
        """The signature of the scalar function."""
        inputs = [self.inputs.numba(readonly=True), *self._solo_types]
        if self.returns.ndim:
            return types.void(*inputs, self.returns.numba())
        return self.returns.numba()(*inputs)

    @functools.cached_property
    def batch_signature(self) -> Any:
        """The signature of a batch form."""
        return types.void(
            self.inputs.numba(extra_dims=0 if self.inputs.length is None else 1, readonly=True),
            types.int64[::1],
            types.int64[::1],
            *self._batch_types,
            types.uint8[::1],
            self.returns.numba(extra_dims=1),
        )

    def solo_source(self) -> str:
        """Return the source of the solo form: the scalar function, without leaks if it raises."""
        given = ["inputs", *self.arguments] + (["out"] if self.returns.ndim else [])
        return textwrap.dedent(f"""
            def solo({", ".join(given)}):
                return _scalar({", ".join(self._lend(given))})
        """)

    def batch_source(self) -> str:
        """Return the source of the guard around one job, and of the loop over all of them."""
        row = (
            "inputs[_i]"
            if self.inputs.length is not None
            else "inputs[offsets[_i]:offsets[_i + 1]]"
        )
        each = [name if name in self.shared else f"{name}[_i]" for name in self.arguments]
        given = ["inputs", *self.arguments]
        if self.returns.ndim:
            job_out = "out[_i]"
            call = f"_scalar({', '.join(self._lend([*given, 'out']))})"
        else:
            job_out = "out[_i:_i + 1]"
            call = f"out[0] = _scalar({', '.join(self._lend(given))})"
        columns = ["inputs", "offsets", "parts", *self.arguments, "failed", "out"]
        return textwrap.dedent(f"""
            def guarded({", ".join([*given, "out"])}):
                try:
                    {call}
                except Exception:
                    return 1
                return 0

            def batch({", ".join(columns)}):
                for _part in _prange(len(parts) - 1):
                    for _i in range(parts[_part], parts[_part + 1]):
                        failed[_i] = _guarded({", ".join([row, *each, job_out])})
        """)

    def _lend(self, names: list[str]) -> list[str]:
        arrays = {"inputs", "out", *self.shared}
        return [f"_borrowed({name})" if name in arrays else name for name in names]


def derive_solo(
    scalar: Callable[..., Any], shape: Shape, sources: tuple[Any, ...]
) -> Callable[..., Any]:
    """Return the solo form of a scalar function."""
    namespace: dict[str, Any] = {"__name__": __name__, "_scalar": scalar, "_borrowed": borrowed}
    exec(shape.solo_source(), namespace)  # noqa: S102  # of names that were checked
    solo: Callable[..., Any] = namespace["solo"]
    return jit(shape.scalar_signature, sources=sources)(solo)


def derive_batch(
    scalar: Callable[..., Any], shape: Shape, sources: tuple[Any, ...]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the serial and the parallel batch form of a scalar function."""
    namespace: dict[str, Any] = {
        "__name__": __name__,
        "_scalar": scalar,
        "_borrowed": borrowed,
        "_prange": prange,
    }
    exec(shape.batch_source(), namespace)  # noqa: S102  # of names that were checked
    namespace["_guarded"] = helper(namespace["guarded"])
    return both_forms(namespace["batch"], shape, sources)


def both_forms(
    batch: Callable[..., Any],
    shape: Shape,
    sources: tuple[Any, ...],
    *,
    boundscheck: bool | None = None,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return a batch form compiled for one thread, and for several."""
    serial, parallel = (
        jit(shape.batch_signature, parallel=parallel, boundscheck=boundscheck, sources=sources)
        for parallel in (False, True)
    )
    return serial(batch), parallel(batch)
