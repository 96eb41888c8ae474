"""How every kernel is compiled: the one place for ``njit`` options, and for compiling once."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import numpy as np
from numba import types
from numba.core import config, sigutils

from helixnb_kernels import _cache
from helixnb_kernels._errors import KernelError
from helixnb_kernels._fork import after_fork_in_child
from helixnb_kernels._jitted import Jitted, allow_compiling

F = TypeVar("F", bound=Callable[..., Any])


_warm_lock = threading.Lock()


@after_fork_in_child
def _renew_lock() -> None:
    global _warm_lock
    _warm_lock = threading.Lock()  # the thread that may have held the old one isn't here


def jit(
    signature: Any,
    *,
    parallel: bool = False,
    boundscheck: bool | None = None,
    sources: tuple[Any, ...] = (),
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
    boundscheck
        Check indices; by default as Numba is set to.
    sources
        For a function from outside this package: functions and texts that its machine code comes
        from, itself included. They are digested when it is compiled, as Numba reads them then.
    """

    def decorate(function: F) -> F:
        if config.DISABLE_JIT:
            arguments, _ = sigutils.normalize_signature(signature)
            return _interpreted(function, arguments)
        made = Jitted(
            function, signature, parallel=parallel, boundscheck=boundscheck, sources=sources
        )
        return cast("F", made)

    return decorate


def helper(function: F) -> F:
    """Let jitted functions call `function`; it is compiled, and cached, with each of them."""
    return function if config.DISABLE_JIT else cast("F", Jitted(function))


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


def compile_once(function: F) -> F:
    """Compile `function`, or read it from the disk cache; one that is warm costs nothing.

    Returns what to call: Numba's dispatcher, since `Jitted` in front of it takes 0.15 us a call.
    Afterwards it never compiles again: a call with other types is a ``TypeError``. A callable
    that isn't a result of `jit` is left as it is. Thread-safe. Compiling a parallel form
    initialises Numba's threading layer.

    Raises
    ------
    KernelError
        Numba can't compile it, or it returns another type than its signature says.
    """
    if isinstance(function, Jitted) and not function.warm:
        with _warm_lock, _without_debug_log():
            _compile(function)
    return compiled(function)


@contextlib.contextmanager
def _without_debug_log() -> Iterator[None]:
    """Keep Numba from logging each step of its compiler: some 2,000 lines for a kernel.

    Where the application has set a level for Numba, or for a part of it, that is what counts.
    """
    log = logging.getLogger("numba")
    if log.level != logging.NOTSET:
        yield
        return
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        if log.level == logging.INFO:
            log.setLevel(logging.NOTSET)


def compiled(function: F) -> F:
    """Return Numba's dispatcher where `function` is warm, else `function` itself."""
    if isinstance(function, Jitted) and function.warm:
        return cast("F", function.dispatcher)
    return function


def is_warm(function: Callable[..., Any]) -> bool:
    """Tell whether a call would run at once, rather than compile first."""
    return not isinstance(function, Jitted) or function.warm


def _compile(function: Jitted) -> None:
    if function.warm:  # another thread was first
        return
    for name in function.py_func.__code__.co_names:
        callee = function.py_func.__globals__.get(name)
        if isinstance(callee, Jitted) and callee.signature is not None:
            _compile(callee)
    dispatcher = function.dispatcher
    _cache.attach(dispatcher, sources=function.sources)
    where = place(function.py_func)
    arguments, declared = sigutils.normalize_signature(function.signature)
    allow_compiling(dispatcher, True)
    try:
        # Without the result type, which would turn a float into an integer in silence.
        dispatcher.compile(tuple(arguments))
    except Exception as error:  # not all of what Numba raises is a NumbaError
        function.forget_dispatcher()  # another try is made of what there is then
        raise KernelError(f"Numba can't compile {where}: {error}") from error
    finally:
        allow_compiling(dispatcher, False)
    returns = types.unliteral(dispatcher.overloads[tuple(arguments)].signature.return_type)
    if returns != declared:
        raise KernelError(f"{where} must return {declared}, but returns {returns}")
    function.warm = True


def place(function: Any) -> str:
    """Name a function, with its file and line."""
    code = function.__code__
    return f"{function.__qualname__} ({code.co_filename}:{code.co_firstlineno})"
