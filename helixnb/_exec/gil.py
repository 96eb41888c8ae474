"""The worker threads' turn at the GIL, which a busy event loop would keep from them.

A kernel releases the GIL while it runs, and must take it back when it ends. CPython asks the holder
to let go after the switch interval (5 ms), counted anew whenever the GIL changes hands: a loop that
never idles lets go of it inside each poll for a moment too short for the waiter, which starts the
count again. With 200 ready tasks on asyncio a slot of 1 ms kernels was used for 0.0 % of the time.
So a loop that doesn't idle looks, once a pass, whether a thread waits, and if so naps.

One router watches for all of the loop: to watch takes a CPU, and a second watcher that measured the
first would watch it, and be watched, for as long as both have work.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import anyio

from helixnb._exec.slots import Slots

PERIOD_S, LONGEST_PERIOD_S = 0.001, 0.005
"""How often it is measured whether the loop idles: about as often as a chunk ends, and less often
while it does."""

WATCH_NS, LONGEST_WATCH_NS = 2_000_000, 50_000_000
"""How long a loop that doesn't is watched, pass by pass, until it is measured again; the longer,
the more often that has shown that it still doesn't. To watch one that idles takes a CPU."""

LOOK_NS, LONGEST_LOOK_NS = 100_000, 5_000_000
"""The least time between two looks at the threads, and after naps that changed nothing: a thread
may stand still for reasons of its own."""

NAP_S, NAPS = 20e-6, 4
"""How long a nap is, and how many in a row for a thread that doesn't wake up in time. A sleeping
thread doesn't hold the GIL; the operating system's timer makes a nap some 70 us."""

SATURATED = 0.5
"""Share of a period that the loop's thread must have computed, for a loop that doesn't idle.

One that idles leaves the GIL to the workers anyway. Well below 1, since other programs may have had
the CPU for the rest of the period.
"""

_RUNNING_NS = 1_000
"""CPU time that a running thread gains between two readings of its clock, and more."""


def own_clock() -> int | None:
    """Return the clock of this thread's CPU time, None where other threads can't read it."""
    try:
        return time.pthread_getcpuclockid(threading.get_ident())
    except (AttributeError, OSError):  # macOS and Windows have no such clocks
        return None


def waits(clock: int | None) -> bool:
    """Tell whether a thread stands still, by its clock; always for one without a clock."""
    if clock is None:
        return True
    try:
        began_ns = time.clock_gettime_ns(clock)
        until_ns = time.perf_counter_ns() + 2 * _RUNNING_NS
        while time.perf_counter_ns() < until_ns:
            pass
        gained_ns: int = time.clock_gettime_ns(clock) - began_ns
    except OSError:  # the thread has ended
        return False
    return gained_ns < _RUNNING_NS


class _Watched(NamedTuple):
    """The threads of one router."""

    slots: Slots
    one_waits: Callable[[], bool]
    settle_done: Callable[[], object]


class _Loop(threading.local):
    """The routers whose event loop runs in this thread."""

    def __init__(self) -> None:
        self.routers: list[_Watched] = []
        self.watched = 0  # times that a watch has begun or ended, so odd while one is on
        self.pause_ns = LOOK_NS


_loop = _Loop()


async def yield_gil(
    slots: Slots, one_waits: Callable[[], bool], settle_done: Callable[[], object]
) -> None:
    """Let workers have the GIL when they wait for it and the loop doesn't idle. Never ends.

    What they hand over then is settled at once: the loop would see that they woke it a pass later.
    """
    own = _Watched(slots, one_waits, settle_done)
    _loop.routers.append(own)
    try:
        await _look_out(own)
    finally:
        _loop.routers.remove(own)


async def _look_out(own: _Watched) -> None:
    period_s, watch_ns = PERIOD_S, WATCH_NS
    while True:
        await own.slots.wait_busy()
        computed_ns, at_ns = time.thread_time_ns(), time.perf_counter_ns()
        watched = _loop.watched
        await anyio.sleep(period_s)
        if watched % 2 or watched != _loop.watched:  # which looks as if the loop were busy
            continue
        computed_ns = time.thread_time_ns() - computed_ns
        now_ns = time.perf_counter_ns()
        if computed_ns < SATURATED * (now_ns - at_ns):
            period_s, watch_ns = min(2 * period_s, LONGEST_PERIOD_S), WATCH_NS
            continue
        _loop.watched += 1
        try:
            await _watch(now_ns + watch_ns)
        finally:
            _loop.watched += 1
        period_s, watch_ns = PERIOD_S, min(2 * watch_ns, LONGEST_WATCH_NS)


async def _watch(until_ns: int) -> None:
    """Look at the threads of all routers, pass by pass, while one has any at work."""
    now_ns = look_ns = time.perf_counter_ns()
    while now_ns < until_ns:
        busy = [each for each in _loop.routers if each.slots.busy]
        if not busy:
            return
        if now_ns >= look_ns:
            naps = 0
            while naps < NAPS and any(each.one_waits() for each in busy):
                time.sleep(NAP_S)  # noqa: ASYNC251  # on purpose: blocking is the point
                naps += 1
            if naps:
                for each in busy:
                    each.settle_done()
            pause_ns = min(2 * _loop.pause_ns, LONGEST_LOOK_NS) if naps == NAPS else LOOK_NS
            _loop.pause_ns = pause_ns
            look_ns = time.perf_counter_ns() + pause_ns
        await anyio.lowlevel.checkpoint()
        now_ns = time.perf_counter_ns()
