"""What compiled code reads from outside itself, as it was when Numba compiled it in."""

from __future__ import annotations

import contextlib
import sys
import time
import types
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numba.stencils.stencil import StencilFunc
from numba.typed import Dict as TypedDict
from numba.typed import List as TypedList

from helixnb_kernels._fingerprint import UNBOUND, Digest, bound, is_trusted
from helixnb_kernels._values import shown

LOOK_NS = 100_000_000
"""The least time between two looks at a part of what may have been written to."""

PART = 1 << 16
"""Bytes that such a look reads: some 50 us."""

_BEHIND = ("py_func", "__wrapped__", "_dispatcher", "func", "__func__")
"""Where the function is that somebody's object calls: of Numba's ufuncs, of partials and so on."""


_COLLECTIONS = (list, dict, set, bytearray, TypedList, TypedDict)


class _Read:
    """One name that compiled code reads, and the value that it had.

    Attributes
    ----------
    label
        The name as messages have it, such as ``settings.FACTOR``.
    space, name
        Where it is bound: a module's namespace and a name there, or the cell of a closure.
    refused
        The latest value that was another one.
    """

    __slots__ = ("label", "name", "refused", "space", "value")

    def __init__(self, label: str, space: Any, name: str) -> None:
        self.label = label
        self.space = space
        self.name = name
        self.value = self.refused = bound(space, name)

    def takes(self, value: Any) -> bool:
        """Tell whether a value is as good as the one before, which it replaces then."""
        if value is self.refused:
            return False
        digest = _Walk().of(value)
        if digest is None or digest != _Walk().of(self.value):
            self.refused = value
            return False
        self.value = self.refused = value
        return True


class _Walk(Digest):
    """A digest that notes on its way what is read, and goes on where something has none.

    Attributes
    ----------
    reads
        The names that code reads, but for what belongs to Python, NumPy and Numba.
    arrays
        What can be written in place, by the name that leads there.
    collections
        What Numba can't compile in, likewise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[_Read] = []
        self.arrays: list[tuple[str, Any]] = []
        self.collections: list[tuple[str, Any]] = []
        self._label = ""
        self._is_known = True

    def of(self, *sources: Any) -> str | None:
        digest = super().of(*sources)
        return digest if self._is_known else None

    def add(self, value: Any) -> None:
        if isinstance(value, np.void) or (
            isinstance(value, np.ndarray) and value.flags.writeable and not value.dtype.hasobject
        ):
            self.arrays.append((self._label, value))
        try:
            super().add(value)
        except Exception:  # an object of the user's, whose own code may raise anything
            self._is_known = False
            with contextlib.suppress(Exception):
                self._add_behind(value)

    def _add_behind(self, value: Any) -> None:
        """Go on behind something that has no digest."""
        if isinstance(value, types.FunctionType):
            self._add_code_of(value)
        elif isinstance(value, types.ModuleType):
            self._modules.append(value)
        elif isinstance(value, tuple):
            self._add_all("", value)
        elif isinstance(value, StencilFunc):
            self.add(value.kernel_ir.func_id.func)
        elif not isinstance(value, type):
            for behind in (getattr(value, name, None) for name in _BEHIND):
                if behind is not None:
                    self.add(behind)

    def _add_function(self, function: types.FunctionType) -> None:
        try:
            super()._add_function(function)
        except Exception:
            self._is_known = False
            self._add_code_of(function)

    def _add_bound(self, label: str, space: Any, name: str) -> None:
        read = _Read(label, space, name)
        if not is_trusted(read.value) and not _is_of_trusted(space):
            self.reads.append(read)
        self._note_collections(label, read.value)
        outer, self._label = self._label, label
        super()._add_bound(label, space, name)
        self._label = outer

    def _note_collections(self, label: str, value: Any) -> None:
        if type(value) is tuple:
            for member in value:
                self._note_collections(label, member)
        elif isinstance(value, _COLLECTIONS) or (
            isinstance(value, np.ndarray) and value.dtype.hasobject
        ):
            self.collections.append((label, value))

    def _flags_of(self, array: Any) -> bytes:  # noqa: ARG002  # they may change, as a warning says
        return b""

    def _add_code_of(self, function: types.FunctionType) -> None:
        if str(function.__module__).partition(".")[0] != __package__:  # which nobody changes
            super()._add_code_of(function)


def _is_of_trusted(space: Any) -> bool:
    """Tell whether a namespace is that of a module of Python, NumPy or Numba."""
    return isinstance(space, dict) and is_trusted(sys.modules.get(str(space.get("__name__"))))


class Reads:
    """All that some functions read: numbers, arrays, functions, by name.

    A name that is bound to an equal value, such as by a module that is loaded again, hasn't
    changed.

    Parameters
    ----------
    functions
        The functions, and values that count for the digest.

    Attributes
    ----------
    digest
        Of all that, None where something has none.
    collections
        What Numba can't compile in, by the name that leads there.
    """

    def __init__(self, *functions: Any) -> None:
        walk = _Walk()
        self.digest = walk.of(*functions)
        self.collections = walk.collections
        self._reads = walk.reads
        self._looked_ns = time.monotonic_ns()
        self._note(walk.arrays)

    def _note(self, arrays: list[tuple[str, Any]]) -> None:
        self._arrays = {id(array): (label, array) for label, array in arrays}
        self._parts = [
            (label, part, _checksum(part))
            for label, array in self._arrays.values()
            for part in _parts(array)
        ]
        self._next = 0

    def __len__(self) -> int:
        return len(self._reads)

    @property
    def writeable(self) -> list[str]:
        """Names of arrays that can be written to."""
        return sorted({label for label, _ in self._arrays.values()})

    def change(self, *, whole: bool = False) -> str | None:
        """Say what has changed, None for nothing that was seen.

        Names are looked at each time, which takes 0.1 us each; arrays part by part, a part each
        `LOOK_NS`, or all of them.
        """
        for read in self._reads:
            value = bound(read.space, read.name)
            if value is not read.value:
                before = read.value
                if not read.takes(value):
                    return _described(read, value)
                self._take_over(before, read)
        if self._parts:
            if whole:
                return next(filter(None, map(_written, list(self._parts))), None)
            now_ns = time.monotonic_ns()
            if now_ns - self._looked_ns >= LOOK_NS:
                at = self._next % len(self._parts)
                written = _written(self._parts[at])
                if written is not None:  # it is looked at again the next time
                    return written
                self._next, self._looked_ns = at + 1, now_ns
        return None

    def _take_over(self, before: Any, read: _Read) -> None:
        """Look at the arrays of the value that a name has now, and no longer at those before."""
        old, new = _Walk(), _Walk()
        old.of(before)
        new.of(read.value)
        if old.arrays or new.arrays:
            gone = {id(array) for _, array in old.arrays}
            kept = [each for each in self._arrays.values() if id(each[1]) not in gone]
            self._note([*kept, *((read.label, array) for _, array in new.arrays)])


def _described(read: _Read, value: Any) -> str:
    if value is UNBOUND:
        return f"global {read.label!r} is gone"
    if all(isinstance(each, (int, float, complex, str, np.number)) for each in (read.value, value)):
        return f"global {read.label!r} was {shown(read.value)} and is {shown(value)}"
    return f"global {read.label!r} has changed"


def _parts(array: Any) -> Iterator[Any]:
    """Yield an array in parts of about `PART` bytes, or in rows if it doesn't lie in one piece."""
    if not array.ndim or array.flags.forc:
        array = array.reshape(-1, order="A") if isinstance(array, np.ndarray) else array
    if not array.ndim:  # a record of its own
        yield array
        return
    step = max(1, PART * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), step):
        yield array[start : start + step]


def _checksum(array: Any) -> int:
    flat: Any = np.ascontiguousarray(array).view(np.uint8)
    return zlib.crc32(flat)


def _written(part: tuple[str, Any, int]) -> str | None:
    label, array, checksum = part
    return f"global array {label!r} was written to" if _checksum(array) != checksum else None
