"""The worker threads' turn at the GIL, which a busy event loop would keep from them.

A kernel releases the GIL while it runs, and must take it back when it ends. CPython asks the holder
to let go after the switch interval (5 ms), counted anew whenever the GIL changes hands: a loop that
never idles lets go of it inside each poll for a moment too short for the waiter, which starts the
count again. With 200 ready tasks on asyncio a slot of 1 ms kernels was used for 0.0 % of the time.
"""

from __future__ import annotations

import time

import anyio

from helixnb._exec.slots import Slots

PERIOD_S = 0.001
"""How often a loop that is busy lets the workers in: about as often as a chunk ends."""

NAP_S = 20e-6
"""How long. A sleeping thread doesn't hold the GIL; the kernel's timer makes it some 70 us."""

SATURATED = 0.5
"""Share of a period that the loop's thread must have computed, for a loop that doesn't idle.

One that idles leaves the GIL to the workers anyway. Well below 1, since other programs may have had
the CPU for the rest of the period.
"""


async def yield_gil(slots: Slots) -> None:
    """Let workers have the GIL once a period, while a slot is busy and the loop is. Never ends."""
    while True:
        await slots.wait_busy()
        computed_ns, at_ns = time.thread_time_ns(), time.perf_counter_ns()
        while slots.busy:
            await anyio.sleep(PERIOD_S)
            computed, passed = time.thread_time_ns() - computed_ns, time.perf_counter_ns() - at_ns
            if computed > SATURATED * passed:
                time.sleep(NAP_S)  # noqa: ASYNC251  # on purpose: blocking is the point
            computed_ns, at_ns = time.thread_time_ns(), time.perf_counter_ns()
