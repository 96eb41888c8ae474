"""How every kernel is compiled: the one place for ``njit`` options, and for compiling once."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numba
import numpy as np
from numba import types
from numba.core import config, sigutils
from numba.core.dispatcher import Dispatcher

from helixnb_kernels import _cache
from helixnb_kernels._errors import KernelError

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class _Form:
    """How a function is compiled.

    Attributes
    ----------
    arguments, returns
        Numba types.
    parallel
        Whether ``prange`` loops use several threads.
    sources
        What its machine code comes from; empty for a function of this package, whose sources are
        in every key of the disk cache.
    """

    arguments: tuple[Any, ...]
    returns: Any
    parallel: bool
    sources: tuple[Any, ...]


_forms: weakref.WeakKeyDictionary[Callable[..., Any], _Form] = weakref.WeakKeyDictionary()
_warm: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()
_warm_lock = threading.Lock()


def _after_fork_in_child() -> None:
    global _warm_lock
    _warm_lock = threading.Lock()  # the thread that may have held the old one isn't here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def jit(
    signature: Any, *, parallel: bool = False, sources: tuple[Any, ...] = ()
) -> Callable[[F], F]:
    """Mark a function for compilation with one explicit signature.

    Nothing is compiled here: `compile_once` does that, so an import stays cheap and the process
    may still fork. A call before that is a ``TypeError``. The GIL is released while the function
    runs. Division follows NumPy's error model, so a kernel checks for zero itself.

    Parameters
    ----------
    signature
        A Numba signature, or the text of one, such as ``"uint64(uint64[::1], uint64)"``.
    parallel
        Compile ``prange`` loops for several threads. Call such a form in
        `helixnb_kernels._threads.parallel_region` only.
    sources
        For a function from outside this package: functions and texts that its machine code comes
        from, itself included. They are digested when it is compiled, as Numba reads them then.
    """

    def decorate(function: F) -> F:
        arguments, returns = sigutils.normalize_signature(signature)
        jitted: F
        if config.DISABLE_JIT:
            jitted = _interpreted(function, arguments)
        else:
            jitted = numba.njit(nogil=True, error_model="numpy", parallel=parallel)(function)
            # A call before `compile_once` would compile for the types of its arguments, int64 for
            # a Python int, and every later call would run that form rather than the declared one.
            _allow_compiling(jitted, False)
        _forms[jitted] = _Form(tuple(arguments), returns, parallel, sources)
        return jitted

    return decorate


def helper(function: F) -> F:
    """Let jitted functions call `function`; it is compiled, and cached, with each of them."""
    if config.DISABLE_JIT:
        return function
    return numba.njit(nogil=True, error_model="numpy")(function)  # type: ignore[no-any-return]


def _interpreted(function: F, arguments: tuple[Any, ...]) -> F:
    """Run `function` as plain Python (``NUMBA_DISABLE_JIT=1``), on numbers of the same types.

    uint64 wraps without a warning, and numbers come back as Python's, as they do from Numba.
    """
    casts = [
        getattr(np, str(each)) if isinstance(each, types.Number) else None for each in arguments
    ]

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        typed = [arg if cast is None else cast(arg) for arg, cast in zip(args, casts, strict=True)]
        with np.errstate(over="ignore"):
            value = function(*typed)
        return value.item() if isinstance(value, np.generic) else value

    return run  # type: ignore[return-value]  # wraps keeps the signature


def _allow_compiling(dispatcher: Any, allowed: bool) -> None:
    """Do what `Dispatcher.disable_compile` does, which insists on a form that is compiled."""
    dispatcher._can_compile = allowed  # noqa: SLF001


def compile_once(function: Callable[..., Any]) -> None:
    """Compile `function`, or read it from the disk cache; one that is warm costs nothing.

    Afterwards it never compiles again: a call with other types is a ``TypeError``. A callable
    that isn't a result of `jit` is left as it is. Thread-safe. Compiling a parallel form
    initialises Numba's threading layer.

    Raises
    ------
    KernelError
        Numba can't compile it, or it returns another type than its signature says.
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
    form = _forms[function]
    if not config.DISABLE_JIT:
        for name in function.py_func.__code__.co_names:
            callee = function.py_func.__globals__.get(name)
            if isinstance(callee, Dispatcher) and callee in _forms:
                _compile(callee)
        _cache.attach(function, parallel=form.parallel, sources=form.sources)
        where = place(function.py_func)
        _allow_compiling(function, True)
        try:
            # Without the result type, which would turn a float into an integer in silence.
            function.compile(form.arguments)
        except Exception as error:  # not all of what Numba raises is a NumbaError
            raise KernelError(f"Numba can't compile {where}: {error}") from error
        finally:
            _allow_compiling(function, False)
        returns = types.unliteral(function.overloads[form.arguments].signature.return_type)
        if returns != form.returns:
            raise KernelError(f"{where} must return {form.returns}, but returns {returns}")
    _warm.add(function)


def place(function: Any) -> str:
    """Name a function, with its file and line."""
    code = function.__code__
    return f"{function.__qualname__} ({code.co_filename}:{code.co_firstlineno})"
