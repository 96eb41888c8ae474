"""What the machine code of a user's function depends on, digested; or a refusal to guess.

Numba compiles in the values of globals and closures and the code of callees, and its own cache
knows none of them. A digest that missed one would hand out old code for new, and so wrong numbers;
so what isn't known to be covered here has no digest, and its function compiles in every process.

Values are digested by exact type and bits. No code of a value's own runs: its ``repr``, ``==`` and
``hash`` may say anything.
"""

from __future__ import annotations

import builtins
import cmath
import dis
import hashlib
import math
import operator
import random
import struct
import sys
import types
from collections.abc import Callable, Iterable
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types as nb
from numba.core.registry import CPUDispatcher

from helixnb_kernels._jitted import Jitted

# Packages whose code changes with their version only, which the cache's key has.
_TRUSTED = {
    each.__name__: each
    for each in (builtins, cmath, math, numba, np, operator, random, sys.modules["_operator"])
}
_TRUSTED_SOURCES = tuple(str(Path(each.__file__).parent) for each in (numba, np) if each.__file__)
_TRUSTED_KINDS = (type, types.BuiltinFunctionType, types.MethodType, np.ufunc, type(np.sum))

_BITS: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"",
    type(...): lambda _: b"",
    bool: lambda value: b"%d" % value,
    int: lambda value: b"%x" % value,
    float: lambda value: struct.pack("<d", value),
    complex: lambda value: struct.pack("<dd", value.real, value.imag),
    str: lambda value: value.encode("utf-8", "surrogatepass"),
    bytes: lambda value: value,
}
_NUMPY_SCALARS = frozenset(np.sctypeDict.values())
# Types of Numba that their names tell apart.
_NAMED_TYPES = (
    *(nb.Integer, nb.Float, nb.Complex, nb.Boolean, nb.NoneType, nb.UnicodeType),
    *(nb.NPDatetime, nb.NPTimedelta),
)
# Where a code object was written, which no result depends on.
_PLACES = {"co_filename", "co_firstlineno", "co_lnotab", "co_linetable", "co_qualname"}
_CODE_FIELDS = tuple(
    name for name in dir(types.CodeType) if name.startswith("co_") and name not in _PLACES
)
# By these a function has Numba, or `inspect.signature`, look at something else in its stead.
_DETOURS = frozenset({"__numba__", "__signature__", "__wrapped__"})


class _UnknownError(Exception):
    """Something that machine code may depend on in ways that aren't known here."""


def fingerprint(*sources: Any) -> str | None:
    """Digest functions and values, with all that they depend on; None if that isn't known.

    The same source gives the same digest in every process, wherever in its file it stands.
    """
    return Digest().of(*sources)


def is_trusted(value: Any) -> bool:
    """Tell a module, function or class that changes with the version of its package only."""
    if isinstance(value, types.ModuleType):
        top = value.__name__.partition(".")[0]
        return top in _TRUSTED and sys.modules.get(top) is _TRUSTED[top]
    try:
        _name_of(value)
    except Exception:  # what is no function or class, or isn't where its name says
        return False
    return True


class Digest:
    """A digest under way.

    Parameters
    ----------
    follow
        Whether jitted functions that are called count by what they depend on in turn; else each
        counts as the one object that it is in this process.

    Attributes
    ----------
    callees
        Dispatchers of Numba's that were met.
    """

    def __init__(self, *, follow: bool = True) -> None:
        self.callees: list[Any] = []
        self._follow = follow
        self._hash = hashlib.sha256()
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no identity is used twice
        self._modules: list[types.ModuleType] = []
        self._names: set[str] = set()

    def of(self, *sources: Any) -> str | None:
        """Digest functions and values; see `fingerprint`."""
        try:
            for source in sources:
                if isinstance(source, types.FunctionType):
                    self._add_function(source)
                else:
                    self.add(source)
            self._add_attributes()
        except Exception:  # an object of the user's, whose own code may raise anything
            return None
        return self._hash.hexdigest()[:24]

    def _write(self, kind: str, *parts: str | bytes | int) -> None:
        """Write with lengths, so that no two sequences of writes look alike."""
        for part in (kind, *parts):
            content = part if isinstance(part, bytes) else _BITS[type(part)](part)
            self._hash.update(b"%d:" % len(content) + content)

    def add(self, value: Any) -> None:
        """Add a value by its exact type and its bits."""
        kind = type(value)
        if kind in _BITS:
            self._write(kind.__name__, value)
        elif kind in _NUMPY_SCALARS:
            self._write("scalar", _plain_bytes(value))
            self.add(value.dtype)
        elif kind in (tuple, slice):
            members = value if kind is tuple else (value.start, value.stop, value.step)
            self._add_all(kind.__name__, members)
        elif kind in (frozenset, set):
            self._write(kind.__name__, *sorted(_digest_of(each) for each in value))
        elif kind is dict:
            items = sorted((_digest_of(key), value[key]) for key in value)
            self._add_all("dict", [part for item in items for part in item])
        elif kind is types.CodeType:
            code = _look_into(value)
            self._write("code", code.digest)
            self._names |= code.attributes
        elif isinstance(value, np.dtype):
            self._add_dtype(value)
        elif isinstance(value, nb.Type):
            self._add_type(value)
        elif self._is_new(value):
            self._add_object(value)

    def _is_new(self, value: Any) -> bool:
        """Tell whether `value` comes for the first time; else write which one it was."""
        if id(value) in self._seen:
            self._write("again", self._seen[id(value)])
            return False
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)
        return True

    def _add_all(self, kind: str, members: Iterable[Any]) -> None:
        members = tuple(members)
        self._write(kind, len(members))
        for member in members:
            self.add(member)

    def _add_object(self, value: Any) -> None:
        kind = type(value)
        if kind in (Jitted, CPUDispatcher) and not self._follow:
            self._write("callee", id(value))
        elif kind is Jitted:
            self._write("declared", str(value.signature), value.parallel, repr(value.boundscheck))
            self._add_function(value.py_func)
        elif kind is CPUDispatcher:
            self._add_dispatcher(value)
        elif kind is np.ndarray:
            self._write("array", _plain_bytes(value), self._flags_of(value))
            self._add_all("layout", (value.shape, value.strides))
            self.add(value.dtype)
        elif kind is types.ModuleType:
            self._write("module", value.__name__)
            self._add_module(value)
        else:
            self._write("trusted", kind.__name__, *_name_of(value))

    def _flags_of(self, array: Any) -> bytes:
        return bytes([array.flags.writeable, array.flags.aligned])

    def _add_module(self, module: types.ModuleType) -> None:
        top = module.__name__.partition(".")[0]
        if "__getattr__" in vars(module) and sys.modules[top] is not _TRUSTED.get(top):
            raise _UnknownError(module)
        self._modules.append(module)

    def _add_dispatcher(self, dispatcher: Any) -> None:
        options = {**dispatcher.targetoptions, "locals": dispatcher.locals}
        self._write("jitted", dispatcher._can_compile)  # noqa: SLF001
        self.add(options)
        self.add(dispatcher._compiler.pipeline_class)  # noqa: SLF001
        if not dispatcher._can_compile:  # noqa: SLF001  # its arguments are cast to these
            self._add_all("signatures", (each for one in dispatcher.overloads for each in one))
        self._add_function(dispatcher.py_func)
        self.callees.append(dispatcher)

    def _add_function(self, function: types.FunctionType) -> None:
        if _DETOURS & function.__dict__.keys():
            raise _UnknownError(function)
        self._write("function")
        self.add(function.__defaults__)
        self.add(function.__kwdefaults__)
        self._add_code_of(function)

    def _add_code_of(self, function: types.FunctionType) -> None:
        code = function.__code__
        self._write("closure", len(code.co_freevars))
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            self._add_bound(name, cell, name)
        self.add(code)
        for name in sorted(_look_into(code).globals):
            self._write("global", name)
            self._add_bound(name, function.__globals__, name)

    def _add_bound(self, label: str, space: Any, name: str) -> None:  # noqa: ARG002  # for others
        """Add what a name is bound to: in a cell, a module's namespace or, beyond that, Python's.

        What is bound later isn't known yet.
        """
        value = bound(space, name)
        self.add(vars(builtins).get(name, UNBOUND) if value is UNBOUND else value)

    def _add_attributes(self) -> None:
        """Add each attribute that the code seen may read from the modules seen.

        Which module an attribute is read from isn't followed, so each name counts for every one.
        """
        done: set[tuple[int, str]] = set()
        while True:
            pending = [
                (index, name)
                for index, module in enumerate(self._modules)
                for name in sorted(self._names & vars(module).keys())
                if (index, name) not in done
            ]
            if not pending:
                return
            for index, name in pending:
                module = self._modules[index]
                self._write("attribute", index, name)
                self._add_bound(f"{module.__name__}.{name}", vars(module), name)
            done.update(pending)

    def _add_dtype(self, dtype: np.dtype[Any]) -> None:
        if dtype.type not in _NUMPY_SCALARS or dtype.hasobject:
            raise _UnknownError(dtype)
        self._write("dtype", dtype.str, dtype.itemsize, dtype.alignment, dtype.isalignedstruct)
        self.add(dtype.subdtype)
        fields: Any = dtype.fields
        for name in dtype.names or ():
            self.add((name, *fields[name]))

    def _add_type(self, value: nb.Type) -> None:
        kind = type(value)
        self._write("type", kind.__name__)
        if kind in _NAMED_TYPES:
            self._write(value.name)
        elif kind is nb.Array:
            self._add_all("", (value.dtype, value.ndim, value.layout, value.mutable, value.aligned))
        elif kind is nb.UniTuple or kind is nb.Tuple:
            self._add_all("", value.types)
        else:
            raise _UnknownError(value)


UNBOUND = object()
"""Stands for the value of a name that has none."""


def bound(space: Any, name: str) -> Any:
    """Return what a name is bound to, in a namespace or a cell; `UNBOUND` for nothing."""
    if isinstance(space, dict):
        return space.get(name, UNBOUND)
    try:
        return space.cell_contents
    except ValueError:  # nothing is in it
        return UNBOUND


def _digest_of(value: Any) -> str:
    """Digest a member of a set by itself: the order of sets differs between processes."""
    digest = fingerprint(value)
    if digest is None:
        raise _UnknownError(value)
    return digest


def _plain_bytes(value: Any) -> bytes:
    if value.dtype.hasobject:
        raise _UnknownError(value)
    content: bytes = value.tobytes()
    return content


class _Code(NamedTuple):
    """What is in a code object, and in those nested in it."""

    code: types.CodeType
    digest: str
    globals: frozenset[str]
    attributes: frozenset[str]
    """Names that may be attributes; a constant text may be one, for `getattr`."""


# By identity, since equal code objects may differ in what isn't compared. A form takes 1 ms less.
_known_code: dict[int, _Code] = {}


def _look_into(code: types.CodeType) -> _Code:
    known = _known_code.get(id(code))
    if known is not None:
        return known
    fields = [(field, getattr(code, field)) for field in _CODE_FIELDS]
    # What is callable is a method, such as `co_lines`; constants are plain values, and code.
    digest = _digest_of(tuple(field for field in fields if not callable(field[1])))
    loaded = (each.argval for each in dis.get_instructions(code) if each.opname == "LOAD_GLOBAL")
    texts = (each for each in code.co_consts if type(each) is str)
    nested = [_look_into(each) for each in code.co_consts if isinstance(each, types.CodeType)]
    if len(_known_code) >= 1024:
        _known_code.clear()
    _known_code[id(code)] = found = _Code(
        code,
        digest,
        frozenset(loaded).union(*(each.globals for each in nested)),
        frozenset((*code.co_names, *texts)).union(*(each.attributes for each in nested)),
    )
    return found


def _name_of(value: Any) -> tuple[str, str]:
    """Return where a function or class of a trusted package stands, if it does stand there."""
    if isinstance(value, types.FunctionType):
        if not value.__code__.co_filename.startswith(_TRUSTED_SOURCES):
            raise _UnknownError(value)
    elif not isinstance(value, _TRUSTED_KINDS):
        raise _UnknownError(value)
    owner = getattr(value, "__self__", None)
    if owner is not None and not isinstance(owner, types.ModuleType):  # such as np.random.random
        module, name = _name_of(type(owner))
        function = getattr(value, "__func__", None)
        if function is not None and getattr(type(owner), value.__name__) is not function:
            raise _UnknownError(value)
        return module, f"{name}.{value.__name__}"
    name = value.__name__ if isinstance(value, np.ufunc) else value.__qualname__
    module = "numpy" if isinstance(value, np.ufunc) else value.__module__
    top = module.partition(".")[0]
    found = sys.modules[module]
    if (
        sys.modules[top] is not _TRUSTED[top]
        or reduce(getattr, name.split("."), found) is not value
    ):
        raise _UnknownError(value)
    return module, name
