"""A function to compile, and the options that Numba compiles it with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba
from numba import types
from numba.core.imputils import lower_constant
from numba.extending import models, register_model, typeof_impl


class Jitted:
    """A function that Numba compiles later; compiled code calls it like one of Numba's own.

    Numba's dispatcher is made when it is first needed, because dozens of them, and the compiler
    that the first one starts, would add 3 % to the time that importing Numba takes.

    Attributes
    ----------
    py_func
        The Python function.
    signature
        What it is compiled for; None for one that is compiled with each of its callers, as they
        need it.
    parallel
        Whether ``prange`` loops use several threads.
    boundscheck
        Whether indices are checked; None for what Numba is set to (``NUMBA_BOUNDSCHECK``). It may
        be changed until the dispatcher is made.
    sources
        What its machine code comes from; empty for a function of this package, whose sources are
        in every key of the disk cache.
    warm
        Whether it is compiled, and never compiles again.
    """

    def __init__(
        self,
        py_func: Callable[..., Any],
        signature: Any = None,
        *,
        parallel: bool = False,
        boundscheck: bool | None = None,
        sources: tuple[Any, ...] = (),
    ) -> None:
        functools.update_wrapper(self, py_func)
        self.py_func: Any = py_func
        self.signature = signature
        self.parallel = parallel
        self.boundscheck = boundscheck
        self.sources = sources
        self.warm = False

    @functools.cached_property
    def dispatcher(self) -> Any:
        """Numba's side of it."""
        made = numba.njit(
            nogil=True,
            error_model="numpy",
            parallel=self.parallel,
            boundscheck=self.boundscheck,
        )(self.py_func)
        if self.signature is not None:
            # A call before `compile_once` would compile for the types of its arguments, int64 for
            # a Python int, and every later call would run that form rather than the declared one.
            allow_compiling(made, False)
        return made

    def forget_dispatcher(self) -> None:
        """Have a new one made when it is needed: it keeps its options, and errors of compiling."""
        self.__dict__.pop("dispatcher", None)

    def __call__(self, *args: Any) -> Any:
        return self.dispatcher(*args)


class _Callee(types.Dispatcher):  # type: ignore[misc]  # numba ships no type hints
    """The type of a jitted function, whose address Numba doesn't compile into its callers.

    A call doesn't use that address, which keeps a caller from the disk cache where the optimiser
    doesn't remove it, with ``NUMBA_OPT=0``.
    """


register_model(_Callee)(models.OpaqueModel)


@typeof_impl.register(Jitted)  # type: ignore[untyped-decorator]  # as above
def _type_in_compiled_code(jitted: Jitted, _: Any) -> Any:
    return _Callee(jitted.dispatcher)


@lower_constant(_Callee)  # type: ignore[untyped-decorator]  # as above
def _no_address(context: Any, _builder: Any, _type: Any, _jitted: Jitted) -> Any:
    return context.get_dummy_value()


def allow_compiling(dispatcher: Any, allowed: bool) -> None:
    """Do what `Dispatcher.disable_compile` does, which insists on a form that is compiled."""
    dispatcher._can_compile = allowed  # noqa: SLF001
