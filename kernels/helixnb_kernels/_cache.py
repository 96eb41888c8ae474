"""Where compiled kernels are kept between processes: in files that nobody else can write.

What can't be digested, read or written is compiled: the cache is an optimisation, and never raises.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import pickle
import platform
import re
import sys
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba
import numpy as np
from numba.core import caching, config, serialize
from numba.misc.appdirs import user_cache_dir

from helixnb_kernels._extensions import extensions
from helixnb_kernels._fingerprint import Digest
from helixnb_kernels._private import find_anothers, is_private_file

logger = logging.getLogger("helixnb.kernels")

# Settings of Numba's that no machine code depends on, and that differ between the processes of one
# service, or the machines that share a cache. A new setting of Numba's counts.
_IRRELEVANT = frozenset(
    {
        *("CACHE_DIR", "CACHE_LOCATOR_CLASSES", "DEBUG_CACHE", "FUNCTION_CACHE_SIZE"),
        *("THREADING_LAYER", "THREADING_LAYER_PRIORITY"),
        *("NUMBA_NUM_THREADS", "NUMBA_DEFAULT_NUM_THREADS"),
        *("COLOR_SCHEME", "DISABLE_PERFORMANCE_WARNINGS", "FULL_TRACEBACKS", "SHOW_HELP"),
    }
)


# The body of a parallel loop, in LLVM's text.
_PARALLEL_BODY = re.compile(
    r'^define [^\n]*?@"?_ZN[^\n(]*__numba_parfor_gufunc.*?^}', re.DOTALL | re.MULTILINE
)


def attach(dispatcher: Any, *, sources: tuple[Any, ...]) -> None:
    """Let `dispatcher` read and write the disk cache, where there is one to use.

    Each form of a function has a directory of its own, named after a digest of all that its
    machine code comes from, of which Numba's own key knows a part. Where that can't be digested,
    or others have changed how Numba compiles, nothing is cached. Kernels of this package are read
    nevertheless, as they are when nobody has.

    Parameters
    ----------
    dispatcher
        Of Numba, with all its options, not compiled yet.
    sources
        What the machine code comes from, beside the function's own code, for functions from
        outside this package; those of the package are in the directory's name.
    """
    root = directory()
    if root is None:
        return
    if not all(map(_is_own, sources)) and (found := extensions()):
        _compile_here(dispatcher, f"{', '.join(found)} has extended Numba")
        return
    digest = Digest()
    key = _form_key(digest, dispatcher, sources)
    if key is None:
        _compile_here(dispatcher, "it depends on something that can't be digested")
        return
    if stale := _find_stale(dispatcher, sources, digest.callees):
        _compile_here(dispatcher, f"{stale} may have been compiled with other values")
        return
    try:
        # What `dispatcher.enable_caching` does, with a cache of ours.
        dispatcher._cache = _PrivateCache(dispatcher, sources, root / key)  # noqa: SLF001
    except (OSError, TypeError, RuntimeError) as error:
        _leave_aside(error)


@functools.cache
def directory() -> Path | None:
    """Return the directory of compiled kernels, or None where there can't be one.

    It lies in ``HELIXNB_CACHE_DIR``, else ``NUMBA_CACHE_DIR``, else the user's cache directory,
    and is named after this package's sources, versions and the CPU. Cache files are pickles:
    reading one runs what it says. So all must belong to the user or to root, and nobody else may
    write to it or to a directory above it. It may be read-only.
    """
    base = os.environ.get("HELIXNB_CACHE_DIR") or config.CACHE_DIR or user_cache_dir("helixnb")
    try:
        path = Path(os.path.realpath(Path(base) / f"kernels-{_key()}"))
        for each in reversed(path.parents):
            each.mkdir(mode=0o755, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        anothers = find_anothers(path)
    except OSError as error:
        _leave_aside(error)
        return None
    if anothers is not None:
        _leave_aside(f"{anothers} belongs to, or can be written by, another user")
        return None
    return path


def _key() -> str:
    """Digest what all machine code depends on: this package, versions, and the CPU.

    The CPU is in Numba's key too: here it keeps an index file to one entry, so that two processes
    on different CPUs that share a home directory can't interleave their writes to it.
    """
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    facts = (
        sys.version,
        sys.implementation.cache_tag,
        platform.machine(),
        numba.__version__,
        llvmlite.__version__,
        llvm.llvm_version_info,
        np.__version__,  # its constants are compiled in
        llvm.get_process_triple(),
        llvm.get_host_cpu_name(),
        llvm.get_host_cpu_features().flatten(),
    )
    digest.update(repr(facts).encode())
    return digest.hexdigest()[:16]


def _form_key(digest: Digest, dispatcher: Any, sources: tuple[Any, ...]) -> str | None:
    own = dispatcher.py_func.__code__
    return digest.of(_settings(), dispatcher.targetoptions, own, *sources)


# By function, the digest of what it was compiled with.
_compiled_with: weakref.WeakKeyDictionary[Any, str | None] = weakref.WeakKeyDictionary()


def _find_stale(dispatcher: Any, sources: tuple[Any, ...], callees: list[Any]) -> str | None:
    """Name a function whose machine code is there already, but may come from other values.

    That is one compiled before a global of its own was bound anew, or before it was seen here, or
    read from Numba's own cache, whose key has no globals.
    """
    functions = [(each, each is not dispatcher.py_func) for each in sources if _is_function(each)]
    functions += [(each.py_func, bool(each.overloads)) for each in callees]
    for function, is_compiled in functions:
        now = Digest(follow=False).of(function)
        if not is_compiled:
            _compiled_with[function] = now
        elif now is None or _compiled_with.get(function) != now:
            return str(function.__qualname__)
    for callee in callees:
        if not isinstance(callee._cache, caching.NullCache):  # noqa: SLF001
            return str(callee.py_func.__qualname__)
    return None


def _is_function(source: Any) -> bool:
    return isinstance(source, types.FunctionType)


def _settings() -> str:
    """Return the settings of Numba's, as they are now, that machine code may depend on."""
    return repr(
        [
            (name, value)
            for name, value in sorted(vars(config).items())
            if name.isupper() and name not in _IRRELEVANT and "CUDA" not in name
        ]
    )


def _is_own(source: Any) -> bool:
    """Tell whether a source is part of this package, or the text that a form is made of."""
    if not _is_function(source):
        return isinstance(source, str)
    return str(source.__globals__.get("__name__")).partition(".")[0] == "helixnb_kernels"


class _Locator(caching._CacheLocator):  # type: ignore[misc]  # untyped  # noqa: SLF001
    """Name one form's directory. It is named after the code, so nothing in it goes stale."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def ensure_cache_path(self) -> None:
        self._path.mkdir(mode=0o700, exist_ok=True)

    def get_cache_path(self) -> str:
        return str(self._path)

    def get_source_stamp(self) -> str:
        return self._path.name

    def get_disambiguator(self) -> str:
        return ""


class _Impl(caching.CompileResultCacheImpl):  # type: ignore[misc]  # untyped
    def __init__(self, path: Path) -> None:
        # Numba's own looks for a place, which NUMBA_CACHE_LOCATOR_CLASSES may give.
        self._locator = _Locator(path)
        self._filename_base = "kernel"

    def check_cachable(self, cres: Any) -> bool:
        """Tell whether the code would run in another process.

        It doesn't if an address is compiled into it, and Numba's parallel loops that print wait for
        ever once they are read from a file.
        """
        library = cres.library
        bodies = _PARALLEL_BODY.findall(library.get_llvm_str())
        return (
            not library.has_dynamic_globals
            and all(each.can_cache for each in cres.lifted)
            and not any("numba_gil_ensure" in body for body in bodies)
        )

    def reduce(self, cres: Any) -> tuple[bytes, bytes]:
        """Seal the machine code: a damaged byte of it would crash the process, not raise."""
        code = serialize.dumps(super().reduce(cres))
        return hashlib.sha256(code).digest(), code

    def rebuild(self, target_context: Any, payload: tuple[bytes, bytes]) -> Any:
        digest, code = payload
        if hashlib.sha256(code).digest() != digest:
            raise ValueError("a cache file is damaged")
        return super().rebuild(target_context, pickle.loads(code))  # noqa: S301  # see `directory`


class _Files(caching.IndexDataCacheFile):  # type: ignore[misc]  # untyped
    """An index and what it lists, which are read only if nobody else can have written them."""

    def _load_index(self) -> Any:
        _check_private(self._cache_path, self._index_path)
        return super()._load_index()

    def _load_data(self, name: str) -> Any:
        _check_private(self._data_path(name))
        return super()._load_data(name)

    @contextlib.contextmanager
    def _open_for_write(self, filepath: str) -> Iterator[Any]:
        with super()._open_for_write(filepath) as file:
            if os.name == "posix":
                os.fchmod(file.fileno(), 0o600)  # whatever the umask is
            yield file


def _check_private(*paths: str) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            if not is_private_file(path):
                raise PermissionError(f"{path} belongs to, or can be written by, another user")


class _PrivateCache(caching.FunctionCache):  # type: ignore[misc]  # untyped
    """A cache that is an optimisation only: it never raises, and replaces what it can't read."""

    def __init__(self, dispatcher: Any, sources: tuple[Any, ...], path: Path) -> None:
        self._impl_class = lambda _: _Impl(path)
        super().__init__(dispatcher.py_func)
        self._dispatcher = dispatcher
        self._sources = sources
        self._key = path.name
        self._cache_file = _Files(str(path), self._impl.filename_base, self._key)

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        """Leave out the code and closure, which the directory is named after.

        Numba pickles a closure for its key, which gives other bytes in each process.
        """
        return sig, codegen.magic_tuple()

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
            if found := extensions():
                _compile_here(self._dispatcher, f"{', '.join(found)} has extended Numba")
            elif not self._impl.check_cachable(data):
                _compile_here(self._dispatcher, "it has an address or prints in a parallel loop")
            # A global may have changed while it was compiled.
            elif _form_key(Digest(), self._dispatcher, self._sources) == self._key:
                super().save_overload(sig, data)
        except Exception as error:
            _leave_aside(error)


_told: set[str] = set()


def _compile_here(dispatcher: Any, why: str) -> None:
    function = dispatcher.py_func
    line = f"{function.__module__}.{function.__qualname__} compiles in each process: {why}"
    if line not in _told:
        _told.add(line)
        with contextlib.suppress(Exception):  # an application's own handler may raise
            logger.debug(line)


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
