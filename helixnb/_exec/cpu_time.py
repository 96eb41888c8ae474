"""What a thread computes for its jobs: its CPU time, with and without garbage collections.

A full collection takes 50 to 100 ms in a large program, in the middle of whatever happens to make
an object then: it is no property of a compiled kernel, which makes none.
"""

from __future__ import annotations

import gc
import threading
import time

_collected_ns: dict[int, int] = {}
"""CPU time that collections have taken so far, by the thread in which they ran."""

_began_ns: dict[int, int] = {}


def collected_ns() -> int:
    """Return the CPU time that collections took in this thread since `watch_collections`."""
    return _collected_ns.get(threading.get_ident(), 0)


def compiled_time_ns() -> int:
    """Return the CPU time of this thread, but for collections since `watch_collections`."""
    return time.thread_time_ns() - _collected_ns.get(threading.get_ident(), 0)


def watch_collections() -> None:
    """Reckon with collections from now on, in this process."""
    if _note_collection not in gc.callbacks:
        gc.callbacks.append(_note_collection)


def _note_collection(phase: str, info: dict[str, int]) -> None:  # noqa: ARG001  # as declared
    thread = threading.get_ident()
    if phase == "start":
        _began_ns[thread] = time.thread_time_ns()
    elif (began_ns := _began_ns.pop(thread, None)) is not None:
        taken_ns = time.thread_time_ns() - began_ns
        _collected_ns[thread] = _collected_ns.get(thread, 0) + taken_ns
