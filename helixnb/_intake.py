"""A job's way in: checked, decided, placed, and brought to its outcome for a caller that waits."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from contextvars import copy_context
from typing import Any

import anyio

from helixnb._core.lifecycle import Entry, Ledger
from helixnb._core.policy import Policy
from helixnb._core.queues import Backlog
from helixnb._errors import JobError, UnknownKindError
from helixnb._exec.inline import InlineLane, run_on_loop
from helixnb._exec.lanes import CHUNK_NS, BatchLane, PoolLane, QueueLane, Settings
from helixnb._exec.slots import Slots
from helixnb._exec.workers import Workers
from helixnb._observe.routing_log import log_route
from helixnb._records import Decision, Job, Load, Outcome, Status, Strategy
from helixnb_kernels import Kernel

SUBMIT_NS = 10_000
"""About what a submit takes of the event loop besides the kernel."""

COHORT_JOBS = 64
"""How many jobs one event wakes at most."""

_ROUTER_CLOSED = Decision(Strategy.DROP, "router_closed")


def entry_of(job: Job, kernels: Mapping[str, Kernel], arrived_ns: int) -> Entry:
    """Return a job ready to be entered; raises if none of `kernels` can run it."""
    if not isinstance(job, Job):
        raise TypeError(f"job must be a helixnb.Job, got {job!r}")
    kernel = kernels.get(job.kind)
    if kernel is None:
        raise UnknownKindError(
            f"kind must be one of {', '.join(kernels) or 'none'}, got {job.kind!r}"
        )
    try:
        inputs = kernel.as_inputs(job.inputs)
        params = kernel.as_params(job.params)
        predicted_ns = kernel.predict_ns(job.compute_cost, len(inputs))
    except Exception as error:  # the last runs code of the kernel's author
        raise JobError(f"job {job.id} of kind {job.kind}: {error}") from error
    return Entry(job, arrived_ns, kernel, inputs, params, predicted_ns)


def entry_of_call(
    function: Callable[..., Any], args: tuple[Any, ...], arrived_ns: int, **fields: Any
) -> Entry:
    """Return a call ready to be entered; `fields` are a job's, with the kind None for its name."""
    if not callable(function):
        raise TypeError(f"function must be callable, got {function!r}")
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    for each in (inner, type(inner).__call__):
        if inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each):
            raise TypeError(f"function must not be a coroutine function, got {function!r}")
    if fields["kind"] is None:
        fields["kind"] = getattr(inner, "__qualname__", type(inner).__qualname__)
    call = functools.partial(_call, function, args)
    return Entry(Job(**fields), arrived_ns, call=call, context=copy_context())


def _call(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    value = function(*args)
    if inspect.iscoroutine(value):  # from a lambda, say, which can't be told beforehand
        value.close()
        raise TypeError(f"{function!r} returned a coroutine, which nobody would await")
    return value


class Cohort:
    """Jobs behind each other in a queue that one event wakes, as soon as the first has ended.

    Attributes
    ----------
    left_ns
        Predicted time of the jobs that may still join.
    """

    __slots__ = ("event", "left_ns")

    def __init__(self, event: anyio.Event, left_ns: float) -> None:
        self.event = event
        self.left_ns = left_ns


class Intake:
    """Decides for each job, and puts it where it runs."""

    def __init__(
        self,
        settings: Settings,
        policy: Policy,
        ledger: Ledger,
        backlog: Backlog,
        slots: Slots,
        workers: Workers,
        clock: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._ledger = ledger
        self._backlog = backlog
        self._slots = slots
        self._workers = workers
        self._clock = clock
        self._busy_ns = 0
        self.inline = InlineLane(backlog, ledger, clock)
        self._pool = PoolLane(backlog, ledger)
        workers.add(self._pool)
        self._batches: dict[str, BatchLane] = {}

    def add_batches(self, kernel: Kernel) -> None:
        """Make the lane for batches of a kernel."""
        lane = BatchLane(
            self._backlog, self._ledger, self._slots, kernel, self._settings, self._clock
        )
        self._workers.add(lane)
        self._batches[kernel.name] = lane

    async def give_way(self) -> None:
        """Let other tasks run, after a millisecond of submits that didn't wait for anything."""
        self._busy_ns = 0
        await anyio.lowlevel.checkpoint()

    def enter(self, entry: Entry, *, soon: bool = False) -> None:
        """Decide, enter the job in the books, and put it where it runs.

        An inline job is left to `run`, unless it shall run soon, but not now.
        """
        config = self._settings.config
        load = Load(cpu_busy=self._slots.busy)
        if self._settings.is_open:
            entry.decide(self._policy.decide(entry.job, load, config))
            if entry.kernel is not None and entry.predicted_ns > config.max_job_s * 1e9:
                entry.reroute(Strategy.DROP, "too_large")
        else:
            entry.decide(_ROUTER_CLOSED)
        self._ledger.enter(entry)
        self._place(entry, soon=soon)
        if entry.strategy is Strategy.DROP:
            self._ledger.settle(entry, Status.DROPPED)
        log_route(entry, load)

    def _place(self, entry: Entry, *, soon: bool) -> None:
        if entry.kernel is None:
            cheap = entry.job.compute_cost <= self._settings.config.inline_max_cost
            if entry.strategy is Strategy.BATCH:
                entry.reroute(Strategy.CPU_POOL, "not_batchable")
            elif entry.strategy is Strategy.INLINE and not cheap:
                entry.reroute(Strategy.SPAWN, "not_declared_cheap")
        if entry.strategy is Strategy.SPAWN:
            if self._workers.spawn(entry):
                return
            entry.reroute(Strategy.CPU_POOL, "spawn_saturated")
        if entry.strategy is Strategy.CPU_POOL:
            self._queue(entry, self._pool)
        elif entry.strategy is Strategy.BATCH:
            self._queue(entry, self._batches[entry.job.kind])
        elif entry.strategy is Strategy.INLINE and soon:
            if self._backlog.is_full:
                entry.reroute(Strategy.DROP, "queue_full")
            else:
                self.inline.push(entry)

    def _queue(self, entry: Entry, lane: QueueLane) -> None:
        if self._backlog.is_full:
            entry.reroute(Strategy.DROP, "queue_full")
        else:
            lane.queue.push(entry)
            self._workers.look(lane)

    async def run(self, entry: Entry) -> Outcome:
        """Bring a job to its outcome for a caller who waits; it is cancelled with the caller."""
        self._busy_ns += SUBMIT_NS
        if self._busy_ns > CHUNK_NS:
            await self.give_way()
        self.enter(entry)
        if entry.strategy is Strategy.INLINE:
            started_ns = self._clock()
            run_on_loop(self._ledger, entry)
            self._busy_ns += self._clock() - started_ns
        if entry.outcome is not None:
            return entry.outcome
        done = _cohort_event(entry)
        try:
            while entry.outcome is None:
                entry.done = done
                await done.wait()
                done = anyio.Event()  # one of its own, if others of the cohort ended before it
        except BaseException:
            entry.done = None  # nobody waits any more
            self._ledger.settle(entry, Status.CANCELLED)
            raise
        self._busy_ns = 0
        return entry.outcome


def _cohort_event(entry: Entry) -> anyio.Event:
    """Return the event that wakes the jobs that a thread will probably take together.

    An event of its own for each job takes 3 us more, to make and to collect.
    """
    queue = entry.queue
    if queue is None or entry.strategy is Strategy.SPAWN:  # taken already, or always taken alone
        return anyio.Event()
    cohort: Cohort | None = queue.cohort
    if cohort is None or cohort.left_ns < entry.predicted_ns or cohort.event.is_set():
        queue.cohort = cohort = Cohort(anyio.Event(), CHUNK_NS)
    cohort.left_ns -= max(entry.predicted_ns, CHUNK_NS / COHORT_JOBS)
    return cohort.event
