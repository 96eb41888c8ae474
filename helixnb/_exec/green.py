"""Programs whose threads aren't the system's: gevent's and eventlet's, after monkey patching."""

from __future__ import annotations

import sys

from helixnb._errors import RouterStateError

NEEDED = {
    "gevent.monkey": ("threading", "socket", "select"),
    "eventlet.patcher": ("thread", "socket"),
}
"""What a router needs as the system has it, by the module that tells of each library's patches."""


def check_threads() -> None:
    """Raise where threads are greenlets, all of which a kernel would stop.

    Raises
    ------
    RouterStateError
        A library has patched what a router needs.
    """
    for name, needed in NEEDED.items():
        module = sys.modules.get(name)
        if module is None:
            continue
        is_patched = getattr(module, "is_module_patched", None) or module.is_monkey_patched
        patched = [each for each in needed if is_patched(each)]
        if patched:
            library = name.partition(".")[0]
            raise RouterStateError(
                f"{library} has patched {', '.join(patched)}, and a kernel would stop all of its "
                "green threads: open routers in a process that isn't patched, such as a gthread "
                "worker of gunicorn's"
            )
