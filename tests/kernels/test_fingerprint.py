"""The digest of a user's function: another one for whatever changes its machine code."""

from __future__ import annotations

import enum
import math
import textwrap
import types
from typing import Any

import numba
import numpy as np
import pytest

from helixnb_kernels._fingerprint import fingerprint

BASE = """
import math
import numba
import numpy as np

FACTOR = 2.0
OTHER = 3.0
TABLE = np.array([1.0, 2.0])
PAIR = (1.0, 2.0, 1.0)
NESTED = ((1, 2, 3), (4, 5))

@numba.njit
def helper(x, k=2.0):
    return x * k

@numba.njit
def second(x):
    return x + 1.0

alias = helper

def make(inner):
    def user(x):
        return alias(x[0]) * FACTOR + OTHER + TABLE[1] + PAIR[2] + NESTED[0][0] + inner + math.pi
    return user

user = make(4.0)
"""


def digest(*changes: tuple[str, str]) -> str | None:
    source = BASE
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    namespace: dict[str, Any] = {"__name__": "user"}
    exec(compile(textwrap.dedent(source), "user.py", "exec"), namespace)
    return fingerprint(namespace["user"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("FACTOR = 2.0", "FACTOR = 2.5"),
        ("FACTOR = 2.0", "FACTOR = 3.0"),
        ("OTHER = 3.0", "OTHER = 2.0"),
        ("OTHER = 3.0", "OTHER = 3"),
        ("TABLE = np.array([1.0, 2.0])", "TABLE = np.array([1.0, 2.5])"),
        ("TABLE = np.array([1.0, 2.0])", "TABLE = np.array([1, 2])"),
        ("PAIR = (1.0, 2.0, 1.0)", "PAIR = (1.0, 2.0, 2.0)"),
        ("NESTED = ((1, 2, 3), (4, 5))", "NESTED = ((1, 2), (3, 4, 5))"),
        ("alias = helper", "alias = second"),
        ("k=2.0", "k=3.0"),
        ("return x * k", "return x / k"),
        ("@numba.njit\ndef helper", "@numba.njit(fastmath=True)\ndef helper"),
        ("make(4.0)", "make(5.0)"),
        ("math.pi", "math.e"),
    ],
)
def test_whatever_changes_the_code_changes_the_digest(old: str, new: str) -> None:
    """Globals, callees, defaults, options and closures all count; the same source is the same."""
    assert digest() is not None
    assert digest() == digest()
    assert digest((old, new)) not in {digest(), None}


class Colour(enum.Enum):
    RED = 1.0


class Rude:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("no attributes here")

    def __repr__(self) -> str:
        raise RuntimeError("no text either")


settings = types.ModuleType("settings")
settings.rate = 2.0  # type: ignore[attr-defined]
rude = Rude()


def uses_a_module(x: Any) -> Any:
    return x[0] * settings.rate


def uses_an_enum(x: Any) -> Any:
    return x[0] * Colour.RED.value


def uses_rude(x: Any) -> Any:
    return rude


def plain(x: Any) -> Any:
    return x


def calls_plain(x: Any) -> Any:
    return plain(x)


@numba.vectorize  # type: ignore[untyped-decorator]  # untyped
def universal(x: Any) -> Any:
    return x * 2


def calls_universal(x: Any) -> Any:
    return universal(x)


def with_an_empty_cell() -> Any:
    def user(x: Any) -> Any:
        return x[0] * later

    key = fingerprint(user)
    later = 2.0
    return key, later


@pytest.mark.parametrize(
    "function", [uses_a_module, uses_an_enum, uses_rude, calls_plain, calls_universal]
)
def test_what_cant_be_known_has_no_digest(function: Any) -> None:
    """Rather no cache than old code: attributes, overloads, ufuncs of one's own aren't guessed."""
    assert fingerprint(function) is None


def test_an_empty_cell_is_no_error() -> None:
    """A closure variable that is assigned later is legal, and not known yet."""
    assert with_an_empty_cell() == (None, 2.0)


def test_libraries_are_trusted() -> None:
    """NumPy, math and Numba change with their versions only."""

    def usual(x: Any) -> Any:
        return np.sqrt(x[0]) + math.sin(np.float64(len(x))) + max(1, 2)

    assert fingerprint(usual) is not None
