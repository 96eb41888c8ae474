"""The router: wiring and lifetime. What it wires has modules of its own."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import math
import time
from collections.abc import Callable, Iterable
from contextvars import copy_context
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from helixnb._blocks import kernel_of
from helixnb._config import RouterConfig
from helixnb._core.counts import Counts
from helixnb._core.estimate import CostModel
from helixnb._core.lifecycle import Entry, Ledger
from helixnb._core.policy import AdaptivePolicy, Policy
from helixnb._core.queues import Backlog
from helixnb._core.rows import Rows
from helixnb._core.rules import slots_left
from helixnb._decide_columns import warm_up as warm_up_rules
from helixnb._decider import Decider, Explanation
from helixnb._errors import RouterStateError
from helixnb._exec.detached import uninterrupted
from helixnb._exec.gil import yield_gil
from helixnb._exec.slots import Slots
from helixnb._exec.workers import Workers, measure_hop_us
from helixnb._intake import Intake, entry_of, entry_of_call
from helixnb._lifetime import Lifetime
from helixnb._log import SafeLogger
from helixnb._many import Many
from helixnb._observe.pools import look_at_pools
from helixnb._observe.pressure import Pressure
from helixnb._observe.stats import Stats, snapshot
from helixnb._records import Job, Outcome
from helixnb._ticket import Ticket
from helixnb.columns import JobColumns, Outcomes
from helixnb_kernels import (
    BUILT_IN,
    Kernel,
    KernelError,
    parallel_is_safe,
    threading_layer,
    warm_up,
)
from helixnb_kernels._values import as_integer, listed, shown

if TYPE_CHECKING:  # what isn't needed before a router opens is imported then
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from helixnb._observe.metrics import Reading
    from helixnb._observe.tracing import Tracing
    from helixnb._observe.watch import Watch

logger = SafeLogger("helixnb")

BOOKKEEPING = (
    Counts.fold,
    Intake.enter,
    Ledger.cancel,
    Ledger.enter,
    Ledger.refuse,
    Ledger.settle,
    Many.enter,
    Rows.settle,
)
"""What must be done as a whole, for the books to balance."""

Progress = Callable[[int, int, str], None]


class Router:
    """Runs each job by the strategy that fits it now.

    Used as ``async with Router() as router``, or by `open` and `close`, on asyncio, uvloop or
    trio. Opening compiles the kernels, or reads them from the disk cache, in a worker thread.
    Leaving closes; a body that leaves by an exception, cancellation included, isn't drained for.
    A router opens once. It belongs to the event loop that it was opened on, and to no task of it.

    Parameters
    ----------
    config
        `RouterConfig()` by default.
    kernels
        What kinds of jobs there are; names must be unique.
    policy
        What chooses strategies; `AdaptivePolicy()` by default.
    shadow
        A policy that is asked beside it, only to count how often it would choose another strategy
        (`Stats.shadow_disagreements`).
    progress
        Called as ``progress(done, total, name)`` in a worker thread while kernels compile. What it
        raises is logged once, and doesn't keep the router from opening.
    clock
        Gives nanoseconds; never runs backwards.
    meter_provider, tracer_provider
        OpenTelemetry's, for this router's metrics and spans; the global ones by default.

    Raises
    ------
    KernelError
        Two kernels have the same name.
    """

    def __init__(
        self,
        config: RouterConfig | None = None,
        *,
        kernels: Iterable[Kernel] = BUILT_IN,
        policy: Policy | None = None,
        shadow: Policy | None = None,
        progress: Progress | None = None,
        clock: Callable[[], int] = time.perf_counter_ns,
        meter_provider: MeterProvider | None = None,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        self._config = RouterConfig() if config is None else config
        if not isinstance(self._config, RouterConfig):
            raise TypeError(f"config must be a RouterConfig, got {shown(config)}")
        self._policy = AdaptivePolicy() if policy is None else policy
        _check_policy("policy", self._policy)
        self._is_adaptive = bool(getattr(self._policy, "adaptive", False))
        self._shadow = shadow
        if shadow is not None:
            _check_policy("shadow", shadow)
        _check_provider("meter_provider", meter_provider, "get_meter")
        _check_provider("tracer_provider", tracer_provider, "get_tracer")
        self._meter_provider = meter_provider
        self._tracer_provider = tracer_provider
        self._progress = progress
        self._clock = clock
        self._kernels: dict[str, Kernel] = {}
        if isinstance(kernels, Kernel):
            raise TypeError(
                f"kernels must be a list of kernels, got the kernel {kernels.name} alone"
            )
        for kernel in kernels:
            self._check_new(kernel)
            self._kernels[kernel.name] = kernel
        self._ledger = Ledger(clock)
        self._costs = CostModel(self._config, learns=self._is_adaptive)
        self._backlog = Backlog(self._config.queue_capacity)
        self._set_bounds()
        self._measured_hop_us = 0.0
        self._lifetime = Lifetime(self._ledger, self._wind_up, self._tear_down)
        self._is_set_up = False
        self._to_close: list[Callable[[], object]] = []  # of an opening that fails half-way, too
        self._runs = 0
        self._has_looked_at_pools = False

    # -- Lifetime -----------------------------------------------------------------------------

    async def open(self) -> Self:
        """Compile the kernels, or read them from the disk cache, and take jobs from then on.

        Any task may do so; it doesn't matter to the router what becomes of the task later. If it
        is cancelled while the router opens, the kernel that compiles just then is the last one,
        and the router is closed.

        Raises
        ------
        KernelError
            A kernel can't be compiled, or its shared arrays aren't bound.
        RouterStateError
            It was opened before, or was closed while it was opening.
        """
        await self._lifetime.open(self._set_up)
        return self

    async def close(self) -> None:
        """Stop intake, drain up to ``drain_timeout_s``, drop what is queued, and wait for threads.

        Any task of the router's event loop may do so. Jobs submitted from now on are dropped
        (``router_closed``). Kernels that are running are waited for, since a thread can't be
        stopped; then nothing of the router is left. If this is cancelled, nothing is drained any
        more, but threads are waited for all the same. A further call waits for the first one; on
        a router that was never opened this does nothing.

        Raises
        ------
        RouterStateError
            The router has crashed, it is another event loop's, or one of its own jobs calls this.
        """
        await self._lifetime.close(self._config.drain_timeout_s)

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is None:
            await self.close()
            return
        with contextlib.suppress(RouterStateError):  # the body's exception is what matters
            await self._lifetime.close(0.0)

    async def drain(self) -> None:
        """Wait until no job is in flight. Intake stays open.

        Raises
        ------
        RouterStateError
            The router isn't open, is another event loop's, has crashed, or one of its own jobs
            calls this.
        """
        await self._lifetime.drain()

    async def _set_up(self) -> None:
        if self._config.parallel_kernels == "auto":
            parallel_is_safe()  # chooses the threading layer: here, and not in the worker thread
        await self._warm_up(list(self._kernels.values()), self._progress)
        self._measured_hop_us = await self._lifetime.aside(measure_hop_us)
        # Nothing awaits from here on, so that all of this is there, or none.
        tasks = self._lifetime.tasks
        uninterrupted(*BOOKKEEPING)
        self._slots = Slots(self._config.cpu_parallelism)
        self._workers = Workers(self._slots, self._ledger, self._backlog, tasks, self._clock)
        self._to_close.append(self._workers.close)
        self._pressure = Pressure(self._clock, lambda: self._ledger.in_flight > 0)
        tracing = self._observe()
        self._decider = Decider(
            self,
            self._policy,
            self._shadow,
            self._backlog,
            self._slots,
            self._workers,
            self._pressure,
            self._ledger.counts,
        )
        self._intake = Intake(
            self,
            self._decider,
            self._ledger,
            self._backlog,
            self._slots,
            self._workers,
            tracing,
            self._lifetime.abandonable,
        )
        self._many = Many(
            self,
            self._decider,
            self._costs,
            self._ledger,
            self._backlog,
            self._workers,
            tracing,
            self._lifetime.in_thread,
            self._lifetime.abandonable,
            self._intake.watch,
        )
        for kernel in self._kernels.values():
            self._add_batches(kernel)
        for serve in (
            self._workers.run_alarm,
            self._workers.run_settling,
            self._intake.inline.run,
            functools.partial(self._pressure.run_heartbeat, self._telemetry.tell),
            functools.partial(self._pressure.run_sampler, lambda: self._config.heed_other_cpu_use),
            functools.partial(
                yield_gil, self._slots, self._workers.one_waits, self._workers.settle_done
            ),
        ):
            tasks.start(serve)
        self._is_set_up = True

    def _observe(self) -> Tracing:
        """Let OpenTelemetry hear of this router; returns what begins spans."""
        from helixnb._observe.metrics import Vitals
        from helixnb._observe.telemetry import new_telemetry
        from helixnb._observe.tracing import new_tracing

        self._vitals = Vitals(
            self._ledger.counts, self._backlog, self._slots, self._pressure, self._clock
        )
        self._telemetry = new_telemetry(self._vitals, self._meter_provider)
        self._ledger.on_batch = self._telemetry.note_batch
        self._vitals.is_live = True
        return new_tracing(self._clock, self._tracer_provider)

    def _wind_up(self) -> None:
        """Release batches that gather: they have no company to wait for any more."""
        self._workers.look_around()

    def _tear_down(self) -> None:
        """Free what the router has of the system's, when nothing of it runs any more."""
        for each in self._to_close:
            each()
        if self._is_set_up:
            self._telemetry.close()
            self._vitals.is_live = False

    # -- Kernels and settings -----------------------------------------------------------------

    @property
    def config(self) -> RouterConfig:
        """The configuration in force."""
        return self._config

    @property
    def hop_us(self) -> float:
        """What it takes to send a thread or to hear from one: as set, or as it was measured."""
        hop_us = self._config.hop_us
        return self._measured_hop_us if hop_us is None else hop_us

    @property
    def stretch(self) -> float:
        """How many times longer than its CPU time a job takes, while all slots are busy."""
        slots = self._config.cpu_parallelism
        return slots / slots_left(slots, self._cpu_left)

    @property
    def _cpu_left(self) -> float:
        return self._pressure.cpu_left if self._is_set_up else math.inf

    @property
    def is_adaptive(self) -> bool:
        """Whether jobs are held to their budgets; see `Policy`."""
        return self._is_adaptive

    @property
    def is_open(self) -> bool:
        """Whether jobs are taken: it was entered, and isn't closing."""
        return self._lifetime.state == "open"

    @property
    def state(self) -> str:
        """``new``, ``opening``, ``open``, ``closing``, ``closed`` or ``crashed``."""
        self._lifetime.bury()
        return self._lifetime.state

    @property
    def kernels(self) -> tuple[str, ...]:
        """The kinds of jobs that this router takes."""
        return tuple(self._kernels)

    def reconfigure(self, /, **changes: Any) -> RouterConfig:
        """Change settings of the running router: all of them, or none.

        Returns the new configuration, in force for every decision from now on. Jobs that are
        queued or running stay where they are: with fewer slots or a smaller queue, the excess
        drains.

        Raises
        ------
        ConfigError
            A name isn't a setting's, or the result can't be.
        """
        if self._is_set_up:
            self._lifetime.check_loop()
        self._config = self._config.replace(**changes)
        self._costs.config = self._config
        self._set_bounds()
        if self._is_set_up:
            self._slots.resize(self._config.cpu_parallelism)
            self._workers.look_around()
        return self._config

    def _set_bounds(self) -> None:
        self._backlog.capacity = self._config.queue_capacity
        if self._is_adaptive:
            self._backlog.standing.target_ns = self._config.queue_target_ms * 1e6

    async def add_kernel(self, kernel: Kernel) -> None:
        """Compile a further kernel in a worker thread, then take jobs of its kind.

        Raises
        ------
        KernelError
            The router has a kernel of that name, or this one can't be compiled.
        RouterStateError
            The router isn't open.
        """
        self._check_takes_kernels()
        self._check_new(kernel)
        await self._warm_up([kernel], None)
        self._check_takes_kernels()
        self._check_new(kernel)  # another task may have added one meanwhile
        self._kernels[kernel.name] = kernel
        self._add_batches(kernel)

    async def replace_kernel(self, kernel: Kernel) -> None:
        """Compile a kernel in a worker thread, then let it take the place of that of its name.

        Jobs that were submitted before end on the old one, later ones run on the new one, of which
        nothing is known yet: it is learnt from the start. Jobs that were made by the old one
        (``old.job(...)``) are refused from then on.

        Raises
        ------
        KernelError
            The router has no kernel of that name, or this one can't be compiled.
        RouterStateError
            The router isn't open.
        """
        self._check_takes_kernels()
        self._check_held(kernel)
        await self._warm_up([kernel], None)
        self._check_takes_kernels()
        old = self._kernels[kernel.name]
        self._kernels[kernel.name] = kernel
        self._costs.forget(kernel.name)
        self._many.forget(old)
        self._add_batches(kernel)

    def _add_batches(self, kernel: Kernel) -> None:
        model = self._costs.of_kernel(
            kernel.name, batches=kernel.serial is not None, declares_time=kernel.declares_time
        )
        self._intake.add_batches(kernel, model)

    def _check_takes_kernels(self) -> None:
        self._lifetime.check_open()
        if not self.is_open:
            raise RouterStateError(f"the router is {self.state} and takes no kernels")

    def _check_new(self, kernel: Kernel) -> None:
        _check_kernel(kernel)
        if kernel.name in self._kernels:
            raise KernelError(
                f"kernel names must be unique in a router, got a second {shown(kernel.name)}: "
                "await router.replace_kernel(...) for one that shall take its place"
            )

    def _check_held(self, kernel: Kernel) -> None:
        _check_kernel(kernel)
        if kernel.name not in self._kernels:
            raise KernelError(
                f"a kernel to replace must be one of {listed(self._kernels)}, got "
                f"{shown(kernel.name)}: await router.add_kernel(...) for a new one"
            )

    async def _warm_up(self, kernels: list[Kernel], progress: Progress | None) -> None:
        if progress is not None:
            progress = _told_while_it_listens(progress)

        def compile_all(stop: Callable[[], bool]) -> None:
            parallel = self._config.parallel_kernels == "auto"
            if not warm_up(kernels, parallel=parallel, progress=progress, stop=stop):
                return
            warm_up_rules(stop)
            for module in ("telemetry", "tracing"):  # OpenTelemetry's API takes 50 ms
                importlib.import_module(f"helixnb._observe.{module}")

        await self._lifetime.until_stopped(compile_all)

    # -- Jobs ---------------------------------------------------------------------------------

    async def submit(self, job: Job) -> Outcome:
        """Run a job by the strategy that fits it now, and wait for its outcome.

        If the caller is cancelled, so is the job: a queued one never runs, a running one ends in
        its thread, unheard. An inline job runs inside this call. Inputs that may take long to
        convert are converted in a thread first, which counts as the job's latency.

        Raises
        ------
        JobError
            The job doesn't fit its kernel, or there is none of that kind. Nothing ran.
        RouterStateError
            The router isn't open, is another thread's, or has crashed. A router that is closing
            or closed drops the job instead (``router_closed``).
        """
        self._lifetime.check_open()
        now_ns = self._clock()
        self._pressure.note_use(now_ns)
        return await self._intake.submit(job, self._kernels, self._costs, now_ns)

    async def _converted(self, job: Job) -> Job:
        """Return a job that `submit_soon` and `explain` take without holding up the event loop."""
        self._lifetime.check_open()
        return await self._intake.converted(job, kernel_of(job, self._kernels))

    def submit_soon(self, job: Job) -> Ticket:
        """Take a job in and return at once; no kernel runs inside this call.

        Inputs are converted inside it: make a job whose inputs are a long list, or an object of
        another library, by `UserKernel.job` in a thread, or `submit` it.

        The job belongs to the router: it goes on if the caller is cancelled. A plain-Python
        kernel sees the caller's context variables, unless it runs in a batch.

        Raises
        ------
        JobError, RouterStateError
            As `submit`.
        """
        self._lifetime.check_open()
        entry = self._entry_of(job)
        entry.context = copy_context()
        self._intake.enter(entry, soon=True)
        return Ticket(entry, self._ledger, self._lifetime.check_loop)

    def explain(self, job: Job) -> Explanation:
        """Say what would be decided of a job now, and why, without running it.

        Raises
        ------
        JobError, RouterStateError
            As `submit`.
        """
        self._lifetime.check_open()
        return self._intake.explain(self._entry_of(job))

    def _entry_of(self, job: Job) -> Entry:
        now_ns = self._clock()
        self._pressure.note_use(now_ns)
        return entry_of(job, kernel_of(job, self._kernels), self._costs, now_ns)

    async def submit_many(self, jobs: JobColumns | Iterable[Job]) -> Outcomes:
        """Run jobs by the thousand, and wait for all outcomes, in order.

        All are decided on one snapshot of the load, as `submit` would decide for each; those of a
        kind then share kernel calls, straight from their columns. Those decided to run inline run
        inside this call, a millisecond between two turns of the event loop; the others run as
        batches whatever was decided for them (``in_columns``), each about a millisecond of a
        worker thread, in turns with jobs that come meanwhile.

        Jobs without a budget wait for as long as it takes: `queue_capacity` isn't for them. Those
        with one count against it, and are dropped where it is reached (``queue_full``). Latency
        counts from this call. If the caller is cancelled, so are all jobs that haven't ended. A
        sequence of jobs is converted to columns first, which takes about 2 us a job.

        Raises
        ------
        JobError, RouterStateError
            As `submit`, for the first job at fault that is found; none has run then.
        """
        self._lifetime.check_open()
        self._pressure.note_use(self._clock())
        return await self._many.run(jobs, self._kernels)

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
        """Run any callable under the same policy, and wait for its outcome.

        It runs inline only if `compute_cost` declares it cheap (at most ``inline_max_cost``), by
        `AdaptivePolicy` not before a few runs of it were timed, and is never batched. It should
        release the GIL for most of its time, as NumPy, hashing and compression do. It sees the
        caller's context variables.

        Parameters
        ----------
        function, args
            Called as ``function(*args)``; bind keyword arguments with `functools.partial`.
        compute_cost, scaling_potential, latency_budget_ms
            As of a `Job`.
        kind
            Names it in logs and statistics; the function's qualified name by default.

        Raises
        ------
        TypeError
            `function` isn't callable, is a coroutine function: await it instead; or is a kernel:
            submit a job of it.
        JobError, RouterStateError
            As `submit`; the latter also for a call that launches Numba's threads in a child that
            was forked after the OpenMP layer had started, since that would end the process.
        """
        self._lifetime.check_open()
        self._runs += 1
        now_ns = self._clock()
        self._pressure.note_use(now_ns)
        entry = entry_of_call(
            function,
            args,
            self._costs,
            now_ns,
            id=self._runs,
            kind=kind,
            compute_cost=compute_cost,
            scaling_potential=scaling_potential,
            latency_budget_ms=latency_budget_ms,
        )
        if self._slots.busy and not self._has_looked_at_pools:
            self._look_at_pools(compute_cost)
        return await self._intake.run(entry)

    def _look_at_pools(self, compute_cost: int) -> None:
        """Have a look at libraries' own threads, when callables first run in several slots."""
        config = self._config
        if config.cpu_parallelism > 1 and compute_cost > config.inline_max_cost:
            self._has_looked_at_pools = True
            self._lifetime.tasks.start(look_at_pools, config.cpu_parallelism, threading_layer())

    def stats(self) -> Stats:
        """Return a snapshot of the router's counts; see `Stats`."""
        return snapshot(
            self._ledger,
            state=self.state,
            cpu_busy=self._slots.busy if self._is_set_up else 0,
            cpu_parallelism=self._config.cpu_parallelism,
            waiting=self._backlog.waiting,
            queue_capacity=self._backlog.capacity,
            parallel_launches=self._workers.parallel_launches if self._is_set_up else 0,
            threading_layer=threading_layer(),
            loop_lag_ms=self._pressure.lag_ms(self._clock()) if self._is_set_up else 0.0,
            cpu_left=None if math.isinf(self._cpu_left) else self._cpu_left,
            hop_us=self.hop_us,
        )

    def metrics(self) -> list[Reading]:
        """Read what this router tells OpenTelemetry, for any other monitoring.

        Histograms are exact here. From any thread; empty before the router has opened.
        """
        from helixnb._observe.metrics import read

        return list(read(self._vitals)) if self._is_set_up else []

    def watch(self, capacity: int = 256) -> Watch:
        """Return what keeps the latest jobs that end, while it is entered: ``with router.watch()``.

        Parameters
        ----------
        capacity
            How many records it keeps. Only these are ever held, however slowly they are read;
            at least 1.

        Raises
        ------
        ValueError
            `capacity` isn't an integer, or less than 1.
        """
        from helixnb._observe.watch import Watch

        records = as_integer(capacity)
        if records is None or records < 1:
            raise ValueError(f"capacity must be at least 1, got {shown(capacity)}")
        return Watch(self._ledger, records)


def _told_while_it_listens(progress: Progress) -> Progress:
    """Return a callback that calls another one until that raises, which is logged."""
    failed = False

    def tell(done: int, total: int, name: str) -> None:
        nonlocal failed
        if failed:
            return
        try:
            progress(done, total, name)
        except Exception as error:
            failed = True
            logger.error("progress raised; it is called no more", exc_info=error)

    return tell


def _check_kernel(kernel: Any) -> None:
    if not isinstance(kernel, Kernel):
        raise TypeError(f"a kernel must be a helixnb_kernels.Kernel, got {shown(kernel)}")


def _check_policy(name: str, policy: Any) -> None:
    decide = getattr(policy, "decide", None)
    if not callable(decide):
        raise TypeError(f"{name} must have a method decide, got {shown(policy)}")
    try:
        inspect.signature(decide).bind(None, None, None, None)
    except TypeError:
        raise TypeError(
            f"{name}.decide must take job, load, config and estimate, got {shown(policy)}"
        ) from None
    except ValueError:  # a callable without a signature
        pass


def _check_provider(name: str, provider: Any, method: str) -> None:
    if provider is not None and not callable(getattr(provider, method, None)):
        raise TypeError(f"{name} must have a method {method}, got {shown(provider)}")
