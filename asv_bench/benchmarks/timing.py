"""How tracked figures are timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any


def seconds(run: Callable[[], Any], repeats: int = 9) -> float:
    """Return the median time of a call, each long enough to be measured."""
    calls = _calls(run)
    return median(_time(run, calls) for _ in range(repeats))


def ratio(run: Callable[[], Any], base: Callable[[], Any], repeats: int = 9) -> float:
    """Return how many times as long a call of `run` takes as one of `base`.

    The two take turns, so that a machine that changes its pace changes it for both.
    """
    calls, base_calls = _calls(run), _calls(base)
    return median(_time(run, calls) / _time(base, base_calls) for _ in range(repeats))


def _calls(run: Callable[[], Any]) -> int:
    return max(1, int(0.005 / max(_time(run, 1), 1e-7)))


def _time(run: Callable[[], Any], calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - began) / calls
