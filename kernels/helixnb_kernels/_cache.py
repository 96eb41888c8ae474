"""Where compiled kernels are kept between processes: a private directory, left aside if unsafe."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import pickle
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numba.core import caching, config, serialize
from numba.misc.appdirs import user_cache_dir

from helixnb_kernels._fingerprint import fingerprint

logger = logging.getLogger("helixnb.kernels")


def attach(dispatcher: Any, *, parallel: bool, sources: tuple[Any, ...]) -> None:
    """Let `dispatcher` read and write the disk cache, where there is one to use.

    Numba's key covers neither ``parallel`` nor other options, so the two forms of one Python
    function live in directories of their own. `sources` are what the machine code comes from,
    for functions from outside this package; where they can't be digested, nothing is cached.
    """
    root = directory()
    key = fingerprint(*sources) if sources else "own"
    if root is None or key is None:
        return
    try:
        # What `dispatcher.enable_caching` does, with a cache of ours.
        dispatcher._cache = _PrivateCache(  # noqa: SLF001
            dispatcher.py_func, root / key / ("parallel" if parallel else "serial")
        )
    except (OSError, TypeError, RuntimeError) as error:
        _leave_aside(error)


@functools.cache
def directory() -> Path | None:
    """Return the private directory of compiled kernels, or None where there can't be one.

    It lies in ``HELIXNB_CACHE_DIR``, else ``NUMBA_CACHE_DIR``, else the user's cache directory,
    and is named after this package's sources and the CPU. Cache files are pickles: reading one
    runs what it says, so a directory that another user can write to is refused.
    """
    base = os.environ.get("HELIXNB_CACHE_DIR") or config.CACHE_DIR or user_cache_dir("helixnb")
    try:
        path = Path(base) / f"kernels-{_key()}"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        _leave_aside(error)
        return None
    if os.name == "posix" and (
        status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    ):
        _leave_aside(f"{path} belongs to, or can be written by, another user")
        return None
    return path


def _key() -> str:
    """Digest what Numba's own key leaves out: callees in other files, and checks compiled in.

    The CPU is in both keys: here it keeps an index file to one entry, so that two processes on
    different CPUs that share a home directory can't interleave their writes to it.
    """
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    settings = (
        np.__version__,  # its constants are compiled in
        llvm.get_host_cpu_name(),
        llvm.get_host_cpu_features().flatten(),
        config.CPU_NAME,
        config.CPU_FEATURES,
        config.BOUNDSCHECK,
        config.OPT,
        config.ENABLE_AVX,
    )
    digest.update(repr(settings).encode())
    return digest.hexdigest()[:16]


class _Locator(caching._CacheLocator):  # type: ignore[misc]  # untyped  # noqa: SLF001
    """Name one function's directory. It is named after the code, so nothing in it goes stale."""

    def __init__(self, py_func: Any, path: Path) -> None:
        self._path = path
        self._line = py_func.__code__.co_firstlineno
        self.ensure_cache_path()

    def get_cache_path(self) -> str:
        return str(self._path)

    def get_source_stamp(self) -> str:
        return self._path.name

    def get_disambiguator(self) -> str:
        return str(self._line)


class _Impl(caching.CompileResultCacheImpl):  # type: ignore[misc]  # untyped
    def __init__(self, py_func: Any, path: Path) -> None:
        self._locator_classes = (SimpleNamespace(from_function=lambda *_: _Locator(py_func, path)),)
        super().__init__(py_func)

    def reduce(self, cres: Any) -> tuple[bytes, bytes]:
        """Seal the machine code: a damaged byte of it would crash the process, not raise."""
        code = serialize.dumps(super().reduce(cres))
        return hashlib.sha256(code).digest(), code

    def rebuild(self, target_context: Any, payload: tuple[bytes, bytes]) -> Any:
        digest, code = payload
        if hashlib.sha256(code).digest() != digest:
            raise ValueError("a cache file is damaged")
        return super().rebuild(target_context, pickle.loads(code))  # noqa: S301  # see `directory`


class _PrivateCache(caching.FunctionCache):  # type: ignore[misc]  # untyped
    """A cache that is an optimisation only: it never raises, and replaces what it can't read."""

    def __init__(self, py_func: Any, path: Path) -> None:
        self._impl_class = functools.partial(_Impl, path=path)
        super().__init__(py_func)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:
            _leave_aside(error)
        with contextlib.suppress(OSError):
            self.flush()
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception as error:
            _leave_aside(error)


_warned = False


def _leave_aside(why: object) -> None:
    global _warned
    level = logging.DEBUG if _warned else logging.WARNING
    _warned = True
    with contextlib.suppress(Exception):  # an application's own handler may raise
        logger.log(
            level,
            "kernel cache left aside, kernels compile in each process: %s; "
            "HELIXNB_CACHE_DIR names a directory that only this user can write to",
            why,
        )
