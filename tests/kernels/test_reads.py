"""What compiled code reads from outside: found, and looked at again."""

from __future__ import annotations

import logging
import types
from typing import Any

import numba
import numpy as np
import pytest

import helixnb_kernels
from helixnb_kernels import KernelError, _reads, kernel, warm_up
from helixnb_kernels._reads import Reads

SOURCE = """
import math
import numba
import numpy as np

RATE = 2.0
TABLE = np.arange(40_000.0)
STRIDED = np.arange(8.0)[::2]
FIXED = np.arange(4.0)
FIXED.flags.writeable = False
PAIR = (1, 2.5)

@numba.njit
def helped(x):
    return x * RATE

def made(offset, weights):
    def function(x):
        inner = 1.0
        def inside(y):
            return y + offset + inner
        return (
            math.pi + np.float64(3) + settings.RATE + settings.deep.LIMIT + helped(x) + TABLE[0]
            + STRIDED[0] + FIXED[0] + PAIR[0] + len(weights) + inside(x) + float(len(str(x)))
        )
    return function
"""


def loaded() -> tuple[dict[str, Any], Any]:
    """Return a module's namespace, and a function of it that reads much."""
    settings: Any = types.ModuleType("settings")
    settings.RATE, settings.deep = 0.5, types.ModuleType("settings.deep")
    settings.deep.LIMIT = 7
    space: dict[str, Any] = {"__name__": "loaded", "settings": settings}
    exec(SOURCE, space)
    return space, space["made"](3, (1.0, 2.0))


def test_all_that_it_reads_is_found() -> None:
    """Through attributes of modules, closures, functions inside it and jitted ones that it calls.

    What belongs to Python, NumPy and Numba doesn't change.
    """
    _, function = loaded()
    labels = {read.label for read in Reads(function)._reads}
    assert labels == {
        *("RATE", "TABLE", "STRIDED", "FIXED", "PAIR", "helped", "offset", "weights"),
        *("settings", "settings.RATE", "settings.deep", "settings.deep.LIMIT"),
        *("len", "str", "float"),  # which somebody may shadow
    }
    assert Reads(function).writeable == ["STRIDED", "TABLE"]


def rebind_cell(space: dict[str, Any], function: Any) -> None:
    cells = dict(zip(function.__code__.co_freevars, function.__closure__, strict=True))
    cells["offset"].cell_contents = 4


CHANGES: dict[str, tuple[Any, str]] = {
    "number": (lambda space, _: space.update(RATE=3.0), "'RATE' was 2.0 and is 3.0"),
    "type": (lambda space, _: space.update(RATE=2), "'RATE' was 2.0 and is 2"),
    "gone": (lambda space, _: space.pop("RATE"), "'RATE' is gone"),
    "tuple": (lambda space, _: space.update(PAIR=(1, 2.6)), "'PAIR' has changed"),
    "array": (lambda space, _: space.update(FIXED=np.arange(5.0)), "'FIXED' has changed"),
    "in place": (lambda space, _: space["TABLE"].__setitem__(-1, 0), "'TABLE' was written to"),
    "strided": (lambda space, _: space["STRIDED"].__setitem__(-1, 0), "'STRIDED' was written to"),
    "module": (lambda space, _: setattr(space["settings"], "RATE", 0.6), "'settings.RATE' was 0.5"),
    "deeper": (
        lambda space, _: setattr(space["settings"].deep, "LIMIT", 8),
        "'settings.deep.LIMIT' was 7 and is 8",
    ),
    "cell": (rebind_cell, "'offset' was 3 and is 4"),
    "helper": (
        lambda space, _: space.update(helped=numba.njit(lambda x: x + 1)),
        "'helped' has changed",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_change_is_seen(case: str) -> None:
    change, said = CHANGES[case]
    space, function = loaded()
    reads = Reads(function)
    assert reads.change(whole=True) is None
    change(space, function)
    assert said in (reads.change(whole=True) or "")


DEEPER = """
import numba
import numpy as np
from numba.extending import register_jitable

G = 2.0
ARRAYS = (np.array([2.0]), 5)
RECORD = np.zeros(2, dtype=[("a", "f8")])[0]

@register_jitable
def plain(x):
    return x * G

@numba.vectorize
def vectorised(x):
    return x * G

@numba.stencil
def stencilled(x):
    return x[0] * G

@numba.njit
def jitted(x):
    return x * G

FUNCTIONS = (jitted, jitted)

def by_plain(x): return plain(x[0])
def by_ufunc(x): return vectorised(x[0])
def by_stencil(x): return stencilled(x)[0]
def by_tuple(x): return FUNCTIONS[0](x[0])
def by_alias(x):
    module = settings
    return module.G * x[0]
def by_getattr(x): return getattr(settings, "G") * x[0]
def by_array_in_tuple(x): return ARRAYS[0][0]
def by_record(x): return RECORD["a"]
def by_builtin(x): return abs(x[0])
"""

DEEPER_CHANGES: dict[str, Any] = {
    **dict.fromkeys(
        ("by_plain", "by_ufunc", "by_stencil", "by_tuple"),
        lambda space: space.update(G=10.0),
    ),
    **dict.fromkeys(("by_alias", "by_getattr"), lambda space: setattr(space["settings"], "G", 10)),
    "by_array_in_tuple": lambda space: space["ARRAYS"][0].__setitem__(0, 10.0),
    "by_record": lambda space: space["RECORD"].__setitem__("a", 10.0),
    "by_builtin": lambda space: space.update(abs=lambda x: x),
}


@pytest.mark.parametrize("name", DEEPER_CHANGES)
def test_a_change_is_seen_wherever_code_leads(name: str) -> None:
    """Through what has no digest, members of tuples, other names of a module, and builtins."""
    settings: Any = types.ModuleType("settings")
    settings.G = 2.0
    space: dict[str, Any] = {"__name__": "deeper", "settings": settings}
    exec(DEEPER, space)
    reads = Reads(space[name])
    assert reads.change(whole=True) is None
    DEEPER_CHANGES[name](space)
    assert reads.change(whole=True)


def test_the_same_bound_anew_is_no_change() -> None:
    """As by a module that is loaded again; arrays that take the place of others are looked at."""
    space, function = loaded()
    reads = Reads(function)
    again = loaded()[0]
    space.update({name: again[name] for name in ("RATE", "PAIR", "TABLE", "FIXED", "helped")})
    assert reads.change(whole=True) is None
    space["TABLE"][7] = -1.0
    assert "'TABLE' was written to" in (reads.change(whole=True) or "")
    space["TABLE"][7] = 7.0
    assert reads.change(whole=True) is None
    space["TABLE"].flags.writeable = False  # as the warning has it
    space["TABLE"] = np.arange(40_000.0)
    assert reads.change(whole=True) is None


def test_arrays_are_gone_through_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at one part now and then finds each change in the end, and again each time."""
    monkeypatch.setattr(_reads, "LOOK_NS", 0)
    space, function = loaded()
    reads = Reads(function)
    space["TABLE"][-1] = 0.0
    looks = [reads.change() for _ in range(12)]
    assert looks[0] is None
    assert looks[-1] == looks[-2]
    assert "'TABLE' was written to" in str(looks[-1])


RATE = 2.0
TABLE = np.ones(3)
KNOWN = [1.0, 2.0]
NAMES = {1: 2.0}


@kernel(inputs="float64[:]", returns="float64")
def scaled(x: Any) -> Any:
    return x[0] * RATE + TABLE[0]


def test_a_kernel_knows_what_it_was_compiled_with(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Until then it may change; a writeable array is told of once."""
    monkeypatch.setitem(globals(), "RATE", 2.5)
    with caplog.at_level(logging.WARNING, "helixnb.kernels"):
        warm_up([scaled], parallel=False)
        warm_up([scaled], parallel=False)
    (warning,) = [each for each in caplog.messages if "can be written to" in each]
    assert "scaled" in warning
    assert "TABLE" in warning
    assert scaled.change() is None
    monkeypatch.setitem(globals(), "RATE", 4.0)
    with pytest.raises(KernelError, match=r"scaled: global 'RATE' was 2.5 and is 4.0.*shared="):
        warm_up([scaled], parallel=False)
    assert "'RATE'" in str(scaled.change())
    monkeypatch.setitem(globals(), "RATE", 2.5)
    warm_up([scaled], parallel=False)


def test_the_built_in_kernels_read_nothing_that_changes() -> None:
    for each in helixnb_kernels.BUILT_IN:
        assert not Reads(*each._functions)


def test_another_warm_up_meanwhile_does_not_hide_a_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first one compiles what it saw, whoever comes while it does."""
    monkeypatch.setitem(globals(), "RATE", 2.0)

    @kernel(inputs="float64[:]", returns="float64")
    def slowly(x: Any) -> Any:
        return x[0] * RATE

    with slowly.compiling():
        monkeypatch.setitem(globals(), "RATE", 10.0)
        with pytest.raises(KernelError, match=r"'RATE' was 2.0 and is 10.0"):
            warm_up([slowly], parallel=False)
        monkeypatch.setitem(globals(), "RATE", 2.0)
    monkeypatch.setitem(globals(), "RATE", 3.0)
    with slowly.compiling():
        assert slowly.change() is None


def test_a_compilation_that_failed_is_tried_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is there then: the error says what to make of a list."""

    @kernel(inputs="float64[:]", returns="float64")
    def repaired(x: Any) -> Any:
        return x[0] + KNOWN[0]

    with pytest.raises(KernelError, match="'KNOWN' is a list"):
        warm_up([repaired], parallel=False)
    monkeypatch.setitem(globals(), "KNOWN", (1.0, 2.0))
    warm_up([repaired], parallel=False)
    assert repaired.solo_call(repaired.as_inputs([1.0]), 1, 1)() == 2.0


OBJECTS = np.array([1, "x"], object)


@pytest.mark.parametrize(
    ("function", "name", "what"),
    [
        (lambda x: x[0] + KNOWN[0], "KNOWN", "list"),
        (lambda x: x[0] + NAMES[1], "NAMES", "dict"),
        (lambda x: x[0] + OBJECTS[0], "OBJECTS", "ndarray of objects"),
    ],
)
def test_what_numba_can_not_compile_in_is_told_in_a_line(
    function: Any, name: str, what: str
) -> None:
    function.__name__ = "refused"
    refused = kernel(inputs="float64[:]", returns="float64")(function)
    with pytest.raises(KernelError) as caught:
        warm_up([refused])
    told = f"kernel refused: global '{name}' is a {what}, which can't be compiled in: make it"
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)
