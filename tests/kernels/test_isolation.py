"""Fresh processes: imports, threading layers, forks, the disk cache, and no compiler at all."""

from __future__ import annotations

import ctypes.util
import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import DATA, python

from helixnb_kernels import BUILT_IN, warm_up

pytestmark = pytest.mark.slow

PROGRAMS = Path(__file__).parents[1] / "programs"
PROBE = str(PROGRAMS / "parallel_probe.py")
CALLS = str(PROGRAMS / "parallel_calls.py")
WARM = str(PROGRAMS / "warm.py")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache directory that a process has filled, to be copied and left as it is."""
    directory = tmp_path_factory.mktemp("filled") / "cache"
    done = python(WARM, "parallel", env={"HELIXNB_CACHE_DIR": str(directory)})
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "0", "")
    return directory


def probe(program: str = PROBE, **env: str) -> dict[str, Any]:
    done = python(program, env=env)
    assert done.returncode == 0, done.stderr
    # The last line: TBB may print a warning of its own when the process forks.
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def check_probe(report: dict[str, Any], *, layer: str, safe: bool) -> None:
    assert report["layer"] == report["router"]["layer"] == layer
    assert report["threads"]["batches"] == 60
    assert report["threads"]["wrong"] == 0
    assert report["router"]["right"]
    assert (report["threads"]["parallel"] > 0) is safe
    assert (report["router"]["parallel"] > 0) is safe
    if hasattr(os, "fork"):
        assert report["child"]
        assert report["grandchild"]


def test_openmp() -> None:
    """Under omp several threads launch without harm, and forked children run serial forms."""
    if ctypes.util.find_library("gomp") is None:
        pytest.skip("this system has no libgomp")
    check_probe(probe(NUMBA_THREADING_LAYER="omp", NUMBA_NUM_THREADS="2"), layer="omp", safe=True)


@pytest.mark.parametrize("setting", ["tbb", "default"])
def test_tbb(setting: str) -> None:
    """A tbb package is found in a virtual environment, and is what Numba picks by default."""
    if importlib.util.find_spec("tbb") is None and not list(
        Path(sys.prefix, "lib").glob("libtbb.so.12")
    ):
        pytest.skip("the tbb extra isn't installed")
    check_probe(probe(NUMBA_THREADING_LAYER=setting, NUMBA_NUM_THREADS="2"), layer="tbb", safe=True)


def test_workqueue() -> None:
    """Under workqueue, where two launches at once abort, batches run their serial form."""
    report = probe(NUMBA_THREADING_LAYER="workqueue", NUMBA_NUM_THREADS="2")
    check_probe(report, layer="workqueue", safe=False)


def test_parallel_callables_take_turns_under_workqueue() -> None:
    """Two routers run users' parallel functions one at a time, off the loop, beside batches."""
    report = probe(CALLS, NUMBA_THREADING_LAYER="workqueue", NUMBA_NUM_THREADS="2")
    assert report["layer"] == "workqueue"
    assert (report["wrong"], report["turns"]) == (0, report["calls"])
    assert (report["strategies"], report["here"]) == (["cpu_pool"], False)
    assert report["nested"]
    if hasattr(os, "fork"):
        assert report["child"] == "right"


def test_parallel_callables_are_refused_in_a_child_forked_under_openmp() -> None:
    """The call would end the process; elsewhere under omp they run as other callables do."""
    if ctypes.util.find_library("gomp") is None:
        pytest.skip("this system has no libgomp")
    report = probe(CALLS, NUMBA_THREADING_LAYER="omp", NUMBA_NUM_THREADS="2")
    assert report["layer"] == "omp"
    assert (report["wrong"], report["turns"]) == (0, 0)
    assert report["nested"]
    if hasattr(os, "fork"):
        assert report["child"].startswith("function must not launch Numba's threads here")
        assert "helixnb[tbb]" in report["child"]
        assert "\n" not in report["child"]


def test_without_a_compiler() -> None:
    """NUMBA_DISABLE_JIT=1 runs the kernels as plain Python, with the same answers."""
    program = f"""
import json, itertools
from helixnb_kernels import BUILT_IN, hash_mix, monte_carlo_var, prime_count, reference, warm_up
warm_up(BUILT_IN)
kinds = {{kernel.name: kernel for kernel in BUILT_IN}}
rows = [json.loads(line) for line in open({str(DATA / "original_600.jsonl")!r})]
for kind, kernel in kinds.items():
    some = [r for r in rows if r["kind"] == kind and r["compute_cost"] < 10**6][:6]
    result = kernel.run_batch(
        [kernel.as_inputs(r["inputs"]) for r in some],
        [r["compute_cost"] for r in some], [r["id"] for r in some], threads=2)
    assert not result.parallel
    for row, value in zip(some, result.values, strict=True):
        oracle = getattr(reference, {{"HashMix": "hash_mix_job", "PrimeCount": "prime_count_job",
                                      "MonteCarlo": "monte_carlo_job"}}[kind])
        assert value == oracle(row["inputs"], row["compute_cost"], row["id"]), row
assert hash_mix([1], 2) == reference.hash_mix([1], 2)
assert prime_count(1000) == 168
from helixnb_kernels import kernel
import numpy as np
@kernel(inputs="float64[:]", returns="uint64", shared={{"w": "float64[:]"}})
def user(x, job_id, w):
    if len(x) == 0:
        raise ValueError("empty")
    return job_id * job_id + np.uint64(x[0] * w[0])
user.bind(w=[2.0])
warm_up([user])
rows = [user.as_inputs(row) for row in ([1.0], [])]
big = 2**40 + 1
assert user.solo_call(rows[0], 1, big)() == (big * big + 2) % 2**64
result = user.run_batch(rows, [1, 1], [big, big])
assert (result.values[0], result.failed) == ((big * big + 2) % 2**64, [1])
assert monte_carlo_var([2**64 - 1], 50, 3) == reference.monte_carlo_var([2**64 - 1], 50, 3)
"""
    done = python("-c", program, env={"NUMBA_DISABLE_JIT": "1"})
    assert done.returncode == 0, done.stderr


def test_an_import_does_nothing() -> None:
    """Importing compiles nothing, starts no thread and leaves the threading layer alone.

    Nor does it make Numba's dispatchers, which take time.
    """
    program = """
import gc, threading
from numba.core import event
from numba.core.dispatcher import Dispatcher
with event.install_recorder("numba:compile") as compiled:
    import helixnb, helixnb_kernels
assert not compiled.buffer
assert threading.active_count() == 1
assert helixnb_kernels.threading_layer() is None
made = [each for each in gc.get_objects() if issubclass(type(each), Dispatcher)]
assert not [each for each in made if each.__module__.startswith("helixnb")]
"""
    done = python("-c", program)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("cold", [False, True])
def test_stand_alone_calls_before_a_router(tmp_path: Path, cold: bool) -> None:
    """What the stand-alone functions compiled is what the kernels of a later router call.

    From a warm cache all kernels; from a cold one the one that compiles soonest.
    """
    program = """
import sys
from helixnb_kernels import *
calls = {
    HASH_MIX: lambda: hash_mix([1], 3),
    PRIME_COUNT: lambda: prime_count(1_000),
    MONTE_CARLO: lambda: monte_carlo_var([1], 50, 3),
}
assert {*calls} == {*BUILT_IN}
cold = sys.argv[1:] == ["cold"]
for kernel in [PRIME_COUNT] if cold else BUILT_IN:
    assert calls[kernel]() is not None
    warm_up([kernel], parallel=not cold)
    inputs = kernel.as_inputs([1, 2])
    alone = kernel.solo_call(inputs, 20_000, 3)()
    assert kernel.run_batch([inputs], [20_000], [3]).values == [alone]
"""
    if cold:
        done = python("-c", program, "cold", env={"HELIXNB_CACHE_DIR": str(tmp_path)})
    else:
        warm_up(BUILT_IN)  # what the program reads from the cache
        done = python("-c", program)
    assert done.returncode == 0, done.stderr


def test_parallel_kernels_never_leaves_the_threading_layer_alone() -> None:
    """A router told so can be used in a process that forks later."""
    program = """
import anyio
from helixnb import Decision, Job, Router, RouterConfig
from helixnb_kernels import threading_layer
class Batch:
    def decide(self, job, load, config, estimate):
        return Decision("batch", "test")
async def main():
    config = RouterConfig(cpu_parallelism=2, parallel_kernels="never")
    async with Router(config, policy=Batch()) as router:
        jobs = [Job(id=i, kind="MonteCarlo", compute_cost=9_000_000) for i in range(64)]
        assert all(outcome.met_budget for outcome in await router.submit_many(jobs))
        assert router.stats().parallel_launches == 0
anyio.run(main)
assert threading_layer() is None
"""
    done = python("-c", program)
    assert done.returncode == 0, done.stderr


def test_no_threading_layer_at_all() -> None:
    """Where Numba can load none, one warning says so and batches run on one thread."""
    program = """
import anyio
from helixnb import Decision, Job, Router
class Batch:
    def decide(self, job, load, config, estimate):
        return Decision("batch", "test")
async def main():
    async with Router(policy=Batch()) as router:
        jobs = [Job(id=i, kind="MonteCarlo", compute_cost=9_000_000) for i in range(64)]
        assert all(outcome.met_budget for outcome in await router.submit_many(jobs))
        assert router.stats().parallel_launches == 0
anyio.run(main)
"""
    done = python("-c", program, env={"NUMBA_THREADING_LAYER": "bogus"})
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no threading layer for Numba") == 1


def test_the_cache_is_used(filled: Path) -> None:
    """A second process compiles nothing, and the directory is this user's alone."""
    second = python(WARM, "parallel", env={"HELIXNB_CACHE_DIR": str(filled)})
    assert (second.returncode, second.stdout.strip(), second.stderr) == (0, "1", "")
    (directory,) = filled.iterdir()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_the_cache_has_the_built_in_kernels() -> None:
    """What this process has compiled, another one reads, every form of it."""
    warm_up(BUILT_IN)
    program = """
from helixnb_kernels import BUILT_IN, warm_up
warm_up(BUILT_IN)
forms = [form for kernel in BUILT_IN for form in kernel.forms()]
print(*{sum(form.stats.cache_hits.values()) for form in forms})
"""
    done = python("-c", program)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "1", "")


def test_numbas_own_setting_is_honoured(tmp_path: Path) -> None:
    """NUMBA_CACHE_DIR is where the cache lies if ours isn't named."""
    env = {"HELIXNB_CACHE_DIR": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    assert python(WARM, env=env).returncode == 0
    assert list(tmp_path.rglob("*.nbi"))


@pytest.mark.parametrize("damage", ["truncated", "garbage", "bits"])
def test_a_damaged_cache_heals(filled: Path, tmp_path: Path, damage: str) -> None:
    """Files that can't be read are warned of once, compiled anew, and replaced."""
    cache = shutil.copytree(filled, tmp_path / "cache")
    env = {"HELIXNB_CACHE_DIR": str(cache)}
    files = [file for file in cache.rglob("*") if file.suffix in (".nbi", ".nbc")]
    assert files
    for file in files:
        file.write_bytes(DAMAGES[damage](file))
    damaged = python(WARM, env=env)
    assert damaged.returncode == 0, damaged.stderr
    assert damaged.stdout.strip() == "0"
    assert damaged.stderr.count("kernel cache left aside") == 1
    healed = python(WARM, env=env)
    assert (healed.stdout.strip(), healed.stderr) == ("1", "")


def _flip_bits(file: Path) -> bytes:
    """Change machine code, which would crash the process rather than raise."""
    content = bytearray(file.read_bytes())
    if file.suffix == ".nbc":
        code = content.index(b"\x7fELF") + 64  # what follows the header of an object file
        for i in range(code, code + 200, 7):
            content[i] ^= 0x55
    return bytes(content)


DAMAGES: dict[str, Callable[[Path], bytes]] = {
    "truncated": lambda file: file.read_bytes()[:20],
    "garbage": lambda _: b"\x80nonsense",
    "bits": _flip_bits,
}


def _read_only(tmp_path: Path) -> Path:
    """Return a directory that can't be written to, by root neither."""
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        return tmp_path
    (tmp_path / "file").touch()
    return tmp_path / "file" / "cache"


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_a_cache_that_cant_be_written(tmp_path: Path) -> None:
    """Kernels compile in the process, and one warning says why and what to do."""
    done = python(WARM, env={"HELIXNB_CACHE_DIR": str(_read_only(tmp_path))})
    assert (done.returncode, done.stdout.strip()) == (0, "0")
    assert done.stderr.count("kernel cache left aside") == 1
    assert "HELIXNB_CACHE_DIR" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_a_cache_that_others_can_write_is_refused(filled: Path, tmp_path: Path) -> None:
    """Cache files run code when they are read, so only this user may write them."""
    cache = shutil.copytree(filled, tmp_path / "cache")
    (directory,) = cache.iterdir()
    directory.chmod(0o770)
    done = python(WARM, env={"HELIXNB_CACHE_DIR": str(cache)})
    assert (done.returncode, done.stdout.strip()) == (0, "0")
    assert "can be written by, another user" in done.stderr


def test_two_processes_warm_up_at_once(tmp_path: Path) -> None:
    """They don't disturb each other, and leave a cache that a third one can use."""
    env = {**os.environ, "HELIXNB_CACHE_DIR": str(tmp_path)}
    processes = [
        subprocess.Popen(
            [sys.executable, WARM],
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(3)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
    assert python(WARM, env=env).stdout.strip() == "1"
