"""Parallel launches that can't abort the process: threading layer, forks, one region at a time."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import threading
from collections.abc import Iterator

import numba
from numba.core import config

from helixnb_kernels._fork import after_fork_in_child

logger = logging.getLogger("helixnb.kernels")

_region = threading.Lock()
_forked_under_omp = False


def threading_layer() -> str | None:
    """Return Numba's threading layer (``tbb``, ``omp``, ``workqueue``), None if not yet chosen."""
    try:
        return str(numba.threading_layer())
    except ValueError:  # Numba's way to say that none is initialised
        return None


def choose_threading_layer() -> str:
    """Initialise Numba's threading layer, without a launch, and return its name.

    A ``tbb`` package in the same environment is loaded first: its library lies where the loader
    doesn't look, so Numba alone would pass it over. Under ``omp`` a process that has chosen can't
    run parallel code in its forked children any more, so this is for warm-up, not for import.
    Best called on the main thread: elsewhere, TBB prints a warning at every later fork.
    """
    layer = threading_layer()
    if layer is None:
        if str(config.THREADING_LAYER).lower() in (
            "default",
            "tbb",
            "safe",
            "threadsafe",
            "forksafe",
        ):
            _preload_tbb()
        numba.get_num_threads()
        layer = str(numba.threading_layer())
    return layer


def _preload_tbb() -> None:
    import importlib.metadata  # takes 30 ms, so not for whoever only imports this

    try:
        files = importlib.metadata.files("tbb") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name in ("libtbb.so.12", "libtbb.12.dylib", "tbb12.dll"):
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(file.locate()))


@functools.cache
def _usable_layer() -> str | None:
    """Choose the threading layer; None, with a warning, where none can be loaded."""
    try:
        return choose_threading_layer()
    except ValueError as error:
        with contextlib.suppress(Exception):  # an application's own handler may raise
            logger.warning("no threading layer for Numba, so batches run on one thread: %s", error)
        return None


def parallel_is_safe() -> bool:
    """Tell whether a parallel region may start in this process, whatever its other threads do.

    Not under ``workqueue``, which aborts the process when two threads launch at once, nor in a
    child forked after the parent chose ``omp``, which GNU OpenMP terminates. Initialises the
    threading layer.
    """
    return not config.DISABLE_JIT and not _forked_under_omp and _usable_layer() in ("tbb", "omp")


def launches_are_safe() -> bool:
    """Tell whether other people's code may launch Numba's threads from several threads at once.

    As `parallel_is_safe`, but nothing is initialised: False while no layer is chosen.
    """
    return not _forked_under_omp and threading_layer() in ("tbb", "omp")


def launches_are_fatal() -> bool:
    """Tell whether a launch ends this process: a child that was forked under ``omp``."""
    return _forked_under_omp


def max_threads() -> int:
    """Return how many threads Numba has for a parallel region."""
    return int(config.NUMBA_NUM_THREADS)


def parallel_region_is_free() -> bool:
    """Tell whether no parallel region of ours is running in this process."""
    return not _region.locked()


def region() -> threading.Lock:
    """Return the lock of the process's one parallel region, which `parallel_region` takes."""
    return _region


@contextlib.contextmanager
def parallel_region(threads: int) -> Iterator[bool]:
    """Claim the process's one parallel region for `threads` threads, never waiting for it.

    Yields False where it is taken, or where parallel code isn't safe: run the serial form then.
    """
    if threads < 2 or not parallel_is_safe() or not _region.acquire(blocking=False):
        yield False
        return
    try:
        # The mask is per thread and not inherited, so it is set for every launch.
        previous = numba.get_num_threads()
        numba.set_num_threads(min(threads, max_threads()))
        try:
            yield True
        finally:
            numba.set_num_threads(previous)
    finally:
        _region.release()


@after_fork_in_child
def _renew_lock_and_note_layer() -> None:
    # The threads that may hold locks of the parent aren't here.
    global _region, _forked_under_omp
    _region = threading.Lock()
    if threading_layer() == "omp":
        _forked_under_omp = True
