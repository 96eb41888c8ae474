"""How every kernel is compiled: the one place for ``njit`` options, and warm-up."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numba.core import config

from helixnb_kernels import _cache

F = TypeVar("F", bound=Callable[..., Any])

# What `compile_once` does: the signature of each jitted function, and whether it is parallel.
_forms: weakref.WeakKeyDictionary[Callable[..., Any], tuple[str, bool]] = (
    weakref.WeakKeyDictionary()
)
_warm: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()
_warm_lock = threading.Lock()


def _after_fork_in_child() -> None:
    global _warm_lock
    _warm_lock = threading.Lock()  # the thread that may have held the old one isn't here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def jit(signature: str, *, parallel: bool = False) -> Callable[[F], F]:
    """Mark a function for compilation with one explicit signature.

    Nothing is compiled here: `compile_once` does that, so an import stays cheap and the process may
    still fork. The GIL is released while the function runs. Division follows NumPy's error
    model, so a kernel checks for zero itself.

    Parameters
    ----------
    signature
        A Numba signature string, such as ``"uint64(uint64[::1], uint64)"``.
    parallel
        Compile ``prange`` loops for several threads. Call such a form in
        `helixnb_kernels._threads.launch` only.
    """

    def decorate(function: F) -> F:
        jitted: F
        if config.DISABLE_JIT:
            jitted = _interpreted(function)
        else:
            jitted = numba.njit(nogil=True, error_model="numpy", parallel=parallel)(function)
        _forms[jitted] = (signature, parallel)
        return jitted

    return decorate


def _interpreted(function: F) -> F:
    """Run `function` as plain Python (``NUMBA_DISABLE_JIT=1``): uint64 wraps without a warning."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        with np.errstate(over="ignore"):
            return function(*args)

    return run  # type: ignore[return-value]  # wraps keeps the signature


def compile_once(function: Callable[..., Any]) -> None:
    """Compile `function`, or read it from the disk cache; one that is warm costs nothing.

    Afterwards it never compiles again: a call with other types is a ``TypeError``. A callable
    that isn't a result of `jit` is left as it is. Thread-safe. Compiling a parallel form
    initialises Numba's threading layer.
    """
    if function not in _warm and function in _forms:
        with _warm_lock:
            _compile(function)


def is_warm(function: Callable[..., Any]) -> bool:
    """Tell whether a call would run at once, rather than compile first."""
    return function in _warm or function not in _forms


def _compile(function: Any) -> None:
    if function in _warm:  # another thread was first
        return
    signature, parallel = _forms[function]
    if not config.DISABLE_JIT:
        _cache.attach(function, parallel=parallel)
        function.compile(signature)
        function.disable_compile()
    _warm.add(function)
