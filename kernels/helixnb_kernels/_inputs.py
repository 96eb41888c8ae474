"""Checks and conversions in front of compiled code, which would truncate or wrap in silence."""

from __future__ import annotations

import operator
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

UINT64_MAX = 2**64 - 1
UInt64Array = npt.NDArray[np.uint64]


def as_uint64(value: Any, name: str) -> int:
    """Return `value` as an int in 0 .. 2**64-1.

    Raises
    ------
    TypeError
        It isn't an integer (a bool isn't one here).
    ValueError
        It is out of range.
    """
    if type(value) is not int:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        try:
            value = operator.index(value)
        except TypeError:
            raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if not 0 <= value <= UINT64_MAX:
        raise ValueError(f"{name} must lie in 0 .. 2**64-1, got {value}")
    return int(value)


def as_uint64_vector(values: Any, name: str) -> UInt64Array:
    """Return `values` as a contiguous, writable, one-dimensional uint64 array.

    An array that is one already is returned as it is, others are copied once. Integers only:
    floats and bools would lose their meaning without a word.

    Raises
    ------
    TypeError
        The values aren't integers, or aren't a sequence or an array (a generator or a set isn't
        one), or the array is masked.
    ValueError
        There are several dimensions, or a value lies outside 0 .. 2**64-1.
    """
    if isinstance(values, np.ndarray):
        return _from_array(values, name)
    if isinstance(values, (str, bytes)) or not isinstance(values, (Sequence, array)):
        raise TypeError(f"{name} must be a sequence or array of integers, got {values!r}")
    items = list(values)
    if not set(map(type, items)) <= {int}:
        items = [as_uint64(item, f"{name}[{i}]") for i, item in enumerate(items)]
    try:
        return np.array(items, dtype=np.uint64)
    except OverflowError:
        for i, item in enumerate(items):
            as_uint64(item, f"{name}[{i}]")
        raise


def _from_array(values: npt.NDArray[Any], name: str) -> UInt64Array:
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be masked: fill it, or compress it, first")
    if values.dtype.kind not in "ui":
        raise TypeError(f"{name} must have an integer dtype, got {values.dtype}")
    if values.ndim != 1:
        raise ValueError(f"{name} must have one dimension, got shape {values.shape}")
    if values.dtype.kind == "i" and values.size and values.min() < 0:
        i = int(np.flatnonzero(values < 0)[0])
        raise ValueError(f"{name}[{i}] must lie in 0 .. 2**64-1, got {values[i]}")
    return np.require(values, dtype=np.uint64, requirements=["C", "A", "W"])
