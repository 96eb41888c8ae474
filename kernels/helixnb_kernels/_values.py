"""Single values at the door: plain numbers, and how a value stands in a message of one line."""

from __future__ import annotations

import contextlib
import math
import numbers
import operator
from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np

SHOWN = 50
"""Characters of a value in a message, or of a name."""

LINE = 200
"""Characters of a message at most."""

_ITEMS = 4
_MOST_BITS = 4_096  # Python refuses to print an int of 4,300 digits
_BRACKETS: dict[type, str] = {
    list: "[{}]",
    tuple: "({})",
    set: "{{{}}}",
    frozenset: "{{{}}}",
    dict: "{{{}}}",
}
_PLAIN = (bool, type(None), complex, Decimal, Fraction, range)


def as_integer(value: Any) -> int | None:
    """Return an integer of any type as a plain int; None for what is none, as a bool.

    Integers are Python's, NumPy's, what has ``__index__``, and arrays of these without
    dimensions.
    """
    if type(value) is int:
        return value
    value = _unpacked(value)
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return int.__index__(value)  # which a subclass has no say in
    if isinstance(value, np.generic) and value.dtype.kind not in "ui":
        return None
    try:
        return int.__index__(operator.index(value))
    except Exception:  # it is the value's own code
        return None


def as_real(value: Any) -> float | None:
    """Return a real number of any type as a plain float; None for what is none, as a bool.

    Real numbers are Python's, NumPy's, fractions, decimals, what is registered as
    ``numbers.Real``, and arrays of these without dimensions.

    Raises
    ------
    OverflowError
        It is beyond float64.
    """
    if type(value) is float:
        return value
    value = _unpacked(value)
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, np.generic):
        real = value.dtype.kind in "uif"
    else:
        real = isinstance(value, (numbers.Real, Decimal))
    if not real:
        return None
    try:
        number = float.__float__(float(value))
        beyond = math.isinf(number) and bool(value != number)
    except OverflowError:
        raise
    except Exception:  # it is the value's own code; a signalling NaN of decimals raises, too
        return None
    if beyond:
        raise OverflowError("beyond float64")
    return number


def _unpacked(value: Any) -> Any:
    """Return the element of an array without dimensions."""
    if isinstance(value, np.ndarray) and not value.ndim:
        return None if isinstance(value, np.ma.MaskedArray) else value[()]
    return value


def shown(value: Any) -> str:
    """Return a value as it stands in a message: short, on one line, and by none of its own code.

    What isn't Python's own or NumPy's number is named by its type.
    """
    return _cut(_text(value, depth=2), SHOWN)


def _text(value: Any, depth: int) -> str:
    kind = type(value)
    text = f"<{name_of(value if isinstance(value, type) else kind)}>"
    # By the base class, since a subclass may say anything.
    if isinstance(value, str):
        text = str.__repr__(str.__getitem__(value, slice(SHOWN)))
    elif isinstance(value, bytes):
        text = bytes.__repr__(bytes.__getitem__(value, slice(SHOWN)))
    elif isinstance(value, int) and kind is not bool:
        bits = int.bit_length(value)
        text = int.__repr__(value) if bits <= _MOST_BITS else f"an integer of {bits} bits"
    elif isinstance(value, float) and not isinstance(value, np.generic):
        text = float.__repr__(value)
    elif isinstance(value, np.ndarray):
        text = f"<{name_of(kind)} {value.dtype} {value.shape}>"
    elif kind in _PLAIN or (isinstance(value, np.generic) and value.dtype.kind in "biufcmM"):
        with contextlib.suppress(ValueError):  # of a fraction of very long ints
            text = repr(value)
    elif kind in _BRACKETS:
        with contextlib.suppress(RuntimeError):  # it changes meanwhile
            text = _container(value, depth)
    return text


def _container(value: Any, depth: int) -> str:
    parts: list[str] = []
    for item in value:
        if len(parts) == _ITEMS or not depth:
            parts.append("...")
            break
        part = _text(item, depth - 1)
        if type(value) is dict:
            part += f": {_text(value[item], depth - 1)}"
        parts.append(part)
    return _BRACKETS[type(value)].format(", ".join(parts))


def name_of(kind: type) -> str:
    """Return the name of a class, with its module's if that isn't Python itself."""
    module = kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"


def brief(name: str) -> str:
    """Return a name as it stands in a message."""
    return _cut(name, SHOWN)


def listed(names: Iterable[object]) -> str:
    """Return names in a row as they stand in a message; ``none`` if there are none."""
    text = ", ".join(name if isinstance(name, str) else shown(name) for name in names)
    return _cut(text, SHOWN + 20) or "none"


def said_by(error: BaseException) -> str:
    """Return what an exception says, on one line; its type, if it says nothing."""
    try:
        text = str(error)
    except Exception:
        text = ""
    return one_line(text) or type(error).__name__


def one_line(text: object) -> str:
    """Return a message on one line, of no more than `LINE` characters."""
    return _cut(str(text), LINE)


def _cut(text: str, most: int) -> str:
    text = " ".join(text[: 4 * most].split())
    if not text.isprintable():
        text = "".join(each if each.isprintable() else "?" for each in text)
    return text if len(text) <= most else text[: most - 3] + "..."
