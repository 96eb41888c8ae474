"""What others have registered with Numba, by which any function may compile in another way.

``@overload(len)`` or ``@overload_method(types.Array, "rank")`` change what compiled code means
that names neither, and so does a rewrite. Numba runs such code while it compiles, so that what it
depends on can't be told. What is registered for an extension's own functions and types reaches
only code that names those, which has no `fingerprint`.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from numba import types as nb
from numba.core import entrypoints, pythonapi
from numba.core.datamodel import default_manager
from numba.core.registry import cpu_target
from numba.core.rewrites import rewrite_registry
from numba.core.typing.typeof import typeof_impl

# Numba makes most templates by a call of their metaclass, and so in the module abc.
_OURS = frozenset({"abc", "builtins", "helixnb_kernels", "llvmlite", "numba"})
# Functions and types of these may be reached by any compiled code, through Numba's own.
_COMMON = _OURS | {"numpy"} | sys.stdlib_module_names - {"__main__"}

_known: tuple[object, list[str]] = (None, [])


def extensions() -> list[str]:
    """Name the modules outside Numba that have registered what may reach any function."""
    global _known
    entrypoints.init_all()
    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()
    state = _state()
    if state != _known[0]:
        found = {
            module
            for key, implementation in _entries()
            if (module := _foreign_module(implementation)) and not _is_apart(key)
        }
        _known = (state, sorted(found))
    return _known[1]


def _state() -> tuple[object, ...]:
    """Return what is another whenever something is registered: a look through all takes 3 ms."""
    lists = [
        *(each.functions for each in (*_typing(), *_lowering())),
        *(each.attributes for each in _typing()),
        *(each.globals for each in _typing()),
        *(getattr(each, name) for each in _lowering() for name in ("getattrs", "setattrs")),
        *(getattr(each, name) for each in _lowering() for name in ("casts", "constants")),
        *rewrite_registry.rewrites.values(),
    ]
    return (*map(len, lists), *(id(value) for table in _by_type() for value in table.values()))


def _typing() -> Iterable[Any]:
    registries: Iterable[Any] = cpu_target.typing_context._registries  # noqa: SLF001
    return registries


def _lowering() -> Iterable[Any]:
    registries: Iterable[Any] = cpu_target.target_context._registries  # noqa: SLF001
    return registries


def _by_type() -> Iterable[Mapping[Any, Any]]:
    """Return what types values, lays them out, and takes them into compiled code and back."""
    boxing = (pythonapi._boxers, pythonapi._unboxers, pythonapi._reflectors)  # noqa: SLF001
    return (
        typeof_impl.registry,
        default_manager._handlers,  # noqa: SLF001
        *(each.functions for each in boxing),
    )


def _entries() -> Iterator[tuple[Any, Any]]:
    """Yield all that Numba types, lowers, boxes and rewrites by, as keys and implementations."""
    for registry in _typing():
        for template in (*registry.functions, *registry.attributes):
            yield template.key, template
        for key, known in registry.globals:
            for template in getattr(known, "templates", ()):
                yield key, template
    for registry in _lowering():
        for implementation, function, signature in registry.functions:
            yield (function, *signature), implementation
        for implementation, _, signature in (*registry.getattrs, *registry.setattrs):
            yield signature, implementation
        for implementation, signature in (*registry.casts, *registry.constants):
            yield signature, implementation
    for table in _by_type():
        yield from table.items()
    for rewrites in rewrite_registry.rewrites.values():
        for rewrite in rewrites:
            yield "rewrite", rewrite


def _foreign_module(implementation: Any) -> str | None:
    """Return a module outside Numba that a template class or a function comes from."""
    if not isinstance(implementation, type):
        return _module_of(implementation)
    if not _is_ours(implementation.__module__):
        return implementation.__module__
    # What `overload` and its kin, `intrinsic` and `type_callable` make their templates of.
    content = vars(implementation)
    for name in ("_overload_func", "_definition_func", "generic"):
        if name in content and (module := _module_of(content[name])):
            return module
    return _module_of_bases(implementation.__bases__)


@functools.lru_cache(maxsize=1024)
def _module_of_bases(bases: tuple[type, ...]) -> str | None:
    found = (_foreign_module(base) for base in bases)
    return next((module for module in found if module), None)


def _module_of(value: Any, *, wrapped: bool = True) -> str | None:
    """Return the module of a function, or of one that it wraps, if it is outside Numba."""
    function = value.__func__ if type(value) is staticmethod else value
    if type(function) is not types.FunctionType:
        return None
    module = function.__globals__.get("__name__")
    if not _is_ours(module):
        return str(module)
    if wrapped and (closure := function.__closure__):
        for cell in closure:
            if inner := _module_of(_content(cell), wrapped=False):
                return inner
    return None


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None


@functools.lru_cache(maxsize=1024)
def _is_ours(module: object) -> bool:
    return str(module).partition(".")[0] in _OURS


def _is_apart(key: Any) -> bool:
    """Tell whether only code that names something of the extension's own gets at `key`."""
    if isinstance(key, tuple):
        return any(map(_is_apart, key))
    if isinstance(key, nb.Type):
        key = type(key)
    module = getattr(key, "__module__", None)
    return isinstance(module, str) and module.partition(".")[0] not in _COMMON
