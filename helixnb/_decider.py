"""What a policy is asked with: the load as it is now, and what is known of the job's kind."""

from __future__ import annotations

import dataclasses
import inspect
import math
from dataclasses import dataclass
from typing import Any

from helixnb._core.counts import Counts
from helixnb._core.estimate import KindModel
from helixnb._core.lifecycle import Entry
from helixnb._core.policy import COLD, AdaptivePolicy, Policy, stretch_of, wait_ns_of
from helixnb._core.queues import Backlog
from helixnb._core.rules import HAND_BACK_NS, hand_off_ns, inline_pays
from helixnb._exec.lanes import BatchLane, QueueLane, Settings
from helixnb._exec.slots import Slots
from helixnb._exec.workers import Workers
from helixnb._log import SafeLogger
from helixnb._observe.pressure import Pressure
from helixnb._observe.routing_log import is_logging
from helixnb._records import Decision, Estimate, Job, Load, make_load
from helixnb_kernels._values import shown

logger = SafeLogger("helixnb")


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What would be decided of a job now, and why; its text is one line.

    Attributes
    ----------
    decision
        What the policy says.
    load, estimate
        What it says so from.
    wait_ms
        How long the job would probably wait for a slot, in milliseconds.
    run_ms
        How long it would probably run then, and with 95 % probability at most; what the kernel's
        author declared until enough runs were timed, and infinite for callables.
    p95_ms
        See there.
    latency_budget_ms
        The job's budget.
    """

    decision: Decision
    load: Load
    estimate: Estimate
    wait_ms: float
    run_ms: float
    p95_ms: float
    latency_budget_ms: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain dicts, numbers and strings, fit for JSON.

        What isn't known, and so is infinite for a policy, is None.
        """
        return _without_infinities(dataclasses.asdict(self))

    def __str__(self) -> str:
        budget = self.latency_budget_ms
        retry_s = self.decision.retry_after_s
        return (
            f"{self.decision.strategy} ({self.decision.reason}): "
            f"wait {self.wait_ms:.3g} ms + run {self.run_ms:.3g} ms (p95 {self.p95_ms:.3g} ms), "
            f"{'no budget' if budget is None else f'budget {budget:g} ms'}; "
            f"{self.load.cpu_busy} slots busy, {self.load.waiting} jobs wait, "
            f"loop {self.load.loop_lag_ms:.3g} ms late; {self.estimate.samples} runs known"
            + ("" if retry_s is None else f"; retry after {retry_s:.3g} s")
        )


def _without_infinities(record: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            plain[name] = _without_infinities(value)
        else:
            plain[name] = None if isinstance(value, float) and math.isinf(value) else value
    return plain


def checked_decision(decision: Any, policy: Policy) -> Decision:
    """Return what a policy gave, if it is a decision.

    Raises
    ------
    TypeError
        It isn't.
    """
    if isinstance(decision, Decision):
        return decision
    given = shown(decision)
    if inspect.iscoroutine(decision):
        decision.close()  # or Python would warn that nobody awaited it
    raise TypeError(f"{type(policy).__name__}.decide must return a Decision, got {given}")


class Decider:
    """Asks the policy, and lets a shadow policy answer beside it.

    Attributes
    ----------
    policy, shadow
        What decides, and what is only compared with it.
    """

    def __init__(
        self,
        settings: Settings,
        policy: Policy,
        shadow: Policy | None,
        backlog: Backlog,
        slots: Slots,
        workers: Workers,
        pressure: Pressure,
        counts: Counts,
    ) -> None:
        self.policy = policy
        self.shadow = shadow
        self._settings = settings
        self._backlog = backlog
        self._slots = slots
        self._workers = workers
        self._pressure = pressure
        self._counts = counts
        self._shadow_raised = False
        self._is_quick = type(policy) is AdaptivePolicy and shadow is None

    def load(
        self,
        now_ns: int,
        elapsed_ns: int,
        pool: QueueLane | None,
        batch: QueueLane | None = None,
        sharers: int = 1,
    ) -> Load:
        """Return the load as it is now, for a job that waits in either lane.

        Parameters
        ----------
        elapsed_ns
            Since it was submitted.
        sharers
            Jobs that come together with it.
        """
        slots = self._slots
        busy = slots.busy
        backlog_ns = batch_ns = 0.0
        if self._settings.is_adaptive and (busy >= slots.total or sharers > 1):
            backlog_ns, batch_ns = self._workers.backlogs_ns(now_ns, pool, batch)
        return make_load(
            busy,
            self._backlog.waiting,
            backlog_ns / 1e9,
            batch_ns / 1e9,
            self._pressure.cpu_left,
            self._pressure.lag_ms(now_ns),
            self._settings.hop_us,
            sharers,
            elapsed_ns / 1e6,
        )

    def runs_inline(self, entry: Entry, now_ns: int) -> bool:
        """Tell whether a job runs inline by `AdaptivePolicy`, where that takes a few numbers only.

        To gather all of them takes 5 us, and the jobs that run inline are those of a few.
        """
        model: KindModel = entry.model
        if entry.kernel is None or not self._is_quick or is_logging():
            return False
        config = self._settings.config
        # One that is barred may come back, as the whole rule says.
        if model.alone.samples < config.cold_samples or model.guard.is_barred:
            return False
        if entry.predicted_ns > config.max_job_s * 1e9:
            return False
        run_ns = entry.predicted_ns
        off_ns = HAND_BACK_NS
        if run_ns > off_ns:
            idle = self._slots.busy < self._slots.total
            off_ns = hand_off_ns(self._settings.hop_us * 1e3, idle, self._backlog.waiting, 1)
        budget_ms = entry.job.latency_budget_ms
        budget_ns = math.inf
        if budget_ms is not None:
            lag_ms = self._pressure.lag_ms(now_ns)
            if lag_ms > config.max_loop_lag_ms:
                return False
            elapsed_ms = (now_ns - entry.arrived_ns) / 1e6
            budget_ns = (budget_ms - lag_ms - elapsed_ms) * 1e6
        return inline_pays(run_ns, run_ns * model.alone.p95_factor, budget_ns, off_ns)

    def refuses(self, job: Job) -> bool:
        """Tell whether a job is dropped without a further look if the event loop is too late."""
        if is_logging() or self._settings.config.trace_jobs:
            return False
        return self._is_quick and job.latency_budget_ms is not None

    def excess_lag_s(self, now_ns: int) -> float:
        """Return by how much the event loop is too late."""
        return (self._pressure.lag_ms(now_ns) - self._settings.config.max_loop_lag_ms) / 1e3

    def decide(self, job: Job, load: Load, estimate: Estimate) -> Decision:
        """Return what the policy says."""
        decision = self._ask(job, load, estimate)
        if self.shadow is not None:
            self._compare(job, load, estimate, decision)
        return decision

    def _ask(self, job: Job, load: Load, estimate: Estimate) -> Decision:
        return checked_decision(
            self.policy.decide(job, load, self._settings.config, estimate), self.policy
        )

    def _compare(self, job: Job, load: Load, estimate: Estimate, decision: Decision) -> None:
        assert self.shadow is not None
        try:
            other = self.shadow.decide(job, load, self._settings.config, estimate)
            self.note_shadow(1, int(other.strategy is not decision.strategy))
        except Exception as error:
            self.note_shadow(1, 1, error)

    def note_shadow(self, jobs: int, others: int, error: Exception | None = None) -> None:
        """Count jobs that the shadow was asked for, and those that it would let run otherwise."""
        self._counts.shadow_compared += jobs
        self._counts.shadow_disagreements += others
        if error is not None and not self._shadow_raised:
            self._shadow_raised = True
            logger.warning("the shadow policy raised %r; further errors aren't logged", error)

    def look(
        self, entry: Entry, now_ns: int, pool: QueueLane, lane: BatchLane | None
    ) -> tuple[Load, Estimate]:
        """Return what a job is decided from now: the load, and what is known of its kind."""
        load = self.load(now_ns, now_ns - entry.arrived_ns, pool, lane)
        model: KindModel = entry.model
        if not model.learns:
            return load, COLD
        if lane is None or not load.backlog_s:  # nothing gathers while a slot is free
            return load, model.estimate(entry.work, entry.predicted_ns, now_ns)
        queue = lane.queue
        queued, queued_ns = len(queue), queue.work_ns
        return load, model.estimate(entry.work, entry.predicted_ns, now_ns, queued, queued_ns)

    def explain(
        self, entry: Entry, now_ns: int, pool: QueueLane, lane: BatchLane | None
    ) -> Explanation:
        """Say what would be decided of a job now."""
        config = self._settings.config
        load, estimate = self.look(entry, now_ns, pool, lane)
        decision = self._ask(entry.job, load, estimate)
        stretch = stretch_of(load, config)
        return Explanation(
            decision=decision,
            load=load,
            estimate=estimate,
            wait_ms=wait_ns_of(load, config, decision.strategy) / 1e6,
            run_ms=estimate.run_us * stretch / 1e3,
            p95_ms=estimate.p95_us * stretch / 1e3,
            latency_budget_ms=entry.job.latency_budget_ms,
        )
