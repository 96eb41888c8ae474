"""The router: how much of a slot is used while the event loop is idle, busy or saturated."""

from __future__ import annotations

import time
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from helixnb import Decision, Job, Router, RouterConfig, Strategy
from helixnb_kernels import HASH_MIX, warm_up

BACKENDS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}
COST = 64 * 550_000  # about 1 ms


class Pooled:
    """A policy that pools every job."""

    def decide(self, job: Job, load: Any, config: Any) -> Decision:
        return Decision(Strategy.CPU_POOL, "benchmark")


async def slot_use(ready_tasks: int) -> float:
    """Return the share of a slot's time that 1 ms kernels run in, beside tasks that never wait."""
    inputs = HASH_MIX.as_inputs([1])
    began = time.perf_counter()
    HASH_MIX.solo(inputs, COST, 1)
    kernel_s = time.perf_counter() - began
    done = 0

    async def client(router: Router) -> None:
        nonlocal done
        while True:
            await router.submit(Job(id=1, kind="HashMix", inputs=inputs, compute_cost=COST))
            done += 1

    async def spin() -> None:
        while True:
            await checkpoint()

    config = RouterConfig(cpu_parallelism=1)
    async with Router(config, policy=Pooled()) as router, anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(client, router)
        for _ in range(ready_tasks):
            tasks.start_soon(spin)
        began = time.perf_counter()
        await anyio.sleep(1.5)
        used = done * kernel_s / (time.perf_counter() - began)
        tasks.cancel_scope.cancel()
    return used


class SlotUtilisation:
    """One slot, four clients in turn, 1 ms kernels, and tasks that are always ready."""

    params = [list(BACKENDS), [0, 20, 200]]
    param_names = ["backend", "ready_tasks"]
    timeout = 120

    def setup(self, backend: str, ready_tasks: int) -> None:
        warm_up([HASH_MIX])

    def track_slot_use(self, backend: str, ready_tasks: int) -> float:
        used: float = anyio.run(slot_use, ready_tasks, **BACKENDS[backend])
        return used

    track_slot_use.unit = "ratio"  # type: ignore[attr-defined]
