"""What a forked child has to put right."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable


def after_fork_in_child(function: Callable[[], None]) -> Callable[[], None]:
    """Call `function` in every child that this process forks; a decorator.

    Python keeps such callbacks until the interpreter is gone, so this one is weak: through its
    module it would keep all of Numba from being freed with the other modules, and every process
    would take 10 ms longer to exit.
    """
    known = weakref.ref(function)

    def call() -> None:
        if (alive := known()) is not None:
            alive()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=call)
    return function
