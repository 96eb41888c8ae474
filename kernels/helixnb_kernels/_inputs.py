"""Checks and conversions in front of compiled code, which would truncate or wrap in silence."""

from __future__ import annotations

import array
import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

UINT64_MAX = 2**64 - 1
# Spelt out, since numpy.typing takes half a millisecond to import.
Array = np.ndarray[Any, np.dtype[Any]]
UInt64Array = np.ndarray[Any, np.dtype[np.uint64]]

_RANGES = {
    "uint64": (0, UINT64_MAX, "0 .. 2**64-1"),
    "int64": (-(2**63), 2**63 - 1, "-2**63 .. 2**63-1"),
}


def as_uint64(value: Any, name: str) -> int:
    """Return `value` as an int in 0 .. 2**64-1; raises as `as_number`."""
    return int(as_number(value, np.dtype(np.uint64), name))


def as_number(value: Any, dtype: np.dtype[Any], name: str) -> int | float:
    """Return `value` as the Python number that a kernel takes for `dtype`.

    Raises
    ------
    TypeError
        It isn't an integer, or for float64 a real number (a bool is neither here).
    ValueError
        It is out of range.
    """
    if dtype.kind == "f":
        if type(value) is float:
            return value
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name} must be a real number, got {value!r}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isinf(number) and value not in (math.inf, -math.inf):
            raise ValueError(f"{name} must fit a float64, got {value}")
        return number
    if type(value) is not int:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        try:
            value = operator.index(value)
        except TypeError:
            raise TypeError(f"{name} must be an integer, got {value!r}") from None
    least, most, text = _RANGES[dtype.name]
    if not least <= value <= most:
        raise ValueError(f"{name} must lie in {text}, got {value}")
    return int(value)


def as_vector(values: Any, dtype: np.dtype[Any], name: str, length: int | None = None) -> Array:
    """Return `values` as a contiguous one-dimensional array of `dtype`.

    An array that is one already is returned as it is, others are copied once. Integer dtypes
    take integers only: floats and bools would lose their meaning without a word. float64 takes
    any real numbers; integers beyond 2**53 are rounded.

    Raises
    ------
    TypeError
        The values have a wrong type, or aren't a sequence or an array (a generator or a set isn't
        one), or the array is masked.
    ValueError
        There are several dimensions, a value is out of range, or there aren't `length` values.
    """
    if type(values) is np.ndarray and values.ndim == 1 and values.dtype == dtype:
        flags = values.flags
        plain = flags.c_contiguous and flags.aligned  # np.require would take 1 us to say so
        vector = values if plain else np.require(values, requirements=("C", "A"))
    elif isinstance(values, np.ndarray):
        vector = _from_array(values, dtype, name)
    else:
        vector = _from_sequence(values, dtype, name)
    if length is not None and len(vector) != length:
        raise ValueError(f"{name} must have {length} elements, got {len(vector)}")
    return vector


def _from_sequence(values: Any, dtype: np.dtype[Any], name: str) -> Array:
    what = "numbers" if dtype.kind == "f" else "integers"
    if type(values) is not list:  # which needn't be asked at length
        if isinstance(values, (str, bytes)) or not isinstance(values, (Sequence, array.array)):
            raise TypeError(f"{name} must be a sequence or array of {what}, got {values!r}")
        values = list(values)
    items = values
    plain = {int} if dtype.kind in "ui" else {int, float}
    if not set(map(type, items)) <= plain:
        items = [as_number(item, dtype, f"{name}[{i}]") for i, item in enumerate(items)]
    try:
        return np.array(items, dtype=dtype)
    except OverflowError:
        for i, item in enumerate(items):
            as_number(item, dtype, f"{name}[{i}]")
        raise


def _from_array(values: Array, dtype: np.dtype[Any], name: str) -> Array:
    if values.ndim != 1:
        raise ValueError(f"{name} must have one dimension, got shape {values.shape}")
    return np.require(as_array(values, dtype, name), requirements=["C", "A"])


def as_array(values: Any, dtype: np.dtype[Any], name: str) -> Array:
    """Return `values` as an array of `dtype` and any shape; raises as `as_vector`."""
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be masked: fill it, or compress it, first")
    given = np.asarray(values)
    kind = given.dtype.kind
    if given.size == 0 and not isinstance(values, np.ndarray):
        return given.astype(dtype)  # an empty list has no dtype of its own
    if kind not in ("uif" if dtype.kind == "f" else "ui") or given.dtype.itemsize > 8:
        what = "a real dtype of up to 64 bits" if dtype.kind == "f" else "an integer dtype"
        raise TypeError(f"{name} must have {what}, got {given.dtype}")
    if dtype.kind in "ui" and kind != dtype.kind:
        # int64 and uint64 share only half of their range, and a cast would wrap.
        wrong = given < 0 if kind == "i" else given > np.uint64(2**63 - 1)
        if wrong.any():
            first = tuple(int(each[0]) for each in np.nonzero(wrong))
            where = ", ".join(map(str, first))
            allowed = _RANGES[dtype.name][2]
            raise ValueError(f"{name}[{where}] must lie in {allowed}, got {given[first]}")
    return given.astype(dtype, copy=False)
