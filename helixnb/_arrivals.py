"""When jobs come: seeded arrivals, and what keeps to them."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator

import anyio

from helixnb._records import Job


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Give the due times of a Poisson process, in seconds after its start, without end.

    The same arguments give the same times.

    Parameters
    ----------
    rate
        Mean arrivals a second, more than 0.
    seed
        Seed of Python's own generator.

    Raises
    ------
    ValueError
        `rate` can't be.
    """
    _check_rate(rate)
    return _poisson(rate, seed)


def _poisson(rate: float, seed: int) -> Iterator[float]:
    draw = random.Random(seed)  # noqa: S311  # a workload, not a secret
    due_s = 0.0
    while True:
        due_s += draw.expovariate(rate)
        yield due_s


def bursty(rate: float, seed: int, *, peak: float = 4.0, period_s: float = 1.0) -> Iterator[float]:
    """Give the due times of on/off arrivals, in seconds after their start, without end.

    Each period begins with a burst, a Poisson process of `peak` times the rate for
    ``period_s / peak`` seconds; nothing comes for the rest of it. Bursts have a fixed length, so
    that a run of a few whole periods has the rate that it says. The same arguments give the same
    times.

    Parameters
    ----------
    rate
        Mean arrivals a second over whole periods, more than 0.
    seed
        Seed of Python's own generator.
    peak
        The rate in a burst over the mean rate, at least 1; 1 is no burst at all.
    period_s
        Seconds from the beginning of a burst to that of the next one, more than 0.

    Raises
    ------
    ValueError
        An argument can't be.
    """
    _check_rate(rate)
    if not 1.0 <= peak < math.inf:
        raise ValueError(f"peak must be at least 1, got {peak}")
    if not 0.0 < period_s < math.inf:
        raise ValueError(f"period_s must be more than 0, got {period_s}")
    burst_s = period_s / peak

    def spread(on_s: float) -> float:
        periods, within_s = divmod(on_s, burst_s)
        return periods * period_s + within_s

    return map(spread, _poisson(peak * rate, seed))


def _check_rate(rate: float) -> None:
    if not 0.0 < rate < math.inf:
        raise ValueError(f"rate must be more than 0 arrivals a second, got {rate}")


async def pace(
    start: Callable[[Job, float], object],
    jobs: Iterable[Job],
    arrivals: Iterable[float],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Call ``start(job, due_s)`` for each job when it is due, whatever becomes of earlier ones.

    Where the event loop comes too late for some, they start one after the other in its next turn:
    none is left out, and each is told when it was due, to count its latency from there. It looks
    at the clock twice a turn of the event loop rather than for each job, and makes no tasks;
    `start` mustn't block. On asyncio an idle loop wakes up to a millisecond late, since it waits
    for whole ones.

    Parameters
    ----------
    start
        Is called on the event loop; `due_s` is a time of `clock`.
    jobs
        In order of arrival.
    arrivals
        Seconds from this call to when each job is due, ascending; at least as many as jobs.
    clock
        Gives seconds; never runs backwards. The event loop's own may stand still for a turn, as
        uvloop's does.

    Raises
    ------
    ValueError
        There are more jobs than arrivals; those before it have started.
    """
    now_s = began_s = clock()
    offsets_s = iter(arrivals)
    for job in jobs:
        try:
            due_s = began_s + next(offsets_s)
        except StopIteration:
            raise ValueError(f"there is no arrival for job {job.id}: give one a job") from None
        while due_s > now_s:
            await anyio.sleep(max(0.0, due_s - clock()))  # a checkpoint, even when that is past
            now_s = clock()
        start(job, due_s)
