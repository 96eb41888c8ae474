"""A job's way in: checked, decided, placed, and brought to its outcome for a caller that waits."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any

import anyio

from helixnb._blocks import job_error, kernel_of
from helixnb._core.estimate import CostModel, KindModel
from helixnb._core.lifecycle import Entry, Ledger, TurnEntry
from helixnb._core.policy import wait_ns_of
from helixnb._core.queues import Backlog
from helixnb._core.rules import (
    DECISIONS,
    DROP_CLOSED,
    DROP_LARGE,
    DROP_LOOP,
    INLINE_CHEAP,
    REFUSALS,
)
from helixnb._decider import Decider, Explanation
from helixnb._errors import RouterStateError
from helixnb._exec.inline import InlineLane, LoopWatch, run_on_loop
from helixnb._exec.lanes import CHUNK_NS, BatchLane, PoolLane, QueueLane, Settings, TurnLane
from helixnb._exec.slots import Slots
from helixnb._exec.workers import Workers
from helixnb._observe.routing_log import log_route
from helixnb._records import Decision, Estimate, Job, Load, Outcome, Status, Strategy
from helixnb_kernels import Kernel
from helixnb_kernels._launches import launch_turn, must_take_turns
from helixnb_kernels._threads import launches_are_fatal
from helixnb_kernels._values import shown

if TYPE_CHECKING:  # OpenTelemetry is imported when a router opens
    from helixnb._observe.tracing import Tracing

EXPIRED = Decision(Strategy.DROP, "expired")
"""Of a job whose inputs took longer to convert than it has."""

SUBMIT_NS = 10_000
"""About what a submit takes of the event loop besides the kernel."""

COHORT_JOBS = 64
"""How many jobs one event wakes at most."""

WAITED = -1
"""What stands for the turn of a task that has waited since."""

_turn: ContextVar[int] = ContextVar("helixnb_turn", default=WAITED)
"""The turn in which this task submitted last, unless it has waited since: then it has just come out
of the event loop, and to send it back would cost more than it helps."""


def entry_of(job: Job, kernel: Kernel, costs: CostModel, arrived_ns: int) -> Entry:
    """Return a job ready to be entered; raises if its kernel can't run it."""
    try:
        inputs = kernel.as_inputs(job.inputs)
        params = kernel.as_params(job.params)
        work = kernel.predict_ns(job.compute_cost, len(inputs))
    except Exception as error:  # the last runs code of the kernel's author
        raise job_error(job.id, job.kind, error) from error
    model = costs.of_kernel(job.kind)
    predicted_ns = model.predict_ns(work, work)
    return Entry(job, arrived_ns, kernel, inputs, params, predicted_ns, work=work, model=model)


def entry_of_call(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    costs: CostModel,
    arrived_ns: int,
    **fields: Any,
) -> Entry:
    """Return a call ready to be entered; `fields` are a job's, with the kind None for its name."""
    if not callable(function):
        raise TypeError(f"function must be callable, got {shown(function)}")
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    if isinstance(inner, Kernel):
        raise TypeError(f"function must not be a kernel: submit {inner.name}.job(...) instead")
    for each in (inner, type(inner).__call__):
        if inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each):
            raise TypeError(f"function must not be a coroutine function, got {shown(function)}")
    key = fields["kind"]
    if key is None:
        fields["kind"] = getattr(inner, "__qualname__", type(inner).__qualname__)
        key = (getattr(inner, "__module__", None), fields["kind"])
    job = Job(**fields)
    takes_turns = must_take_turns(function, args)
    if takes_turns and launches_are_fatal():
        raise RouterStateError(
            "function must not launch Numba's threads here, which would end the process: it was "
            f"forked after the OpenMP layer had started, got {shown(function)}; install "
            "helixnb[tbb], or start workers by spawn"
        )
    model = costs.of_callable(key)
    work = float(job.compute_cost)
    entry_class = TurnEntry if takes_turns else Entry
    return entry_class(
        job,
        arrived_ns,
        predicted_ns=model.predict_ns(work, math.inf),
        call=functools.partial(_call_in_turn if takes_turns else _call, function, args),
        context=copy_context(),
        work=work,
        model=model,
    )


def _call(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    value = function(*args)
    if inspect.iscoroutine(value):  # from a lambda, say, which can't be told beforehand
        value.close()
        raise TypeError(f"{shown(function)} returned a coroutine, which nobody would await")
    return value


def _call_in_turn(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    with launch_turn():  # which waits for other routers of this process alone
        return _call(function, args)


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
    """Decides for each job, and puts it where it runs.

    Attributes
    ----------
    inline
        Jobs of tickets that will run on the event loop.
    watch
        What watches those that do.
    """

    def __init__(
        self,
        settings: Settings,
        decider: Decider,
        ledger: Ledger,
        backlog: Backlog,
        slots: Slots,
        workers: Workers,
        tracing: Tracing,
        in_thread: Callable[[Callable[[], Any]], Awaitable[Any]],
    ) -> None:
        self._tracing = tracing
        self._in_thread = in_thread
        self._settings = settings
        self._decider = decider
        self._ledger = ledger
        self._backlog = backlog
        self._slots = slots
        self._workers = workers
        self._clock = ledger.clock
        self._busy_ns = 0
        self._turn = 0
        self.watch = LoopWatch(ledger, watches=settings.is_adaptive)
        self.inline = InlineLane(backlog, ledger, self.watch, self._send_off)
        self._pool = PoolLane(backlog, ledger)
        workers.add(self._pool)
        self._turns: TurnLane | None = None
        self._batches: dict[str, BatchLane] = {}
        self._replaced: list[BatchLane] = []

    def add_batches(self, kernel: Kernel, model: KindModel) -> None:
        """Make the lane for batches of a kernel; one that it replaces ends its jobs."""
        lane = BatchLane(self._backlog, self._ledger, self._slots, kernel, model, self._settings)
        self._workers.add(lane)
        if kernel.name in self._batches:
            self._replaced.append(self._batches[kernel.name])
        self._batches[kernel.name] = lane
        for each in [each for each in self._replaced if not each.queue]:
            self._workers.remove(each)
            self._replaced.remove(each)

    def enter(self, entry: Entry, *, soon: bool = False) -> None:
        """Decide, enter the job in the books, and put it where it runs.

        An inline job is left to the caller, unless it shall run soon, but not now.
        """
        now_ns = self._clock()
        seen = None
        if self._settings.is_open and self._decider.runs_inline(entry, now_ns):
            entry.decide(DECISIONS[INLINE_CHEAP])
        else:
            lane = None if entry.kernel is None else self._batches[entry.job.kind]
            seen = self._decider.look(entry, now_ns, self._pool, lane)
            self._decide(entry, *seen)
        if self._settings.config.trace_jobs:
            self._tracing.begin(entry)
        self._ledger.enter(entry)
        try:
            if self._settings.is_adaptive and (soon or seen is not None):
                self._hold(entry, now_ns)
            self._place(entry, soon=soon)
            if entry.strategy is Strategy.DROP:
                self._ledger.settle(entry, Status.DROPPED)
            if seen is not None:
                log_route(entry, *seen)
        except BaseException:  # such as Ctrl-C in a log handler: its caller won't wait for it
            self._ledger.cancel(entry)
            raise

    def _decide(self, entry: Entry, load: Load, estimate: Estimate) -> None:
        config = self._settings.config
        if not self._settings.is_open:
            entry.decide(DECISIONS[DROP_CLOSED])
            return
        entry.decide(self._decider.decide(entry.job, load, estimate))
        if entry.kernel is not None and entry.predicted_ns > config.max_job_s * 1e9:
            entry.reroute(Strategy.DROP, "too_large")
        if self._settings.is_adaptive:
            entry.wait_ns = wait_ns_of(load, config, entry.strategy)

    def _hold(self, entry: Entry, now_ns: int) -> None:
        """Hold a job to its budget, unless it is a probe."""
        budget_ms = entry.job.latency_budget_ms
        model: KindModel = entry.model
        if model.is_cold and entry.strategy is Strategy.DROP:
            if entry.reason in REFUSALS:
                model.note_refusal()
        elif model.is_cold and entry.strategy is not Strategy.INLINE:
            model.note_lesson(now_ns, functools.partial(_will_teach, entry))
        if entry.reason == "probe":
            entry.model.note_probe(now_ns)
        elif budget_ms is not None:
            entry.deadline_ns = entry.start_by_ns = entry.arrived_ns + budget_ms * 1e6
            if not entry.model.is_cold:
                entry.start_by_ns -= entry.predicted_ns * self._settings.stretch
            if now_ns > entry.deadline_ns and entry.strategy is not Strategy.DROP:
                entry.expire()  # while the event loop had other work
        if entry.reason == "batch_probe":
            entry.model.note_batch_probe(now_ns)

    def explain(self, entry: Entry) -> Explanation:
        """Say what would be decided of a job now."""
        lane = None if entry.kernel is None else self._batches[entry.job.kind]
        why = self._decider.explain(entry, entry.arrived_ns, self._pool, lane)
        if not self._settings.is_open:
            return dataclasses.replace(why, decision=DECISIONS[DROP_CLOSED])
        if entry.predicted_ns > self._settings.config.max_job_s * 1e9:
            return dataclasses.replace(why, decision=DECISIONS[DROP_LARGE])
        return why

    def _send_off(self, entry: Entry) -> None:
        """Let a job run in a thread that was to run on the event loop."""
        entry.reroute(Strategy.SPAWN, "inline_overrun")
        if not self._workers.spawn(entry):
            entry.reroute(Strategy.CPU_POOL, "inline_overrun")
            self._queue(entry, self._pool)
            if entry.strategy is Strategy.DROP:
                self._ledger.settle(entry, Status.DROPPED)

    def _place(self, entry: Entry, *, soon: bool) -> None:
        is_probe = entry.reason == "probe"
        pool: QueueLane = self._pool
        if entry.kernel is None:
            cheap = entry.job.compute_cost <= self._settings.config.inline_max_cost
            if entry.takes_turns:
                pool = self._turn_lane()
                if entry.strategy not in (Strategy.CPU_POOL, Strategy.DROP):
                    entry.reroute(Strategy.CPU_POOL, "one_at_a_time")
            elif entry.strategy is Strategy.BATCH:
                entry.reroute(Strategy.CPU_POOL, "not_batchable")
            elif entry.strategy is Strategy.INLINE and not cheap:
                entry.reroute(Strategy.SPAWN, "not_declared_cheap")
        if entry.strategy is Strategy.SPAWN:
            if self._workers.spawn(entry):
                return
            entry.reroute(Strategy.CPU_POOL, "spawn_saturated")
        if entry.strategy is Strategy.CPU_POOL:
            # A probe of a cold kind waits for nobody, or its caller would give up before it ran.
            model: KindModel = entry.model
            self._queue(entry, pool, first=is_probe and model.learns and model.is_cold)
        elif entry.strategy is Strategy.BATCH:
            self._queue(entry, self._batches[entry.job.kind])
        elif entry.strategy is Strategy.INLINE and soon:
            if self._backlog.is_full:
                entry.reroute(Strategy.DROP, "queue_full")
            else:
                self.inline.push(entry)

    def _turn_lane(self) -> TurnLane:
        if self._turns is None:
            self._turns = TurnLane(self._backlog, self._ledger)
            self._workers.add(self._turns)
        return self._turns

    def _queue(self, entry: Entry, lane: QueueLane, *, first: bool = False) -> None:
        if self._backlog.is_full:
            entry.reroute(Strategy.DROP, "queue_full")
        else:
            lane.queue.push(entry, first=first)
            self._workers.look(lane)
            if entry.deadline_ns < math.inf and entry.queue is not None:
                self._workers.expect(entry.deadline_ns)

    async def submit(
        self, job: Job, kernels: Mapping[str, Kernel], costs: CostModel, arrived_ns: int
    ) -> Outcome:
        """Bring a job to its outcome for a caller who waits."""
        if self._has_had_turn():
            await self._give_way()
        kernel = kernel_of(job, kernels)
        if self._decider.refuses(job) and self._settings.is_open:
            excess_s = self._decider.excess_lag_s(self._clock())
            if excess_s > 0:
                return self._ledger.refuse(job, arrived_ns, DECISIONS[DROP_LOOP], excess_s)
        given, known = job, None
        while kernel is not known:
            job, known = given, kernel
            if not known.takes_at_once(given.inputs):
                with anyio.move_on_after(self._left_s(given, arrived_ns)) as scope:
                    job = await self.converted(given, known)
                if scope.cancelled_caught:
                    return self._ledger.refuse(given, arrived_ns, EXPIRED, None)
                kernel = kernel_of(given, kernels)  # another one may have taken its place
        entry = entry_of(job, kernel, costs, arrived_ns)
        self._begin(entry)
        return await self._wait(entry) if entry.outcome is None else entry.outcome

    async def converted(self, job: Job, kernel: Kernel) -> Job:
        """Return a job with its inputs as its kernel takes them, from a thread if that is long."""
        # A router that is closed sends no thread: as it is, the job will be dropped.
        if kernel.takes_at_once(job.inputs) or not self._settings.is_open:
            return job
        convert = functools.partial(kernel.as_inputs, job.inputs)
        try:
            return dataclasses.replace(job, inputs=await self._in_thread(convert))
        except Exception as error:  # it may be code of an object's own
            raise job_error(job.id, job.kind, error) from error

    def _left_s(self, job: Job, arrived_ns: int) -> float:
        """Return how many seconds of a job's budget are left; infinite without one."""
        if job.latency_budget_ms is None or not self._settings.is_adaptive:
            return math.inf
        return job.latency_budget_ms / 1e3 - (self._clock() - arrived_ns) / 1e9

    async def run(self, entry: Entry) -> Outcome:
        """Bring a call to its outcome for a caller who waits."""
        if self._has_had_turn():
            await self._give_way()
        self._begin(entry)
        return await self._wait(entry) if entry.outcome is None else entry.outcome

    def _has_had_turn(self) -> bool:
        """Tell whether the event loop shall turn before a caller's next job.

        It shall after a millisecond of all callers' jobs, unless the caller has just come out of
        the loop.
        """
        self._busy_ns += SUBMIT_NS
        if _turn.get() != self._turn:
            _turn.set(self._turn)
            return False
        return self._busy_ns > CHUNK_NS

    async def _give_way(self) -> None:
        """Let the event loop turn; whoever comes back first may go on for a millisecond again."""
        turn = self._turn
        await anyio.lowlevel.checkpoint()
        if turn == self._turn:
            self._turn += 1
            self._busy_ns = 0
        _turn.set(self._turn)

    def _begin(self, entry: Entry) -> None:
        """Enter a job of a caller who waits, and run it if it runs inline."""
        try:
            self.enter(entry)
            if entry.strategy is Strategy.INLINE:
                started_ns = self._clock()
                run_on_loop(self._ledger, self.watch, entry)
                self._busy_ns += self._clock() - started_ns
        except BaseException:
            self._ledger.cancel(entry)
            raise

    async def _wait(self, entry: Entry) -> Outcome:
        """Wait for a job's outcome; it is cancelled with the caller."""
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
        _turn.set(WAITED)
        return entry.outcome


def _will_teach(entry: Entry) -> bool | None:
    """Tell whether something will be learnt from a job; see `KindModel.note_lesson`."""
    if entry.outcome is None:
        return True if entry.begun_ns is not None or entry.reason == "probe" else None
    # What was cancelled while it ran goes on.
    return entry.outcome.status is Status.CANCELLED and entry.begun_ns is not None


def _cohort_event(entry: Entry) -> anyio.Event:
    """Return the event that wakes the jobs that a thread will probably take together.

    An event of its own for each job takes 3 us more, to make and to collect.
    """
    queue = entry.queue
    # Taken already, or always taken alone; and a probe may be ahead of the others.
    if queue is None or entry.strategy is Strategy.SPAWN or entry.reason == "probe":
        return anyio.Event()
    cohort: Cohort | None = queue.cohort
    if cohort is None or cohort.left_ns < entry.predicted_ns or cohort.event.is_set():
        queue.cohort = cohort = Cohort(anyio.Event(), CHUNK_NS)
    cohort.left_ns -= max(entry.predicted_ns, CHUNK_NS / COHORT_JOBS)
    return cohort.event
