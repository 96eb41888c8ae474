"""The kernel cache over restarts: what is edited in between, and who may write where it lies."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from numba.core import config
from support import python

from helixnb_kernels._cache import _IRRELEVANT, _settings, directory
from helixnb_kernels._private import is_private

pytestmark = pytest.mark.slow

WARM = str(Path(__file__).parents[1] / "programs" / "warm.py")
RESTARTED = """
import logging
import numpy as np, numba
from numba.extending import overload, overload_method
from helixnb_kernels import kernel, warm_up

class Rounding(float):
    def __repr__(self):
        return f"{float(self):.2f}"

SETTING = 1.0
ROUNDED = Rounding(0.01232)

@numba.njit
def scaled(x):
    return x * SETTING

@kernel(inputs="float64[:]", returns="float64")
def user(x):
    return BODY

EXTRA

logging.basicConfig(level=logging.DEBUG, format="%(message)s")
logging.getLogger("helixnb.kernels").setLevel(logging.DEBUG)
warm_up([user], parallel=False)
print(user.solo_call(user.as_inputs([1.0]), 1, 1)(), sum(user.solo.stats.cache_hits.values()))
"""
OVERLOAD = "overload(np.gradient)(lambda x: lambda x: x[0] * {})"
METHOD = "overload_method(numba.types.Array, 'scaled')(lambda x: lambda x: x[0] * {})"
# A body, what each of several starts adds to the program, with its answer and cache hits, and by
# what a start is told that nothing is cached.
RESTARTS: dict[str, tuple[str, list[tuple[str, str]], str]] = {
    "unchanged": ("scaled(x[0])", [("", "1.0 0"), ("# a comment\n", "1.0 1")], "never"),
    "overload": (
        "np.gradient(x)",
        [(OVERLOAD.format(4.0), "4.0 0"), (OVERLOAD.format(3.0), "3.0 0")],
        "over",
    ),
    "method": (
        "x.scaled()",
        [(METHOD.format(4.0), "4.0 0"), (METHOD.format(3.0), "3.0 0")],
        "over",
    ),
    "subclass of float": (
        "x[0] * ROUNDED",
        [("", "0.01232 0"), ("ROUNDED = Rounding(0.01234)", "0.01234 0")],
        "ROUNDED",
    ),
    "compiled too early": (
        "scaled(x[0])",
        [("scaled(1.0); SETTING = 2.0", "1.0 0"), ("SETTING = 2.0", "2.0 0")],
        "scaled(1.0)",
    ),
}


@pytest.mark.parametrize(("body", "starts", "told"), RESTARTS.values(), ids=RESTARTS)
def test_a_restart_answers_by_what_is_there_now(
    body: str, starts: list[tuple[str, str]], told: str, tmp_path: Path
) -> None:
    """Each start has the same cache directory, and the answer that it would have without one."""
    program = tmp_path / "program.py"
    for extra, expected in starts:
        program.write_text(RESTARTED.replace("BODY", body).replace("EXTRA", extra))
        done = python(str(program), env={"HELIXNB_CACHE_DIR": str(tmp_path / "cache")})
        assert (done.returncode, done.stdout.strip()) == (0, expected), done.stderr
        assert ("compiles in each process" in done.stderr) == (told in extra + body), done.stderr


# What a module registers with Numba, and whether code that doesn't name it may depend on it.
EXTENSIONS = {
    "overload of a library": (True, "@overload(np.gradient)\ndef _(x): return lambda x: x"),
    "overload of a builtin": (True, "@overload(sorted)\ndef _(x): return lambda x: x"),
    "overload of its own": (False, "def own(x): ...\n@overload(own)\ndef _(x): return own"),
    "method": (True, "@overload_method(nb.Array, 'mine')\ndef _(x): return lambda x: x"),
    "attribute": (True, "@overload_attribute(nb.Array, 'own')\ndef _(x): return lambda x: x"),
    "template": (True, "@infer_global(max)\nclass T(AbstractTemplate): key = max"),
    "attributes": (True, "@infer_getattr\nclass A(AttributeTemplate): key = nb.Float"),
    "callable": (True, "@type_callable(min)\ndef _(context): return lambda x: x"),
    "lowering": (True, "@lower_builtin(min, nb.int64)\ndef _(c, b, s, a): return a[0]"),
    "getattr": (True, "@lower_getattr(nb.Float, 'x')\ndef _(c, b, t, v): return v"),
    "cast": (True, "@lower_cast(nb.int64, nb.float64)\ndef _(c, b, f, t, v): return v"),
    "constant": (True, "@lower_constant(nb.Float)\ndef _(c, b, t, v): return v"),
    "rewrite": (True, "@register_rewrite('before-inference')\nclass R(Rewrite): ..."),
    "typeof": (True, "@typeof_impl.register(float)\ndef _(value, context): return nb.int64"),
    "type of its own": (
        False,
        """
class Own: ...
class T(nb.Type): ...
register_model(T)(models.OpaqueModel)
@typeof_impl.register(Own)
def _(value, context): return T("own")
@lower_builtin(max, T)
def _(c, b, s, a): return a[0]
@overload_method(T, "mine")
def _(x): return lambda x: x
@box(T)
def _(t, v, c): return v
""",
    ),
    "intrinsic": (False, "@intrinsic\ndef own(context, x): return x(x), lambda c, b, s, a: a[0]"),
    "jitable": (False, "@register_jitable\ndef own(x): return x"),
    "njit": (False, "@numba.njit\ndef own(x): return x\nown(1)"),
    "vectorize": (False, "@numba.vectorize\ndef own(x): return x\nown(1)"),
}
EXTENDING = """
import json, sys, numba, numpy as np
from numba import types as nb
from numba.core.imputils import lower_builtin, lower_cast, lower_constant, lower_getattr
from numba.core.rewrites import Rewrite, register_rewrite
from numba.core.typing.templates import *
from numba.core.typing.templates import infer_getattr, infer_global
from numba.extending import *
from helixnb_kernels._extensions import extensions
found = [extensions()]
for name, (_, source) in json.loads(sys.argv[1]).items():
    exec(source, {**globals(), "__name__": name})
    extensions()
print(json.dumps([*found, extensions()]))
"""


def test_what_extends_numba_is_found() -> None:
    """Numba and helixnb extend nothing; others do where code that doesn't name them is reached."""
    done = python("-c", EXTENDING, json.dumps(EXTENSIONS))
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout)
    assert before == []
    assert after == sorted(name for name, (reaches_any, _) in EXTENSIONS.items() if reaches_any)


def test_numba_opt_0_is_cached(tmp_path: Path) -> None:
    """Unoptimised code is read by a second process as well."""
    for hits in ("0", "1"):
        done = python(WARM, env={"HELIXNB_CACHE_DIR": str(tmp_path), "NUMBA_OPT": "0"})
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, hits, "")


def test_settings_of_numba_are_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each counts, as it is now, but for those named as irrelevant, which exist."""
    names = {name for name in vars(config) if name.isupper() and "CUDA" not in name}
    assert names >= _IRRELEVANT
    assert {"OPT", "BOUNDSCHECK", "CPU_NAME", "ENABLE_AVX", "DEBUGINFO_DEFAULT"} <= names
    before = _settings()
    for name in names:
        with monkeypatch.context() as patch:
            patch.setattr(config, name, "another")
            assert (_settings() == before) is (name in _IRRELEVANT), name


PRINTING = """
import numba
from helixnb_kernels import kernel, warm_up

@kernel(inputs="float64[:]", returns="float64")
def user(x):
    return x[0]

@user.batch()
def batch(inputs, offsets, parts, failed, out):
    for part in numba.prange(len(parts) - 1):
        for i in range(parts[part], parts[part + 1]):
            print("row", i)
            out[i] = inputs[offsets[i]]

warm_up([user])
rows = [user.as_inputs([float(i)]) for i in range(4)]
assert user.run_batch(rows, [1] * 4, [1] * 4, threads=2).values == [0.0, 1.0, 2.0, 3.0]
"""


def test_a_parallel_loop_that_prints_ends(tmp_path: Path) -> None:
    """Numba's own code for it, read from a file, waits for ever, so it is compiled each time."""
    for _ in range(2):
        done = python("-c", PRINTING, env={"HELIXNB_CACHE_DIR": str(tmp_path)})
        assert (done.returncode, done.stdout.count("row")) == (0, 4), done.stderr


ROOT, USER, PEER = 0, 1000, 1001
OWN_GROUP, SHARED = 1000, 100
# Mode, owner and group of a path, and whether it will do to hold the cache, and to lead to it.
STATUSES = [
    (0o40700, USER, SHARED, True, True),
    (0o40755, USER, SHARED, True, True),
    (0o40755, ROOT, ROOT, True, True),
    (0o100644, ROOT, ROOT, True, True),
    (0o40755, PEER, SHARED, False, False),
    (0o100600, PEER, SHARED, False, False),
    (0o100666, USER, OWN_GROUP, False, False),
    (0o40775, USER, OWN_GROUP, False, True),
    (0o40775, USER, SHARED, False, False),
    (0o40775, ROOT, SHARED, False, False),
    (0o40777, USER, OWN_GROUP, False, False),
    (0o41777, ROOT, ROOT, False, True),
    (0o41777, PEER, ROOT, False, False),
    (0o120777, USER, OWN_GROUP, False, False),
]


@pytest.mark.parametrize(("mode", "owner", "group", "holds", "leads"), STATUSES)
def test_who_can_write(mode: int, owner: int, group: int, holds: bool, leads: bool) -> None:
    """Only the user and root may, but for a sticky directory, or a group of the user's alone."""
    status: Any = SimpleNamespace(st_mode=mode, st_uid=owner, st_gid=group)
    assert is_private(status, user=USER, groups={OWN_GROUP}) is holds
    assert is_private(status, user=USER, groups={OWN_GROUP}, above=True) is leads


as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user"
)
SERVICE = 54321  # in no list of users, as in many containers
AS_SERVICE = f"""
import os, pathlib, sys, numba, helixnb_kernels
program = pathlib.Path(sys.argv[1]).read_text()
numba.njit(lambda x: x)(numba.get_num_threads())  # modules may be unreadable later
os.setgroups([]), os.setgid({SERVICE}), os.setuid({SERVICE})
exec(program, {{"__name__": "program"}})
"""


@pytest.fixture(scope="module")
def built() -> Iterator[Path]:
    """Return a cache that root has filled and that everybody can read, to be left as it is."""
    with tempfile.TemporaryDirectory() as base:
        Path(base).chmod(0o755)
        cache = Path(base, "cache")
        done = python(WARM, env={"HELIXNB_CACHE_DIR": str(cache)})
        assert (done.returncode, done.stderr) == (0, "")
        subprocess.run(["chmod", "-R", "a+rX", str(cache)], check=True)
        yield cache


@pytest.fixture
def image(built: Path) -> Iterator[Path]:
    """Return a copy of it."""
    copy = built.with_name("copy")
    yield shutil.copytree(built, copy)
    shutil.rmtree(copy)


def start_service(cache: Path, program: str = WARM) -> tuple[str, int]:
    """Return what a process of another user prints, and how often it warns."""
    done = python("-c", AS_SERVICE, program, env={"HELIXNB_CACHE_DIR": str(cache)})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr.count("kernel cache left aside")


@as_root
def test_a_cache_that_root_has_built_is_read(built: Path) -> None:
    """A service's user reads what an image brings, without a word, and changes nothing."""
    before = sorted(built.rglob("*"))
    assert start_service(built) == ("1", 0)
    assert sorted(built.rglob("*")) == before


@as_root
def test_a_gap_in_a_read_only_cache_is_told_once(image: Path) -> None:
    """What is missing compiles in the process, and nothing else does."""
    for number, entry in enumerate(sorted(image.glob("kernels-*/*"))):
        if number % 2:
            shutil.rmtree(entry)
    hits, warnings = start_service(image)
    assert (sorted(hits.split()), warnings) == (["0", "1"], 1)


READING = """
import helixnb_kernels
from helixnb_kernels.hash_mix import _chain
helixnb_kernels.hash_mix([1], 10)
print(sum(_chain.dispatcher.stats.cache_hits.values()))
"""


@as_root
def test_files_that_others_may_have_written_are_not_read(image: Path) -> None:
    """Whatever directory they lie in, since reading a file runs what it says."""
    for file in image.rglob("*.nbc"):
        os.chown(file, PEER, PEER)
    program = image / "program.py"
    program.write_text(READING)
    assert start_service(image, str(program)) == ("0", 1)


def _untouched(cache: Path) -> None:
    """Leave it as it is."""


def _above_is_a_peers(cache: Path) -> None:
    os.chown(cache, PEER, PEER)


def _above_is_a_groups(cache: Path) -> None:
    os.chown(cache, ROOT, SHARED)
    cache.chmod(0o775)


def _above_is_everyones(cache: Path) -> None:
    cache.chmod(0o777)


def _above_is_sticky(cache: Path) -> None:
    cache.chmod(0o1777)


def _it_is_a_peers(cache: Path) -> None:
    (path,) = cache.glob("kernels-*")
    os.chown(path, PEER, PEER)


def _it_is_a_link_to_a_peers(cache: Path) -> None:
    (path,) = cache.glob("kernels-*")
    moved = path.rename(cache / "moved")
    os.chown(moved, PEER, PEER)
    path.symlink_to(moved)


def _it_is_a_link_to_its_own(cache: Path) -> None:
    (path,) = cache.glob("kernels-*")
    path.symlink_to(path.rename(cache / "moved"))


@as_root
@pytest.mark.parametrize(
    ("tamper", "is_used"),
    [
        (_untouched, True),
        (_above_is_sticky, True),
        (_it_is_a_link_to_its_own, True),
        (_above_is_a_peers, False),
        (_above_is_a_groups, False),
        (_above_is_everyones, False),
        (_it_is_a_peers, False),
        (_it_is_a_link_to_a_peers, False),
    ],
)
def test_a_directory_that_others_can_replace_is_not_used(
    tamper: Any, is_used: bool, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor one below it, however private that is itself."""
    tamper(image)
    monkeypatch.setenv("HELIXNB_CACHE_DIR", str(image))
    os.seteuid(SERVICE)
    try:
        found = directory.__wrapped__()
    finally:
        os.seteuid(ROOT)
    assert (found is not None) is is_used


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_files_are_private_whatever_the_umask_is(tmp_path: Path) -> None:
    """A later process reads what one with umask 0 has written."""
    program = tmp_path / "program.py"
    program.write_text("import os\nos.umask(0)\n" + READING)
    env = {"HELIXNB_CACHE_DIR": str(tmp_path / "new" / "cache")}
    for hits in ("0", "1"):
        done = python(str(program), env=env)
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, hits, "")
    modes = {stat.S_IMODE(each.stat().st_mode) for each in (tmp_path / "new").rglob("*")}
    assert modes == {0o755, 0o700, 0o600}
