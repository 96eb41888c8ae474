"""A function to compile, and the options that Numba compiles it with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba
from numba import types
from numba.extending import typeof_impl


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
        sources: tuple[Any, ...] = (),
    ) -> None:
        functools.update_wrapper(self, py_func)
        self.py_func: Any = py_func
        self.signature = signature
        self.parallel = parallel
        self.sources = sources
        self.warm = False

    @functools.cached_property
    def dispatcher(self) -> Any:
        """Numba's side of it."""
        made = numba.njit(nogil=True, error_model="numpy", parallel=self.parallel)(self.py_func)
        if self.signature is not None:
            # A call before `compile_once` would compile for the types of its arguments, int64 for
            # a Python int, and every later call would run that form rather than the declared one.
            allow_compiling(made, False)
        return made

    def __call__(self, *args: Any) -> Any:
        return self.dispatcher(*args)


@typeof_impl.register(Jitted)  # type: ignore[untyped-decorator]  # numba ships no type hints
def _type_in_compiled_code(jitted: Jitted, _: Any) -> Any:
    return types.Dispatcher(jitted.dispatcher)


def allow_compiling(dispatcher: Any, allowed: bool) -> None:
    """Do what `Dispatcher.disable_compile` does, which insists on a form that is compiled."""
    dispatcher._can_compile = allowed  # noqa: SLF001
