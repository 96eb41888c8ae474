"""What the machine code of a user's function depends on, digested; or a refusal to guess.

Numba compiles in the values of globals and closures and the code of callees, and its own cache
knows none of them. A digest that missed one would hand out old code for new, and so wrong numbers;
so what isn't known to be covered here has no digest, and its function compiles in every process.
"""

from __future__ import annotations

import builtins
import dis
import hashlib
import types
from typing import Any

import numpy as np
from numba.core.dispatcher import Dispatcher
from numba.core.types import Type

from helixnb_kernels._jitted import Jitted

_TRUSTED = frozenset({"builtins", "cmath", "math", "numba", "numpy", "operator"})
_PLAIN = (type(None), type(...), bool, int, float, complex, str, bytes, np.generic, np.dtype, Type)


class _UnknownError(Exception):
    """Something that machine code may depend on in ways that aren't known here."""


def fingerprint(*sources: Any) -> str | None:
    """Digest functions and texts, with all that they depend on; None if that isn't known."""
    digest = _Digest()
    try:
        for source in sources:
            digest.add(source)
    except Exception:  # an object of the user's, whose own code may raise anything
        return None
    return digest.hash.hexdigest()[:24]


class _Digest:
    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no identity is used twice

    def write(self, kind: str, *texts: object) -> None:
        """Write with lengths, so that no two sequences of writes look alike."""
        for text in (kind, *texts):
            content = text if isinstance(text, bytes) else repr(text).encode()
            self.hash.update(b"%d:" % len(content) + content)

    def add(self, value: Any) -> None:
        if isinstance(value, Jitted):
            value = value.dispatcher
        if isinstance(value, _PLAIN):
            self.write("plain", type(value).__name__, value)
            return
        if id(value) in self._seen:
            self.write("again", self._seen[id(value)])
            return
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)
        if isinstance(value, types.FunctionType):
            self._add_function(value)
        elif isinstance(value, Dispatcher):
            self.write("jitted", sorted(value.targetoptions.items()))
            self._add_function(value.py_func)
        elif type(value) is np.ndarray and not value.dtype.hasobject:
            self.write("array", value.dtype.descr, value.shape, value.tobytes())
        elif type(value) in (tuple, frozenset):
            members = sorted(value, key=repr) if type(value) is frozenset else value
            self.write(type(value).__name__, len(value))
            for member in members:
                self.add(member)
        elif isinstance(value, types.CodeType):
            self._add_code(value)
        elif _is_trusted(value):
            self.write("trusted", type(value).__name__, getattr(value, "__name__", ""))
        else:
            raise _UnknownError(value)

    def _add_function(self, function: types.FunctionType) -> None:
        self.write("function", function.__name__)
        self.add(function.__defaults__)
        self.add(tuple(sorted((function.__kwdefaults__ or {}).items())))
        for cell in function.__closure__ or ():
            self.add(cell.cell_contents)
        self._add_code(function.__code__)
        for name in sorted(_globals_of(function.__code__)):
            if name in function.__globals__:
                self.write("global", name)
                value = function.__globals__[name]
                if isinstance(value, types.FunctionType):
                    # Compiled code calls no plain function, unless it is overloaded somewhere.
                    raise _UnknownError(value)
                self.add(value)
            elif not hasattr(builtins, name):
                raise _UnknownError(name)

    def _add_code(self, code: types.CodeType) -> None:
        self.write("code", code.co_code, code.co_names, code.co_varnames, code.co_freevars)
        self.write("constants", len(code.co_consts))
        for constant in code.co_consts:
            self.add(constant)


def _globals_of(code: types.CodeType) -> set[str]:
    names = {each.argval for each in dis.get_instructions(code) if each.opname == "LOAD_GLOBAL"}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _globals_of(constant)
    return names


def _is_trusted(value: Any) -> bool:
    """Tell a module, class or function that changes only with its package's version."""
    if isinstance(value, types.ModuleType):
        return value.__name__.partition(".")[0] in _TRUSTED
    if type(value) is np.ufunc:
        return True
    if isinstance(value, (type, types.BuiltinFunctionType)):
        return str(value.__module__).partition(".")[0] in _TRUSTED
    return False
