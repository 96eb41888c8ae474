"""Compiling the kernels of a router, or any, ahead of their first job."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

from helixnb_kernels._errors import KernelError
from helixnb_kernels._jit import compile_once
from helixnb_kernels._kernel import Kernel

Progress = Callable[[int, int, str], None]


def warm_up(
    kernels: Iterable[Kernel],
    *,
    parallel: bool = True,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> bool:
    """Compile every form of `kernels`, or read it from the disk cache. Thread-safe.

    Nothing compiles afterwards. A form that is warm costs nothing.

    Parameters
    ----------
    kernels
        Kernels of a router, or any.
    parallel
        Compile parallel forms too, where this process can run them safely. That initialises
        Numba's threading layer; under OpenMP it takes parallel code from children forked later.
    progress
        Called as ``progress(done, total, kernel_name)`` before each form and once at the end.
    stop
        Asked before each form whether to leave it at that. What was compiled by then is warm, and
        in the cache; a further call goes on from there.

    Returns
    -------
    bool
        Whether every form is warm: not if it was stopped.

    Raises
    ------
    KernelError
        A function can't be compiled, or returns another type than was declared, or shared arrays
        aren't bound; or a global that compiled code read has changed since.
    """
    kernels = list(kernels)
    for kernel in kernels:
        kernel.check_bound()
    with contextlib.ExitStack() as compiling:
        for kernel in kernels:
            compiling.enter_context(kernel.compiling())
        pending = [(kernel, form) for kernel in kernels for form in kernel.forms(parallel=parallel)]
        for done, (kernel, form) in enumerate(pending):
            if stop is not None and stop():
                return False
            if progress is not None:
                progress(done, len(pending), kernel.name)
            try:
                compile_once(form)
            except KernelError as error:
                better = kernel.blame(error)
                if better is error:
                    raise
                raise better from error
    for kernel in kernels:
        kernel.use_compiled()
    if progress is not None:
        progress(len(pending), len(pending), "")
    return True
