"""The digest of a user's function: another one for whatever changes its machine code."""

from __future__ import annotations

import ctypes
import enum
import functools
import math
import operator
import random
import re
import struct
import types
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from numba import types as nb
from numba.core.compiler import Compiler

from helixnb_kernels._fingerprint import fingerprint

BASE = """
import math
import operator

FACTOR = 2.0
OTHER = 3.0
TABLE = np.array([1.0, 2.0])
PAIR = (1.0, 2.0, 1.0)
NESTED = ((1, 2, 3), (4, 5))
settings = ModuleType("settings")
settings.rate = 0.5
settings.unused = 1

def last(x, a=1.0, *, b=2.0):
    return x + a + b
last = njit(last)

@njit(locals={})
def helper(x, k=2.0):
    return last(x) * k

@njit
def second(x):
    return x + 1.0

alias = helper

def make(inner):
    def user(x, y=1.0):
        total = 0.0
        for i in range(3):
            total += (lambda v: v + 0.5)(x[0] * i)
        try:
            total += alias(x[0]) * FACTOR + OTHER + TABLE[1] + PAIR[2] + NESTED[0][0]
        except Exception:
            total = -1.0
        kinds = min(1, 2) + operator.add(1, 2) + np.float64(y) + (1 if x[0] in {1, 2} else 0)
        return total + inner + math.pi + settings.rate + kinds
    return user

user = make(4.0)
"""
# What the digest has, and an edit that shows it. docs/design.md has a row for each.
EDITS = {
    "bytecode": ("+ OTHER", "- OTHER"),
    "constants": ("v + 0.5", "v + 0.25"),
    "constants by type": ("else 0)", "else 0.0)"),
    "exception table": ("except Exception:\n            total", "finally:\n            total"),
    "argument names": ("inner + math.pi", "y + math.pi"),
    "default arguments": ("y=1.0", "y=1.5"),
    "closure": ("make(4.0)", "make(5.0)"),
    "global number": ("FACTOR = 2.0", "FACTOR = 2.5"),
    "global number by type": ("OTHER = 3.0", "OTHER = 3"),
    "global number by name": ("OTHER = 3.0\n", "OTHER = 2.0\nFACTOR = 3.0\n"),
    "global array": ("np.array([1.0, 2.0])", "np.array([1.0, 2.5])"),
    "dtype of an array": ("np.array([1.0, 2.0])", "np.array([1, 2])"),
    "layout of an array": ("np.array([1.0, 2.0])", "np.array([1.0, 9.0, 2.0])[::2]"),
    "global tuple": ("PAIR = (1.0, 2.0, 1.0)", "PAIR = (1.0, 2.0, 2.0)"),
    "nested tuple": ("((1, 2, 3), (4, 5))", "((1, 2), (3, 4, 5))"),
    "constant of a module": ("settings.rate = 0.5", "settings.rate = 0.25"),
    "constant of a library": ("math.pi", "math.e"),
    "function of a library": ("operator.add", "operator.sub"),
    "builtin of another name": ("min(1, 2)", "max(1, 2)"),
    "builtin shadowed by a global": ("FACTOR = 2.0", "min = max\nFACTOR = 2.0"),
    "callee": ("alias = helper", "alias = second"),
    "code of a callee": ("last(x) * k", "last(x) / k"),
    "defaults of a callee": ("k=2.0", "k=3.0"),
    "code of a callee's callee": ("x + a + b", "x + a - b"),
    "keyword defaults of a callee": ("b=2.0", "b=3.0"),
    "options of a callee": ("@njit\ndef second", "@njit(fastmath=True)\ndef helper"),
    "fast-math flags of a callee": ("locals={}", "fastmath={'nnan'}"),
    "error model of a callee": ("locals={}", "error_model='numpy'"),
    "bounds checks of a callee": ("locals={}", "boundscheck=True"),
    "inlining of a callee": ("locals={}", "inline='always'"),
    "types of a callee's variables": ("locals={}", "locals={'x': numba.float32}"),
}


def load(source: str, filename: str = "user.py", njit: Any = numba.njit) -> dict[str, Any]:
    known = {"np": np, "numba": numba, "njit": njit, "ModuleType": types.ModuleType}
    namespace: dict[str, Any] = {"__name__": "user", **known}
    exec(compile(source, filename, "exec"), namespace)
    return namespace


def edited(*changes: tuple[str, str], source: str = BASE) -> str:
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    return source


def digest(*changes: tuple[str, str]) -> str | None:
    return fingerprint(load(edited(*changes))["user"])


def of_global(value: Any) -> str | None:
    """Digest a function that uses a value."""
    namespace = {"VALUE": value}
    exec("def user(x):\n    return x[0] * VALUE", namespace)
    return fingerprint(namespace["user"])


def test_the_table_in_the_docs_is_this_one() -> None:
    """docs/design.md names what the digest has, with the same edits."""
    text = (Path(__file__).parents[2] / "docs" / "design.md").read_text(encoding="utf-8")
    table = text.partition("| what | edit of | to |")[2].partition("\n\n")[0]
    rows = [row.split(" | ") for row in table.splitlines()[2:]]
    assert [row[0].removeprefix("| ") for row in rows] == [*EDITS]
    for row, edit in zip(rows, EDITS.values(), strict=True):
        assert [_words(cell) for cell in row[1:]] == [_words(text) for text in edit]


def _words(text: str) -> str:
    return re.sub(r"\\n|[\s`|]", "", text)


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_whatever_changes_the_code_changes_the_digest(edit: tuple[str, str]) -> None:
    """Globals, callees, defaults, options and closures all count."""
    assert digest(edit) not in {digest(), None}


@pytest.mark.parametrize(
    "source",
    [
        BASE,
        "# a comment\n\n" + BASE,
        edited(("total = 0.0", "total = 0.0  # a comment\n")),
        edited(("def make", "def unrelated():\n    return FACTOR * 2\n\n\ndef make")),
        edited(("settings.unused = 1", "settings.unused = 2")),
    ],
    ids=["again", "moved", "comment", "another function", "unused"],
)
def test_what_changes_no_code_changes_no_digest(source: str) -> None:
    """The same function, loaded anew from wherever it stands now, is the same."""
    assert fingerprint(load(source, "elsewhere.py")["user"]) == digest() != None  # noqa: E711


def test_every_field_of_a_code_object_counts() -> None:
    """All that `code.replace` can change does, but for where the code was written."""
    code = load(BASE)["user"].__code__
    changed: dict[type, Any] = {
        int: lambda value: value ^ 1,
        str: lambda value: value + "x",
        bytes: lambda value: value + value[-2:],
        tuple: lambda value: (*value, "x"),
    }
    places = {"co_filename", "co_firstlineno", "co_lnotab", "co_linetable", "co_qualname"}
    fields = [each for each in dir(code) if each.startswith("co_") and each not in places]
    edits = {each: getattr(code, each) for each in fields if not callable(getattr(code, each))}
    assert {"co_code", "co_consts", "co_names", "co_flags", "co_exceptiontable"} <= edits.keys()
    for field, value in edits.items():
        # Python refuses lists of variables that don't fit the code.
        if field not in {"co_nlocals", "co_varnames", "co_freevars", "co_cellvars"}:
            other: Any = code.replace(**{field: changed[type(value)](value)})
            assert fingerprint(other) != fingerprint(code), field


def test_signatures_of_a_callee_count() -> None:
    """Numba casts arguments to declared types, which may lose what they have."""
    program = "@njit({})\ndef helper(x):\n    return x\ndef user(x):\n    return helper(x[0])"
    given = ["", "'f8(f4)'", "'f8(f8)'", "['f8(f4)', 'f8(f8)']"]
    digests = [fingerprint(load(program.format(each))["user"]) for each in given]
    assert len({*digests} - {None}) == len(given)


RECORD = np.dtype([("a", "i4"), ("b", "f8")])
SQUARE = np.arange(4.0).reshape(2, 2)
STRIPED = np.zeros((2, 4))[:, ::2]
STRIPED[:] = SQUARE
READ_ONLY = SQUARE.copy()
READ_ONLY.setflags(write=False)
BUFFER = np.zeros(33, np.uint8)
UNALIGNED = BUFFER[1:].view(np.float64).reshape(2, 2)
UNALIGNED[:] = SQUARE


def _nan(payload: int) -> float:
    value: float = struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000000 + payload))[0]
    return value


DIFFERENT = [
    *(None, ..., False, True, 0, 1, -1, 2**64, 0.0, -0.0, 1.0, _nan(0), _nan(1), math.inf),
    *(0j, -0j, complex(0, -0.0), "", "0", "\0", b"", b"0", b"\0", "\udc80"),
    *(np.bool_(False), np.int64(0), np.int32(0), np.uint64(0), np.float64(0), np.float32(0)),
    *(np.float64(-0.0), np.complex128(0), np.datetime64(0, "s"), np.datetime64(0, "ms")),
    *(np.timedelta64(0, "s"), np.str_("0"), np.bytes_("0")),
    *((), (0,), (0.0,), (-0.0,), (0, 0), ((0,), 0), (0, (0,)), ((), ()), ("01",), ("0", "1")),
    *(frozenset(), frozenset({0}), frozenset({0.0}), frozenset({"a", "b"}), frozenset({"ab"})),
    *(np.zeros(0), np.zeros(1), np.zeros(1, np.int64), np.zeros((1, 1)), np.array([-0.0])),
    *(SQUARE, np.asfortranarray(SQUARE), STRIPED, READ_ONLY, UNALIGNED, SQUARE.astype(">f8")),
    *(np.zeros(1, RECORD), np.zeros(1, np.dtype([("a", "i4"), ("b", "f8")], align=True))),
    *(np.zeros(1, np.dtype([("c", "i4"), ("b", "f8")])), np.zeros(1, RECORD)[0]),
    *(RECORD, np.dtype("f8"), np.dtype(">f8"), np.float64, float, int, bool, np.int64),
    *(nb.float64, nb.int64, nb.float64[:], nb.float64[::1], nb.float64[:, :]),
    *(nb.Array(nb.float64, 1, "C", readonly=True), nb.UniTuple(nb.int64, 2)),
    *(math, np, math.sqrt, math.cos, np.sqrt, np.cos, np.sum, np.mean, len, max, min),
    *(np.random.random, np.random.normal, random.random, operator.add, ValueError, KeyError),
]


def test_values_count_by_exact_type_and_bits() -> None:
    """No two of them are alike, whatever `==` says, and each is the same again."""
    digests = [of_global(value) for value in DIFFERENT]
    assert None not in digests
    assert len({*digests}) == len(DIFFERENT)
    assert digests == [of_global(value) for value in DIFFERENT]


class Rounding(float):
    def __repr__(self) -> str:
        return f"{float(self):.2f}"


class Colour(enum.Enum):
    RED = 1.0


class Level(enum.IntEnum):
    LOW = 1


class Rude:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("no attributes here")

    def __repr__(self) -> str:
        raise RuntimeError("no text either")


class Lazy(types.ModuleType):
    """A module whose attributes are computed."""


class Pipeline(Compiler):  # type: ignore[misc]  # untyped
    """A compiler of one's own."""


Point = namedtuple("Point", "x y")  # noqa: PYI024  # as people write it


def _plain(x: Any) -> Any:
    return x


@functools.wraps(np.sum)
def _like_sum(x: Any) -> Any:
    return 0.0


def _module(name: str, **attributes: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(attributes)
    return module


@numba.njit  # type: ignore[untyped-decorator]  # untyped
def _wrapped(x: Any) -> Any:
    return x


_wrapped.py_func.__wrapped__ = _plain
UNKNOWN: dict[str, Callable[[], Any]] = {
    "a subclass of float": lambda: Rounding(0.01234),
    "a subclass of a NumPy scalar": lambda: type("Mine", (np.float64,), {})(1.0),
    "a subclass of str": lambda: type("Text", (str,), {})("a"),
    "an enum": lambda: Colour,
    "a member of an IntEnum": lambda: Level.LOW,
    "a named tuple": lambda: Point(1, 2),
    "a named tuple's class": lambda: Point,
    "a masked array": lambda: np.ma.array([1.0]),
    "an array of objects": lambda: np.array([object()]),
    "a list": lambda: [1.0],
    "an object of one's own": Rude,
    "a class of one's own": lambda: Rude,
    "a plain function": lambda: _plain,
    "a plain function in a tuple": lambda: (_plain,),
    "a function named like NumPy's": lambda: _like_sum,
    "a partial function": lambda: functools.partial(max, 1),
    "a ufunc of one's own": lambda: np.frompyfunc(_plain, 1, 1),
    "numba.vectorize": lambda: numba.vectorize(_plain),
    "numba.stencil": lambda: numba.stencil(lambda x: x[0]),
    "numba.cfunc": lambda: numba.cfunc("f8(f8)")(_plain),
    "an intrinsic": lambda: numba.extending.intrinsic(lambda context, x: None),
    "numba.objmode": lambda: numba.objmode,
    "a C function": lambda: ctypes.pythonapi.Py_IsInitialized,
    "a module that computes attributes": lambda: _module("lazy", __getattr__=_plain),
    "a module of a class of its own": lambda: Lazy("lazy"),
    "inlining by a cost model": lambda: numba.njit(inline=_plain)(_plain),
    "a compiler of one's own": lambda: numba.njit(pipeline_class=Pipeline)(_plain),
    "a function with another's signature": lambda: _wrapped,
}


@pytest.mark.parametrize("make", UNKNOWN.values(), ids=UNKNOWN)
def test_what_cant_be_known_has_no_digest(make: Callable[[], Any]) -> None:
    """Rather no cache than old code; and what has code of its own isn't run."""
    assert of_global(make()) is None


def test_what_is_bound_later_has_no_digest() -> None:
    """A global or a closure variable that is assigned later is legal, and not known yet."""

    def user(x: Any) -> Any:
        return x[0] * later

    assert fingerprint(user) is None
    later = 2.0
    assert fingerprint(user) is not None
    assert fingerprint(load("def user(x):\n    return x[0] * LATER")["user"]) is None


@pytest.mark.parametrize("value", [2.0, _like_sum], ids=["number", "function"])
def test_a_patched_library_counts(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a name in a library stands for now is what is compiled in."""
    sources = ["np.sum", "math.pi"] if callable(value) else ["math.pi", "np.e"]
    for source in sources:
        user = load(f"import math\ndef user(x):\n    return {source}")["user"]
        before = fingerprint(user)
        module, name = source.split(".")
        monkeypatch.setattr(user.__globals__[module], name, value)
        assert before is not None
        assert fingerprint(user) != before


def test_attributes_are_found_however_they_are_read() -> None:
    """Through a local name, in a nested function, in a callee, or by `getattr`."""
    programs = [
        "def user(x):\n    m = settings\n    return m.rate",
        "def user(x):\n    return (lambda: settings.rate)()",
        "@njit\ndef helper(m):\n    return m.rate\ndef user(x):\n    return helper(settings)",
        "def user(x):\n    return getattr(settings, 'rate')",
        "outer = ModuleType('p'); outer.sub = settings\ndef user(x):\n    return outer.sub.rate",
    ]
    for program in programs:
        digests = set()
        for rate in (0.5, 0.25):
            setting = f"settings = ModuleType('s')\nsettings.rate = {rate}\n"
            digests.add(fingerprint(load(setting + program)["user"]))
        assert None not in digests
        assert len(digests) == 2, program


def test_random_edits_that_change_an_answer_change_the_digest() -> None:
    """Numbers, operators, calls and names at random; what answers alike may be either."""
    rng = random.Random(17)
    swaps = {
        r"\b\d+\.\d+\b": lambda: f"{rng.uniform(0, 9):.3f}",
        r"\b\d\b": lambda: str(rng.randint(0, 4)),
        r" [+*/-] ": lambda: rng.choice([" + ", " - ", " * ", " / "]),
        r"\b(?:FACTOR|OTHER|inner)\b": lambda: rng.choice(["FACTOR", "OTHER", "x[0]"]),
        r"\b(?:helper|second|last)\b": lambda: rng.choice(["helper", "second", "last"]),
        r"\b(?:min|max)\b": lambda: rng.choice(["min", "max", "sum"]),
        r"math\.\w+|settings\.\w+": lambda: rng.choice(["math.pi", "math.e", "settings.rate"]),
    }
    known: dict[str, Any] = {}
    changed = 0
    for _ in range(400):
        pattern = rng.choice([*swaps])
        found = rng.choice([*re.finditer(pattern, BASE)])
        source = BASE[: found.start()] + swaps[pattern]() + BASE[found.end() :]
        try:
            # The answers of plain Python.
            plain = load(source, njit=lambda *args, **_: args[0] if args else lambda f: f)
            answers = [repr(plain["user"]([x])) for x in (1.0, 1.7, -3.0)]
            key = fingerprint(load(source)["user"])
        except Exception:
            continue  # plain Python can't answer
        if key is not None:
            assert known.setdefault(key, answers) == answers, source
            changed += source != BASE
    assert changed > 100
    assert len(known) > 100
