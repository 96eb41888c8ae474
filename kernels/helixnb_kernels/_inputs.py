"""Checks and conversions in front of compiled code, which would truncate or wrap in silence."""

from __future__ import annotations

import array
import contextlib
import itertools
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from helixnb_kernels._values import as_integer, as_real, listed, name_of, said_by, shown

UINT64_MAX = 2**64 - 1
# Spelt out, since numpy.typing takes half a millisecond to import.
Array = np.ndarray[Any, np.dtype[Any]]
UInt64Array = np.ndarray[Any, np.dtype[np.uint64]]

FEW = 4_096
"""Elements of a list up to which it is converted in no time worth speaking of, about 0.1 ms."""

SOME = 16_384
"""Elements of a list that are converted at a time: 0.5 ms, while no other thread runs."""

QUICKER, SLOWER = 16, 10
"""How many times quicker an array is converted, and how many times slower a list of other numbers
than Python's."""

_RANGES = {
    "uint64": (0, UINT64_MAX, "0 .. 2**64-1"),
    "int64": (-(2**63), 2**63 - 1, "-2**63 .. 2**63-1"),
}
_UINT64, _INT64, _FLOAT64 = np.dtype(np.uint64), np.dtype(np.int64), np.dtype(np.float64)
_NESTED = 32  # as deep as NumPy's arrays were for long
# Arrow's names of what NumPy has too. Other types may hide nulls that they don't count.
_ARROW = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_ARROW |= {"halffloat", "float", "double", "float16", "float32", "float64"}


def as_uint64(value: Any, name: str) -> int:
    """Return `value` as an int in 0 .. 2**64-1; raises as `as_number`."""
    return int(as_number(value, _UINT64, name))


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
        try:
            real = as_real(value)
        except OverflowError:
            raise ValueError(f"{name} must fit a float64, got {shown(value)}") from None
        if real is None:
            raise TypeError(f"{name} must be a real number, got {shown(value)}")
        return real
    integer = as_integer(value)
    if integer is None:
        raise TypeError(f"{name} must be an integer, got {shown(value)}")
    least, most, text = _RANGES[dtype.name]
    if not least <= integer <= most:
        raise ValueError(f"{name} must lie in {text}, got {shown(integer)}")
    return integer


def as_vector(values: Any, dtype: np.dtype[Any], name: str, length: int | None = None) -> Array:
    """Return `values` as a contiguous one-dimensional array of `dtype`.

    An array that is one already is returned as it is, others are copied once; so is the memory
    of what NumPy can see as an array: objects with ``__array__`` or ``__array_interface__``,
    buffers, and Arrow arrays without nulls. Integer dtypes take integers only: floats and bools
    would lose their meaning without a word. float64 takes any real numbers; integers beyond 2**53
    are rounded.

    Raises
    ------
    TypeError
        The values have a wrong type, or aren't a sequence or an array (a generator or a set isn't
        one), or the array is masked.
    ValueError
        There are several dimensions, nulls, a value is out of range, or there aren't `length`
        values.
    """
    if type(values) is np.ndarray and values.ndim == 1 and values.dtype == dtype:
        flags = values.flags
        plain = flags.c_contiguous and flags.aligned  # np.require would take 1 us to say so
        vector = values if plain else np.require(values, requirements=("C", "A"))
    elif type(values) in (list, tuple, range):
        vector = _of_items(values, dtype, name)
    elif (given := _as_numpy(values, name)) is not None and (
        given.ndim or isinstance(values, np.ndarray)
    ):
        if given.ndim != 1:
            raise ValueError(f"{name} must have one dimension, got shape {given.shape}")
        vector = np.require(_cast(given, dtype, name), requirements=["C", "A"])
    elif _is_sequence(values):
        vector = _of_items(list(values), dtype, name)
    else:
        what = "numbers" if dtype.kind == "f" else "integers"
        raise TypeError(f"{name} must be a sequence or array of {what}, got {shown(values)}")
    if length is not None and len(vector) != length:
        raise ValueError(f"{name} must have {length} elements, got {len(vector)}")
    return vector


def effort(values: Any, dtype: np.dtype[Any]) -> float:
    """Estimate how long `as_vector` takes, in elements of a list of plain numbers.

    For an object of somebody else's it is infinite, since it may compute its array or read a file.
    """
    kind = type(values)
    if kind is np.ndarray:
        fits = values.dtype == dtype and values.flags.c_contiguous
        return 0.0 if fits else values.size / QUICKER
    if kind not in (list, tuple, range, array.array):
        return math.inf
    plain = not values or {type(values[0]), type(values[-1])} <= {int, float}
    return float(len(values) if plain else len(values) * SLOWER)


def are_few(inputs: Sequence[Any], dtype: np.dtype[Any]) -> bool:
    """Tell whether the inputs of several jobs become one array in no time worth speaking of."""
    whole = 0.0
    for each in inputs:
        own = effort(each, dtype)
        whole += own or getattr(each, "size", 0) / QUICKER  # an array that fits is copied
    return whole <= FEW


def as_array(values: Any, dtype: np.dtype[Any], name: str) -> Array:
    """Return `values` as an array of `dtype` and any shape; raises as `as_vector`."""
    if type(values) is np.ndarray and values.dtype == dtype:
        return values
    return _cast(as_numbers(values, name), dtype, name)


def as_numbers(values: Any, name: str) -> Array:
    """Return `values` as an array of real numbers of their own dtype, and any shape.

    Arrays and what NumPy can see as one aren't copied. Nested sequences of numbers or arrays, and
    tables without nulls, become int64 or uint64 where these have every bit, else float64.

    Raises
    ------
    TypeError, ValueError
        As `as_vector`; or rows have different lengths.
    """
    return _as_numbers(values, name, _NESTED)


def _as_numbers(values: Any, name: str, depth: int) -> Array:
    if type(values) is np.ndarray:
        _check_real(values, "f", name)
        return values
    if type(values) not in (list, tuple, range):
        if (columns := _columns_of(values)) is not None:
            return _joined([as_numbers(column, name) for column in columns], name, "columns").T
        given = _as_numpy(values, name)
        if given is not None and (given.ndim or isinstance(values, np.ndarray)):
            _check_real(given, "f", name)
            return given
        if not _is_sequence(values):
            raise TypeError(f"{name} must be an array or a sequence, got {shown(values)}")
    return _of_list(list(values), name, depth)


def _of_list(items: list[Any], name: str, depth: int) -> Array:
    if not items:
        return np.empty(0, np.int64)  # nothing has no dtype of its own
    kinds = set(map(type, items))
    if kinds == {list}:  # rows of numbers, most often
        flat = list(itertools.chain.from_iterable(items))
        if set(map(type, flat)) <= {int, float} and len(set(map(len, items))) == 1:
            return _of_list(flat, name, depth).reshape(len(items), len(items[0]))
    if kinds & {list, tuple} or not _is_number(items[0]):
        if not depth:
            raise ValueError(f"{name} must not have more than {_NESTED} dimensions")
        rows = [_as_numbers(item, f"{name}[{i}]", depth - 1) for i, item in enumerate(items)]
        return _joined(rows, name, "rows")
    if not kinds <= {int, float}:
        items = [_plain(item, f"{name}[{i}]") for i, item in enumerate(items)]
    for dtype in (np.int64, np.uint64) if set(map(type, items)) == {int} else ():
        with contextlib.suppress(OverflowError):
            return np.array(items, dtype)
    return _of_items(items, _FLOAT64, name)


def as_column(values: Any, name: str, jobs: int) -> Array:
    """Return `values` as an array of real numbers, one a job; a number holds for each job.

    Raises
    ------
    TypeError, ValueError
        As `as_vector`.
    """
    if _is_number(values):
        one = as_numbers([values], name)
        return np.full(jobs, one[0], one.dtype)
    return as_numbers(values, name)


def as_column_of(values: Any, dtype: np.dtype[Any], name: str, jobs: int) -> Array:
    """Return `values` as an array of `dtype`, one a job; a number holds for each job.

    Raises
    ------
    TypeError, ValueError
        As `as_vector`.
    """
    if _is_number(values):
        return np.full(jobs, as_number(values, dtype, name), dtype)
    column = as_vector(values, dtype, name)
    if len(column) != jobs:
        raise ValueError(f"{name} must have one element a job, {jobs}, got shape {column.shape}")
    return column


def _is_number(value: Any) -> bool:
    """Tell whether something is no array, table or sequence; it may still be no number."""
    if isinstance(value, np.ndarray):
        return not value.ndim
    if type(value) in (int, float):
        return True
    if isinstance(value, (np.generic, str, bytes)):
        return True
    return not (_is_array(value) or _is_sequence(value) or _columns_of(value) is not None)


def _plain(value: Any, name: str) -> int | float:
    integer = as_integer(value)
    return as_number(value, _FLOAT64, name) if integer is None else integer


def _is_sequence(values: Any) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, (str, bytes))


def _of_items(values: Any, dtype: np.dtype[Any], name: str) -> Array:
    """Return numbers one by one as an array, so many at a time that other threads have turns."""
    if len(values) <= SOME:
        return _of_some(values, dtype, name, 0)
    whole = np.empty(len(values), dtype)
    for start in range(0, len(whole), SOME):
        own = whole[start : start + SOME]
        some = _of_some(values[start : start + SOME], dtype, name, start)
        if len(some) != len(own):
            raise ValueError(f"{name} must not change while it is converted")
        own[:] = some
        time.sleep(0)  # hands over the GIL, which is kept for 5 ms otherwise
    return whole


def _of_some(values: Any, dtype: np.dtype[Any], name: str, start: int) -> Array:
    items = values if type(values) is list else list(values)
    plain = {int} if dtype.kind in "ui" else {int, float}
    if not set(map(type, items)) <= plain:
        items = [as_number(item, dtype, f"{name}[{i}]") for i, item in enumerate(items, start)]
    try:
        return np.array(items, dtype=dtype)
    except OverflowError:
        for i, item in enumerate(items, start):
            as_number(item, dtype, f"{name}[{i}]")
        raise


def _joined(rows: list[Array], name: str, what: str) -> Array:
    """Put arrays of one shape one below the other, without a bit lost where a dtype allows it."""
    shapes = {row.shape: None for row in rows}
    if len(shapes) > 1:
        if all(len(shape) == 1 for shape in shapes):
            lengths = listed(shape[0] for shape in itertools.islice(shapes, 3))
            raise ValueError(f"{name} must have {what} of one length, got lengths {lengths}")
        raise ValueError(f"{name} must have {what} of one shape, got {listed(shapes)}")
    if not rows:
        return np.empty((0, 0), np.int64)
    dtype = np.result_type(*{row.dtype for row in rows})
    if dtype.kind == "f" and all(row.dtype.kind in "ui" for row in rows):
        # int64 beside uint64, which either may hold in fact.
        if not any(row.dtype.kind == "i" and (row < 0).any() for row in rows):
            dtype = _UINT64
        elif not any(row.dtype.kind == "u" and (row > _TOP).any() for row in rows):
            dtype = _INT64
    return np.array(rows, dtype)


_TOP = np.uint64(2**63 - 1)


def _cast(given: Array, dtype: np.dtype[Any], name: str) -> Array:
    """Return an array as one of a dtype that holds each of its values."""
    if given.dtype == dtype:
        return given
    _check_real(given, dtype.kind, name)
    if dtype.kind in "ui" and given.dtype.kind != dtype.kind:
        # int64 and uint64 share only half of their range, and a cast would wrap.
        wrong = given < 0 if given.dtype.kind == "i" else given > _TOP
        if wrong.any():
            first = tuple(int(each[0]) for each in np.nonzero(wrong))
            where = ", ".join(map(str, first))
            allowed = _RANGES[dtype.name][2]
            raise ValueError(f"{name}[{where}] must lie in {allowed}, got {given[first]}")
    return given.astype(dtype, copy=False)


def _check_real(given: Array, kind: str, name: str) -> None:
    if given.dtype.kind not in ("uif" if kind == "f" else "ui") or given.dtype.itemsize > 8:
        what = "a real dtype of up to 64 bits" if kind == "f" else "an integer dtype"
        raise TypeError(f"{name} must have {what}, got {shown_dtype(given.dtype)}")


def shown_dtype(dtype: Any) -> str:
    """Return a dtype as it stands in a message."""
    try:
        return listed([str(dtype)])
    except Exception:  # it may be anybody's
        return name_of(type(dtype))


# -- What others have -----------------------------------------------------------------------------


def _is_array(values: Any) -> bool:
    """Tell whether NumPy can see an array, by one of the protocols that it asks for."""
    for protocol in ("__array__", "__array_interface__", "__array_struct__"):
        try:
            if hasattr(values, protocol):
                return not isinstance(values, type)
        except Exception:  # noqa: S112  # it is the object's own code
            continue
    if isinstance(values, bytes):
        return False
    try:
        memoryview(values).release()
    except Exception:
        return False
    return True


def _as_numpy(values: Any, name: str) -> Array | None:
    """Return what NumPy sees of an array of any library; None for what is none.

    Raises
    ------
    TypeError, ValueError
        It is masked, or of a type that may have nulls and is no number's, or NumPy can't see it.
    """
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be masked: fill it, or compress it, first")
    if isinstance(values, np.ndarray):
        return np.asarray(values)
    if isinstance(values, np.generic) or not _is_array(values):
        return None
    try:
        _check_no_nulls(values, name)
        given = np.asanyarray(values)
    except _RefusedError as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # it is the object's own code
        said = f"{type(error).__name__}: {said_by(error)}"
        raise TypeError(
            f"{name} must be an array that NumPy can see, got {shown(values)}: {said}"
        ) from error
    if isinstance(given, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be masked: fill it, or compress it, first")
    return np.asarray(given)


class _RefusedError(ValueError):
    pass


def _check_no_nulls(values: Any, name: str) -> None:
    """Refuse what has no value, of which NumPy would make NaN, and types that may hide it.

    Asked of the class, since a Series of pandas has its index's names as attributes.
    """
    asked = values.__class__
    dtype = values.dtype if hasattr(asked, "dtype") else None
    kind = getattr(dtype, "kind", None)
    if isinstance(kind, str) and kind not in "uif":  # categories, of pandas, are shown as codes
        what = "a real dtype of up to 64 bits"
        raise _RefusedError(f"{name} must have {what}, got {shown_dtype(dtype)}")
    nulls: Any = 0
    is_nested = getattr(dtype, "is_nested", None)  # of Polars, which counts no nulls in there
    if is_nested is not None and is_nested():
        raise _RefusedError(f"{name} must have a real dtype, got {shown_dtype(dtype)}")
    if hasattr(asked, "null_count"):  # of Arrow and Polars
        nulls = values.null_count
        nulls = nulls() if callable(nulls) else nulls
        if hasattr(asked, "type") and str(values.type) not in _ARROW:
            allowed = "Arrow's integers or floats"
            raise _RefusedError(f"{name} must be {allowed}, got {shown_dtype(values.type)}")
    elif dtype is not None and not isinstance(dtype, np.dtype) and hasattr(asked, "isna"):
        nulls = values.isna().sum()  # of pandas, where NaN is a number in NumPy's dtypes only
    if nulls:
        raise _RefusedError(f"{name} must not have nulls, got {int(nulls)}: fill or drop them")


def _columns_of(values: Any) -> list[Any] | None:
    """Return the columns of a table of pandas, Polars or Arrow; None for what is none."""
    asked = values.__class__
    for method in ("itercolumns", "iter_columns"):
        if hasattr(asked, method):
            return list(getattr(values, method)())
    if hasattr(asked, "dtypes") and hasattr(asked, "items") and values.ndim == 2:
        return [column for _, column in values.items()]
    return None
