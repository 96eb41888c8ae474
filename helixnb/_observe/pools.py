"""Threads that libraries have of their own, for which calls in several slots contend."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import anyio

from helixnb._config import available_cpus
from helixnb._log import SafeLogger

logger = SafeLogger("helixnb")

VARIABLES = {
    "openblas": ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS"),
    "mkl": ("MKL_NUM_THREADS", "OMP_NUM_THREADS"),
    "blis": ("BLIS_NUM_THREADS", "OMP_NUM_THREADS"),
    "flexiblas": ("FLEXIBLAS_NUM_THREADS", "OMP_NUM_THREADS"),
    "openmp": ("OMP_NUM_THREADS",),
}
"""What sets the number of threads when a library is loaded, the first that is set, by its name as
threadpoolctl has it."""

_unsaid = ["the warning"]
"""Empty once it was given. Whoever takes it out gives it: no lock, which a fork could break."""


async def look_at_pools(slots: int, numba_layer: str | None) -> None:
    """Warn, once a process, if a library has several threads for each call beside several slots.

    Never raises but for cancellation. Takes 10 ms at most, in a thread: to import threadpoolctl,
    and to look through the libraries that are loaded.

    Parameters
    ----------
    slots
        How many calls may run at once, at least 2.
    numba_layer
        Numba's threading layer: under ``omp`` its own use of OpenMP isn't warned of.
    """
    limiter = anyio.CapacityLimiter(1)
    with contextlib.suppress(Exception):  # there is no thread, or a library can't be asked
        await anyio.to_thread.run_sync(_warn_of_pools, slots, numba_layer, limiter=limiter)


def _warn_of_pools(slots: int, numba_layer: str | None) -> None:
    pools, is_known = _pools(numba_layer)
    if not pools or not _unsaid:
        return
    try:
        _unsaid.pop()
    except IndexError:  # another router was faster
        return
    have = "has" if is_known else "may have"
    remedy = " ".join(f"{VARIABLES[name][0]}=1" for name in pools) + " in its environment"
    if "openmp" not in pools:  # whose limit is each thread's own
        remedy += ", or call threadpoolctl.threadpool_limits(1, 'blas') once the router is open"
        remedy += "" if is_known else " (pip install 'helixnb[blas]')"
    logger.warning(
        "callables run in %d slots at once, and %s: those that use them get in each other's way, "
        "and may take many times as long. Start the program with %s",
        slots,
        " and ".join(f"{name} {have} {n} threads for each call" for name, n in pools.items()),
        remedy,
    )


def _pools(numba_layer: str | None) -> tuple[dict[str, int], bool]:
    """Return what has several threads a call, and how many; and whether that is known for sure."""
    try:
        import threadpoolctl
    except ImportError:
        return _numpys_own(), False
    pools: dict[str, int] = {}
    for each in threadpoolctl.threadpool_info():
        name, threads = each["internal_api"], each["num_threads"]
        if name == "openmp" and numba_layer == "omp":
            continue
        if threads is not None and threads > 1 and name in VARIABLES:
            pools[name] = max(threads, pools.get(name, 0))
    return pools, True


def _numpys_own() -> dict[str, int]:
    """Return what NumPy was built with, if its environment leaves it several threads."""
    import numpy as np

    config: Any = np.show_config(mode="dicts")
    built_with = config["Build Dependencies"]["blas"]["name"]
    for name in ("openblas", "mkl", "blis"):
        if name in built_with.lower():
            threads = _threads_set(VARIABLES[name])
            return {name: threads} if threads > 1 else {}
    return {}  # such as Accelerate, whose threads are the system's


def _threads_set(variables: tuple[str, ...]) -> int:
    for variable in variables:
        value = os.environ.get(variable, "")
        if value.isdecimal() and int(value):
            return int(value)
    return available_cpus()
