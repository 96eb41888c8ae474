"""Other people's functions that launch Numba's threads: recognised, and run one at a time."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from numba.core.dispatcher import Dispatcher

from helixnb_kernels import _threads

DEEPEST = 32
"""How many wrappers are looked behind: a proxy may have another one behind it for ever."""


class _Turn:
    """One call of such a function; `over` when it has returned."""

    __slots__ = ("over",)

    def __init__(self) -> None:
        self.over = False


_turn: ContextVar[_Turn | None] = ContextVar("helixnb_turn_to_launch", default=None)


def must_take_turns(function: Callable[..., Any], args: tuple[Any, ...] = ()) -> bool:
    """Tell whether a call launches Numba's threads where it must be alone to do so.

    Not under ``tbb`` and ``omp``, which survive several launches at once; nor for a call that one
    in `launch_turn` makes, and probably waits for. Takes 0.2 us under ``tbb`` and ``omp``,
    some 5 to 50 us elsewhere.

    See Also
    --------
    launches : What is recognised.
    """
    if _threads.launches_are_safe():
        return False
    turn = _turn.get()
    return (turn is None or turn.over) and launches(function, args)


@contextlib.contextmanager
def launch_turn() -> Iterator[None]:
    """Wait until nothing else here launches Numba's threads, and let nothing until the end.

    For worker threads: it may take as long as a call of somebody else's.
    """
    turn = _Turn()
    with _threads.region():
        token = _turn.set(turn)
        try:
            yield
        finally:
            turn.over = True
            _turn.reset(token)


def launches(function: Callable[..., Any], args: tuple[Any, ...] = ()) -> bool:
    """Tell whether a call launches Numba's threads, by looking and not by calling.

    It does if the function, or an argument, is one of ``njit(parallel=True)``; is behind
    `functools.partial`, a method, ``__call__`` or ``__wrapped__``; or if its code names one among
    its globals, the attributes of modules there, or its closure, as a ``lambda`` does. What a
    compiled function names is looked at, too, since it is compiled in. What lies deeper can't be
    seen, nor can ``vectorize(target="parallel")``, whose ufuncs look like NumPy's own. Parallel
    forms of this package don't count: they launch in `parallel_region` alone.
    """
    known: set[int] = set()
    # What to look at, and whether at what its code names, too.
    todo: list[tuple[Any, bool]] = [(each, True) for each in (function, *args) if callable(each)]
    while todo:
        each, follow = todo.pop()
        for layer in _layers(each):
            if isinstance(layer, Dispatcher) and layer.targetoptions.get("parallel"):
                return True
            follow = follow or isinstance(layer, Dispatcher)
            if isinstance(layer, functools.partial):
                given = (*layer.args, *layer.keywords.values())
                todo += [(value, follow) for value in given if callable(value)]
            if follow and isinstance(layer, FunctionType) and id(layer) not in known:
                known.add(id(layer))
                todo += [(value, False) for value in _named(layer)]
    return False


def _layers(function: Any) -> Iterator[Any]:
    """Yield a callable, and what is behind it."""
    each = function
    for _ in range(DEEPEST):
        yield each
        try:
            each = _behind(each)
        except Exception:  # an object's own code
            return
        if each is None:
            return


def _behind(function: Any) -> Any:
    """Return what a callable calls as far as it is known, None for nothing else."""
    if isinstance(function, functools.partial):
        return function.func
    if isinstance(function, MethodType):
        return function.__func__
    wrapped = getattr(function, "__wrapped__", None)
    if wrapped is not None or isinstance(function, (FunctionType, type)):
        return wrapped
    called = type(function).__call__
    return called if isinstance(called, (FunctionType, Dispatcher)) else None  # else not Python's


def _named(function: FunctionType) -> Iterator[Any]:
    """Yield what the code of a function names, as far as it is callable."""
    names = _names(function.__code__)
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, ModuleType):
            inside = vars(value)
            yield from (inside[each] for each in names if callable(inside.get(each)))
        elif callable(value):
            yield value
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # nothing is in it yet
            if callable(cell.cell_contents):
                yield cell.cell_contents


@functools.lru_cache(maxsize=1_024)
def _names(code: CodeType) -> frozenset[str]:
    names = set(code.co_names)
    for constant in code.co_consts:  # such as lambdas and, before Python 3.12, comprehensions
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return frozenset(names)
