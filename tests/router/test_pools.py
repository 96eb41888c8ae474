"""The warning of libraries that have several threads for each call beside several slots."""

from __future__ import annotations

import sys
import types
from typing import Any

import anyio
import numpy as np
import pytest
from support import LARGE, Always, Gate, job, python, router

from helixnb import Router, Strategy
from helixnb._observe import pools
from helixnb._observe.pools import look_at_pools


@pytest.fixture(autouse=True)
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the warning be one that this process hasn't given."""
    monkeypatch.setattr(pools, "_unsaid", ["the warning"])


def have(monkeypatch: pytest.MonkeyPatch, **threads: int | None) -> None:
    """Let threadpoolctl tell of these libraries."""
    told = [{"internal_api": name, "num_threads": n} for name, n in threads.items()]
    module = types.SimpleNamespace(threadpool_info=lambda: told)
    monkeypatch.setitem(sys.modules, "threadpoolctl", module)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "helixnb"]


async def run_beside_another(r: Router, **fields: Any) -> None:
    """Run a callable while another job holds a slot, and let what comes of that begin."""
    gate = Gate()
    await r.add_kernel(gate.kernel)
    ticket = r.submit_soon(job(1, "Gate"))
    await gate.begun()
    await r.run(len, "four", **{"compute_cost": LARGE, **fields})
    await anyio.wait_all_tasks_blocked()
    gate.open()
    await ticket.wait()


@pytest.mark.anyio
async def test_it_is_given_once_a_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When a callable first comes while a slot is busy, and not for the routers after that."""
    have(monkeypatch, openblas=4)
    for number in range(2):
        async with router(policy=Always(Strategy.SPAWN)) as r:
            await r.run(len, "alone", compute_cost=LARGE)
            await anyio.wait_all_tasks_blocked()
            assert len(warnings(caplog)) == number
            await run_beside_another(r)
        (warning,) = warnings(caplog)
    assert "callables run in 2 slots at once, and openblas has 4 threads for each call" in warning
    assert "OPENBLAS_NUM_THREADS=1 in its environment, or call threadpoolctl" in warning


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("settings", "fields"), [({"cpu_parallelism": 1}, {}), ({}, {"compute_cost": 1})]
)
async def test_not_with_one_slot_or_for_what_is_cheap(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, Any],
    fields: dict[str, Any],
) -> None:
    """Nothing runs beside anything, or on the event loop."""
    have(monkeypatch, openblas=4)
    async with router(policy=Always(Strategy.INLINE), **settings) as r:
        gate = Gate()
        await r.add_kernel(gate.kernel)
        if not fields:
            await r.run(len, "four", compute_cost=LARGE)
            await r.run(len, "four", compute_cost=LARGE)
        else:
            for _ in range(2):
                await r.run(len, "four", **fields)
        await anyio.wait_all_tasks_blocked()
    assert not warnings(caplog)


async def look(numba_layer: str | None = "tbb") -> None:
    await look_at_pools(2, numba_layer)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("threads", "numba_layer", "expected"),
    [
        ({"openblas": 1}, "tbb", ""),
        ({"openblas": None}, "tbb", ""),
        ({"something": 8}, "tbb", ""),
        ({"openblas": 1, "openmp": 8}, "omp", ""),
        ({"openblas": 1, "openmp": 8}, "tbb", "openmp has 8 threads for each call"),
        ({"mkl": 8, "openmp": 8}, "tbb", "MKL_NUM_THREADS=1 OMP_NUM_THREADS=1"),
        ({"blis": 8}, None, "BLIS_NUM_THREADS=1 in its environment, or call threadpoolctl"),
    ],
)
async def test_what_is_warned_of(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    threads: dict[str, int],
    numba_layer: str | None,
    expected: str,
) -> None:
    """Libraries with several threads; not the OpenMP that Numba's own layer uses."""
    have(monkeypatch, **threads)
    await look(numba_layer)
    said = warnings(caplog)
    assert len(said) == bool(expected)
    assert expected in "".join(said)
    assert ("threadpoolctl" in "".join(said)) is (bool(said) and "openmp" not in threads)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("built_with", "environment", "expected"),
    [
        ("scipy-openblas", {}, "openblas may have 6 threads"),
        ("scipy-openblas", {"OPENBLAS_NUM_THREADS": "3"}, "openblas may have 3 threads"),
        ("scipy-openblas", {"OPENBLAS_NUM_THREADS": "1"}, ""),
        ("scipy-openblas", {"OMP_NUM_THREADS": "1"}, ""),
        ("scipy-openblas", {"OPENBLAS_NUM_THREADS": "0", "OMP_NUM_THREADS": "x"}, "may have 6"),
        ("mkl-sdl", {"OPENBLAS_NUM_THREADS": "1"}, "mkl may have 6 threads"),
        ("accelerate", {}, ""),
    ],
)
async def test_without_threadpoolctl(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    built_with: str,
    environment: dict[str, str],
    expected: str,
) -> None:
    """NumPy says what it was built with, and the environment what it may use."""
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    config = {"Build Dependencies": {"blas": {"name": built_with}}}
    monkeypatch.setattr(np, "show_config", lambda mode: config)
    monkeypatch.setattr(pools, "available_cpus", lambda: 6)
    for names in pools.VARIABLES.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    await look()
    said = "".join(warnings(caplog))
    assert expected in said
    assert bool(said) is bool(expected)
    assert ("pip install 'helixnb[blas]'" in said) is bool(expected)


@pytest.mark.anyio
async def test_a_library_that_cant_be_asked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What threadpoolctl raises concerns no job, and no router."""
    monkeypatch.setitem(sys.modules, "threadpoolctl", types.SimpleNamespace())
    async with router(policy=Always(Strategy.SPAWN)) as r:
        await run_beside_another(r)
        assert r.state == "open"
    assert not warnings(caplog)


@pytest.mark.slow
def test_the_librarys_own_threads() -> None:
    """With the real ones: nothing while they are limited, a line when they aren't, and no other."""
    program = """
import anyio, sys, threading
import numpy as np
from helixnb import Router, RouterConfig
from threadpoolctl import threadpool_info, threadpool_limits

async def two_at_once(limit):
    meeting = threading.Barrier(2)
    def solve():
        meeting.wait(30)
        return np.linalg.eigvalsh(np.eye(8))[0]
    async with Router(RouterConfig(cpu_parallelism=2), kernels=()) as router:
        limits = threadpool_limits(limit, "blas")  # of what is loaded by now
        async def call():
            assert (await router.run(solve, compute_cost=10**6)).value == 1.0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            tasks.start_soon(call)
        await anyio.wait_all_tasks_blocked()
    limits.restore_original_limits()

many = any(each["num_threads"] > 1 for each in threadpool_info() if each["user_api"] == "blas")
for limit in (1, None, None):
    anyio.run(two_at_once, limit)
    print("limited" if limit else "not limited", "with many" if many else "", file=sys.stderr)
"""
    done = python("-c", program, env={"NUMBA_THREADING_LAYER": "workqueue"})
    assert done.returncode == 0, done.stderr
    first, *others = done.stderr.splitlines()
    assert first.startswith("limited")
    if "with many" in first:
        assert [line.split()[0] for line in others] == ["callables", "not", "not"]
        assert "threadpoolctl.threadpool_limits(1, 'blas')" in others[0]
