"""Routers that follow a script, and what opens one in a fixture."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, TypeVar

from helixnb._blocking import BlockingRouter
from helixnb._config import RouterConfig
from helixnb._decider import Explanation
from helixnb._records import Job, Outcome
from helixnb._router import Router
from helixnb._ticket import Ticket
from helixnb.testing._marks import Mark, ScriptedCall, ScriptedKernel, ScriptedPolicy, carried
from helixnb.testing._script import Script
from helixnb_kernels import BUILT_IN, Kernel

R = TypeVar("R", bound=Router)


class ScriptedRouter(Router):
    """A router that does what a test says; all else of it is real: threads, books, metrics, end.

    Decisions depend on no load, so that they are the same on every machine. Budgets are noted, and
    nobody is held to them.

    Parameters
    ----------
    config
        One that is given counts as it is. By default there are 4 CPU slots and a queue for
        1,000,000 jobs, nothing of the machine is measured, and batches run on one thread.
    script
        A new one by default.
    kernels, shadow, progress, clock, meter_provider, tracer_provider
        As of `Router`.
    policy
        Not asked: it is here so that ``ScriptedRouter`` fits where a service makes a ``Router``.

    Attributes
    ----------
    script
        What a test says.
    """

    def __init__(
        self,
        config: RouterConfig | None = None,
        *,
        script: Script | None = None,
        kernels: Iterable[Kernel] = BUILT_IN,
        policy: Any = None,  # noqa: ARG002  # see above
        **given: Any,
    ) -> None:
        if config is None:
            config = RouterConfig(
                cpu_parallelism=4,
                queue_capacity=1_000_000,
                hop_us=60.0,
                heed_other_cpu_use=False,
                parallel_kernels="never",
            )
        if not isinstance(kernels, Kernel):  # which is told so
            kernels = [ScriptedKernel.of(kernel) for kernel in kernels]
        self.script = Script() if script is None else script
        super().__init__(config, kernels=kernels, policy=ScriptedPolicy(self.script), **given)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is not None:  # no test goes on that would release what it holds
            self.script.release()
        await super().__aexit__(exc_type, exc, traceback)

    async def add_kernel(self, kernel: Kernel) -> None:
        """Compile a further kernel; see `Router.add_kernel`."""
        await super().add_kernel(ScriptedKernel.of(kernel))

    async def replace_kernel(self, kernel: Kernel) -> None:
        """Let a kernel take the place of that of its name; see `Router.replace_kernel`."""
        await super().replace_kernel(ScriptedKernel.of(kernel))

    async def submit(self, job: Job) -> Outcome:
        """Run a job as the script says; see `Router.submit`."""
        with carried(Mark()):
            return await super().submit(job)

    def submit_soon(self, job: Job) -> Ticket:
        """Take a job in and return at once; see `Router.submit_soon`."""
        with carried(Mark()):
            return super().submit_soon(job)

    async def run(
        self,
        function: Callable[..., Any],
        /,
        *args: Any,
        compute_cost: int,
        scaling_potential: float = 0.0,
        latency_budget_ms: float | None = None,
        kind: str | None = None,
    ) -> Outcome:
        """Run any callable as the script says; see `Router.run`."""
        mark = Mark()
        if callable(function):
            function = ScriptedCall(function)
            function.mark = mark
        with carried(mark):
            return await super().run(
                function,
                *args,
                compute_cost=compute_cost,
                scaling_potential=scaling_potential,
                latency_budget_ms=latency_budget_ms,
                kind=kind,
            )

    def explain(self, job: Job) -> Explanation:
        """Say what the script has for a job, and leave it there; see `Router.explain`."""
        with carried(None):
            return super().explain(job)


class ScriptedBlockingRouter(BlockingRouter):
    """A `BlockingRouter` that does what a test says, as `ScriptedRouter` does.

    Parameters
    ----------
    config, given
        As of `ScriptedRouter`.
    backend, backend_options
        As of `BlockingRouter`.

    Attributes
    ----------
    script
        What a test says.
    """

    def __init__(
        self,
        config: RouterConfig | None = None,
        *,
        backend: str = "asyncio",
        backend_options: dict[str, Any] | None = None,
        **given: Any,
    ) -> None:
        super().__init__(backend=backend, backend_options=backend_options)
        self._router = router = ScriptedRouter(config, **given)
        self._lifetime = router._lifetime  # noqa: SLF001  # of this package
        self.script = router.script

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is not None:
            self.script.release()
        super().__exit__(exc_type, exc, traceback)


@asynccontextmanager
async def opened(router: R) -> AsyncIterator[R]:
    """Open a router for as long as a fixture of any scope lives, and look at its books then.

    ``async with opened(ScriptedRouter()) as router: yield router`` is the body of a fixture, of
    anyio's plugin for pytest, of pytest-asyncio, pytest-trio or pytest-aiohttp.

    Parameters
    ----------
    router
        One that is new. What a `ScriptedRouter` holds is released before it closes, whatever tests
        have left, so that it does.

    Raises
    ------
    AssertionError
        A job has no outcome, or two.
    """
    async with router:
        try:
            yield router
        finally:
            if isinstance(router, ScriptedRouter):
                router.script.release()
    stats = router.stats()
    ended = stats.completed + stats.dropped + stats.failed + stats.cancelled
    if (stats.submitted, stats.in_flight) != (ended, 0):
        raise AssertionError(
            f"{stats.submitted} jobs were submitted and {ended} have ended, "
            f"and {stats.in_flight} are in flight, of a router that is closed"
        )
