"""What goes in and out: jobs, what a policy sees and says, and outcomes."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

import numpy as np

from helixnb._errors import JobCancelled, JobDropped, JobError

UINT64_MAX = 2**64 - 1
# Spelt out, since numpy.typing takes half a millisecond to import.
Array = np.ndarray[Any, np.dtype[Any]]


class _Coded(StrEnum):
    """Names with small numbers, which index counters and stand in columns.

    Attributes
    ----------
    code
        The position among the members, from 0.
    """

    code: int

    def __new__(cls, value: str) -> Self:
        """Make a member; its code is how many there were before it."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.code = len(cls.__members__)
        return member


class Strategy(_Coded):
    """How a job runs. The values are the spelling in logs and metrics."""

    INLINE = "inline"
    SPAWN = "spawn"
    CPU_POOL = "cpu_pool"
    BATCH = "batch"
    DROP = "drop"


class Status(_Coded):
    """How a job ended; each ends in one way, once."""

    COMPLETED = "completed"
    DROPPED = "dropped"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """One piece of work, and what it declares about itself.

    Parameters
    ----------
    id
        0 .. 2**64-1. It names the job in logs and seeds MonteCarlo; the router doesn't need it
        to be unique.
    kind
        The name of a kernel of the router.
    inputs
        A one-dimensional sequence or array of the numbers that the kernel takes; for the built-in
        kernels, integers in 0 .. 2**64-1. A contiguous array of the kernel's dtype isn't copied:
        leave it alone until the outcome is there.
    compute_cost
        0 .. 2**64-1, in the unit of the kernel (see the kernels); what a policy compares.
    scaling_potential
        0 to 1: how much of it gains from running in parallel, next to its like.
    latency_budget_ms
        Milliseconds from submit to outcome that the caller can use, or None for any number.
        0 is legal, and can't be met.
    params
        Numbers by name, for kernels that declare some.

    Raises
    ------
    JobError
        A field has a wrong type or lies out of range. `inputs` and `params` are checked when the
        job is submitted, since their types are the kernel's to say.
    """

    id: int
    kind: str
    inputs: Sequence[int] | Any = ()
    compute_cost: int
    scaling_potential: float = 0.0
    latency_budget_ms: float | None = None
    params: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("id", "compute_cost"):
            value = getattr(self, name)
            if type(value) is not int:
                if isinstance(value, bool) or not isinstance(value, numbers.Integral):
                    raise JobError(f"{name} must be an integer in 0 .. 2**64-1, got {value!r}")
                value = int(value)
                object.__setattr__(self, name, value)
            if not 0 <= value <= UINT64_MAX:
                raise JobError(f"{name} must lie in 0 .. 2**64-1, got {value}")
        if not isinstance(self.kind, str):
            raise JobError(f"kind must be the name of a kernel, got {self.kind!r}")
        scaling = _as_float("scaling_potential", self.scaling_potential, "a number in 0 .. 1")
        if not 0.0 <= scaling <= 1.0:  # false for NaN
            raise JobError(f"scaling_potential must lie in 0 .. 1, got {scaling}")
        object.__setattr__(self, "scaling_potential", scaling)
        if self.latency_budget_ms is not None:
            allowed = "a number of milliseconds >= 0, or None"
            budget = _as_float("latency_budget_ms", self.latency_budget_ms, allowed)
            if not 0.0 <= budget < math.inf:
                raise JobError(f"latency_budget_ms must be {allowed}, got {budget}")
        if not isinstance(self.params, Mapping):
            raise JobError(f"params must be a mapping of names to numbers, got {self.params!r}")


def _as_float(name: str, value: Any, allowed: str, error: type[Exception] = JobError) -> float:
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise error(f"{name} must be {allowed}, got {value!r:.80}")
    try:
        return float(value)
    except OverflowError:
        raise error(f"{name} must be {allowed}, got {value}") from None


def _strategy_of(value: Any) -> Strategy:
    try:
        return Strategy(value)
    except ValueError:
        raise ValueError(
            f"{value!r:.80} is not a valid Strategy: must be one of {', '.join(Strategy)}"
        ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The pressure a decision is made under; each number has its value at rest.

    Parameters
    ----------
    cpu_busy
        CPU slots in use, over all strategies.
    waiting
        Jobs that wait for a thread, over all strategies.
    backlog_s
        Predicted CPU-seconds of what waits and runs before a job that comes now; 0 while a slot
        is free.
    batch_backlog_s
        The same before a job that joins the batch of its kind.
    cpu_left
        CPUs that other processes and the event loop leave to the slots.
    loop_lag_ms
        How late the event loop gets round to what is due, in milliseconds.
    hop_us
        What it takes to send a thread or to hear from one, in microseconds, on an idle machine.
    sharers
        Jobs that come together and would share a hop.
    elapsed_ms
        Milliseconds since the job was submitted: it may have had to wait for its turn.
    """

    cpu_busy: int = 0
    waiting: int = 0
    backlog_s: float = 0.0
    batch_backlog_s: float = 0.0
    cpu_left: float = math.inf
    loop_lag_ms: float = 0.0
    hop_us: float = 60.0
    sharers: int = 1
    elapsed_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What the cost model says of a job; cold by default.

    Parameters
    ----------
    samples
        Timed runs of the kind so far.
    run_us
        Microseconds that the job takes of a CPU, alone; what the kernel's author declared, or
        infinite, until enough was measured.
    p95_us
        The same, not exceeded by 95 % of such jobs.
    batch_gain
        How many times less a job of this kind takes in a large batch, 0 where nothing is known.
    batch_us
        Microseconds of the kernel call that the job would share in a batch that gathers now.
    probe
        Whether the job may run although it seems infeasible, so that something is learnt.
    batch_probe
        Whether the job may be batched although that doesn't seem to pay, for the same reason.
    may_inline
        Whether the job may run on the event loop, if it seems short enough: its kind was timed, or
        its author declared what its jobs take (``work`` and ``ns_per_work``), and none of its jobs
        has held up the event loop lately.
    """

    samples: int = 0
    run_us: float = math.inf
    p95_us: float = math.inf
    batch_gain: float = 0.0
    batch_us: float = math.inf
    probe: bool = False
    batch_probe: bool = False
    may_inline: bool = True


@dataclass(frozen=True, slots=True)
class Decision:
    """A strategy, and the name of the rule that chose it.

    `retry_after_s` is for a drop: seconds after which a new try may succeed, None where waiting
    would not help or nothing is known.

    Raises
    ------
    TypeError, ValueError
        A field can't be.
    """

    strategy: Strategy
    reason: str
    retry_after_s: float | None = None

    def __post_init__(self) -> None:
        if type(self.strategy) is not Strategy:  # a policy's plain "inline" is legal
            object.__setattr__(self, "strategy", _strategy_of(self.strategy))
        if type(self.reason) is not str:
            raise TypeError(f"reason must be a string, got {self.reason!r:.80}")
        retry_after_s = self.retry_after_s
        if retry_after_s is not None:
            allowed = "a number of seconds >= 0, or None"
            retry_after_s = _as_float("retry_after_s", retry_after_s, allowed, TypeError)
            if not retry_after_s >= 0.0:  # true for NaN
                raise ValueError(f"retry_after_s must be {allowed}, got {retry_after_s}")
            object.__setattr__(self, "retry_after_s", retry_after_s)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """How a job ended.

    Attributes
    ----------
    job_id, kind
        The job's.
    status
        `Status.COMPLETED`, ``DROPPED``, ``FAILED`` or ``CANCELLED``.
    decided
        The strategy that the policy chose.
    strategy
        The strategy that ran. It differs where the chosen one had no room: a spawn without a
        free slot becomes ``cpu_pool``, a job that finds the queue full becomes ``drop``.
    reason
        The rule that decided, or what changed the strategy, or why the job was dropped.
    latency_ms
        Milliseconds from submit to outcome.
    latency_budget_ms
        The job's budget.
    error
        What the kernel raised, if the job failed.
    retry_after_s
        For a dropped job, seconds after which a new try may succeed, 0 where only that tells;
        None where waiting would not help, or where nothing is known.
    """

    job_id: int
    kind: str
    status: Status
    decided: Strategy
    strategy: Strategy
    reason: str
    latency_ms: float
    latency_budget_ms: float | None = None
    error: BaseException | None = None
    retry_after_s: float | None = None
    _value: Any = field(default=None, repr=False)
    _traceback: TracebackType | None = field(default=None, repr=False)

    @property
    def value(self) -> Any:
        """The answer.

        Raises
        ------
        JobDropped
            The job was dropped, so there is none.
        JobCancelled
            The job was cancelled through its ticket.
        BaseException
            Whatever the kernel raised, if the job failed.
        """
        if self.status is Status.COMPLETED:
            return self._value
        if self.error is not None:
            # From where the kernel raised it: each raise would lengthen the traceback otherwise.
            raise self.error.with_traceback(self._traceback)
        if self.status is Status.DROPPED:
            raise JobDropped(self.reason, self.retry_after_s)
        raise JobCancelled(f"job {self.job_id} was cancelled")

    def value_or(self, default: Any) -> Any:
        """Return the answer, or `default` if the job did not complete for whatever reason."""
        return self._value if self.status is Status.COMPLETED else default

    @property
    def met_budget(self) -> bool:
        """Whether the job completed, and within its budget if it has one."""
        return self.status is Status.COMPLETED and (
            self.latency_budget_ms is None or self.latency_ms <= self.latency_budget_ms
        )


class _Draft:
    """An outcome being filled in: the same fields, open to assignment."""

    __slots__ = Outcome.__slots__


class _LoadDraft:
    """A load being filled in, likewise."""

    __slots__ = Load.__slots__


class _EstimateDraft:
    """An estimate being filled in, likewise."""

    __slots__ = Estimate.__slots__


def make_load(
    cpu_busy: int,
    waiting: int,
    backlog_s: float,
    batch_backlog_s: float,
    cpu_left: float,
    loop_lag_ms: float,
    hop_us: float,
    sharers: int,
    elapsed_ms: float,
) -> Load:
    """Return a load, faster than its guarded constructor does."""
    draft: Any = _LoadDraft()
    draft.cpu_busy = cpu_busy
    draft.waiting = waiting
    draft.backlog_s = backlog_s
    draft.batch_backlog_s = batch_backlog_s
    draft.cpu_left = cpu_left
    draft.loop_lag_ms = loop_lag_ms
    draft.hop_us = hop_us
    draft.sharers = sharers
    draft.elapsed_ms = elapsed_ms
    draft.__class__ = Load
    load: Load = draft
    return load


def make_estimate(
    samples: int,
    run_us: float,
    p95_us: float,
    batch_gain: float,
    batch_us: float,
    probe: bool,
    batch_probe: bool,
    may_inline: bool,
) -> Estimate:
    """Return an estimate, faster than its guarded constructor does."""
    draft: Any = _EstimateDraft()
    draft.samples = samples
    draft.run_us = run_us
    draft.p95_us = p95_us
    draft.batch_gain = batch_gain
    draft.batch_us = batch_us
    draft.probe = probe
    draft.batch_probe = batch_probe
    draft.may_inline = may_inline
    draft.__class__ = Estimate
    estimate: Estimate = draft
    return estimate


def make_outcome(
    job_id: int,
    kind: str,
    status: Status,
    decided: Strategy,
    strategy: Strategy,
    reason: str,
    latency_ms: float,
    latency_budget_ms: float | None,
    value: Any,
    error: BaseException | None = None,
    retry_after_s: float | None = None,
) -> Outcome:
    """Return an outcome, in a sixth of the time that its guarded constructor takes (2.2 us)."""
    draft: Any = _Draft()
    draft.job_id = job_id
    draft.kind = kind
    draft.status = status
    draft.decided = decided
    draft.strategy = strategy
    draft.reason = reason
    draft.latency_ms = latency_ms
    draft.latency_budget_ms = latency_budget_ms
    draft.error = error
    draft.retry_after_s = retry_after_s
    draft._value = value  # noqa: SLF001  # of this module's own class
    draft._traceback = None if error is None else error.__traceback__  # noqa: SLF001  # as above
    draft.__class__ = Outcome
    outcome: Outcome = draft
    return outcome
