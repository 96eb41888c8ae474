"""Which callables are seen to launch Numba's threads; none of them is called or compiled."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from contextvars import copy_context
from typing import Any
from unittest import mock

import numba
import numpy as np
import pytest

from helixnb_kernels import HASH_MIX, _threads, monte_carlo_var, prime_count
from helixnb_kernels._launches import launch_turn, launches, must_take_turns


@numba.njit(parallel=True)
def parallel(x: Any) -> Any:
    return x


@numba.njit
def serial(x: Any) -> Any:
    return x


@numba.njit
def compiled_caller(x: Any) -> Any:
    return parallel(x)


module: Any = types.ModuleType("module")
module.parallel = parallel
module.serial = serial


@functools.wraps(parallel)
def wrapper(*args: Any) -> Any:
    return args


def apply(function: Any, x: Any) -> Any:
    return function(x)


def caller(x: Any) -> Any:
    return parallel(x)


def deeper(x: Any) -> Any:
    return caller(x)


def from_closure(function: Any) -> Callable[..., Any]:
    return lambda x: function(x)  # noqa: PLW0108


class Model:
    parallel = parallel

    def score(self, x: Any) -> Any:
        return parallel(x)

    def safe(self, x: Any) -> Any:
        return serial(x)

    def __call__(self, x: Any) -> Any:
        return parallel(x)


class Compiled:
    __call__ = parallel


class Endless:
    """A proxy that has another one behind it for ever."""

    def __getattr__(self, name: str) -> Any:
        return Endless()

    def __call__(self) -> None: ...


class Raising:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __call__(self) -> None: ...


SEEN: dict[str, Any] = {
    "itself": parallel,
    "partial": functools.partial(parallel, 1),
    "partial of partial": functools.partial(functools.partial(caller), 1),
    "argument of a partial": functools.partial(apply, parallel),
    "keyword of a partial": functools.partial(apply, function=parallel),
    "bound": Model().parallel,
    "method": Model().score,
    "instance": Model(),
    "compiled __call__": Compiled(),
    "wrapper": wrapper,
    "cache": functools.lru_cache(parallel),
    "lambda": lambda: parallel(1),
    "function": caller,
    "comprehension": lambda: [parallel(x) for x in range(3)],
    "module": lambda: module.parallel(1),
    "closure": from_closure(parallel),
    "compiled caller": compiled_caller,
    "lambda of a compiled caller": lambda: compiled_caller(1),
}

NOT_SEEN: dict[str, Any] = {
    "serial": serial,
    "serial in a module": lambda: module.serial(1),
    "serial in a closure": from_closure(serial),
    "method": Model().safe,
    "class": Model,
    "numpy": np.linalg.eigvalsh,
    "ufunc": np.add,
    "built-in": len,
    "type": int,
    "kernel": HASH_MIX,
    "ours, which launch safely": prime_count,
    "ours, too": monte_carlo_var,
    "mock": mock.Mock(),
    "magic mock": mock.MagicMock(),
    "endless": Endless(),
    "raising": Raising(),
    "deeper": lambda: deeper(1),
}


@pytest.mark.parametrize("function", [pytest.param(v, id=k) for k, v in SEEN.items()])
def test_what_is_seen_to_launch(function: Any) -> None:
    """The function behind whatever it is wrapped in, and what its code names."""
    assert launches(function)


@pytest.mark.parametrize("function", [pytest.param(v, id=k) for k, v in NOT_SEEN.items()])
def test_what_is_not(function: Any) -> None:
    """Other callables, this package's own functions, and objects that make looking hard."""
    assert not launches(function)


def test_arguments_are_looked_at() -> None:
    """A parallel function may be handed to one that calls it."""
    assert launches(apply, (parallel, 1))
    assert not launches(apply, (serial, np.ones(3)))


def test_a_closure_that_is_empty_yet() -> None:
    """A function may be named before it is defined."""

    def early() -> Any:
        return late()

    assert not launches(early)

    def late() -> Any:
        return 1


@pytest.mark.parametrize("layer", ["tbb", "omp"])
def test_no_turns_where_launches_are_safe(monkeypatch: pytest.MonkeyPatch, layer: str) -> None:
    """These layers survive several launches at once."""
    monkeypatch.setattr(_threads, "threading_layer", lambda: layer)
    assert not must_take_turns(parallel)


@pytest.mark.parametrize("layer", ["workqueue", None])
def test_turns_elsewhere(monkeypatch: pytest.MonkeyPatch, layer: str | None) -> None:
    """Under workqueue, and while no layer is chosen, since it may come to be that one."""
    monkeypatch.setattr(_threads, "threading_layer", lambda: layer)
    assert must_take_turns(parallel)
    assert not must_take_turns(serial)


def test_what_a_call_calls_takes_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would wait for the one that waits for it; but only as long as that one runs."""
    monkeypatch.setattr(_threads, "threading_layer", lambda: "workqueue")
    with launch_turn():
        assert not must_take_turns(parallel)
        assert not _threads.parallel_region_is_free()
        left_behind = copy_context()
    assert must_take_turns(parallel)
    assert left_behind.run(must_take_turns, parallel)
    assert _threads.parallel_region_is_free()
