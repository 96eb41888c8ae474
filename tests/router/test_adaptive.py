"""AdaptivePolicy on a running router: budgets are held, what is learnt counts, all is seen."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import numpy as np
import pytest
from support import LARGE, PICKY, Always, Gate, check_balanced, job, router

from helixnb import (
    AdaptivePolicy,
    Decision,
    Estimate,
    Job,
    JobBlock,
    JobColumns,
    Kernel,
    Load,
    Outcome,
    Router,
    RouterConfig,
    StaticPolicy,
    Stats,
    Status,
    Strategy,
    UnknownKindError,
)
from helixnb._core import estimate as estimate_module
from helixnb._core.estimate import EXPLORED, SKIPPED
from helixnb._observe import pressure
from helixnb._observe.pressure import CpuMeter, Pressure
from helixnb_kernels import BUILT_IN

pytestmark = pytest.mark.anyio

MS = 1_000_000
S = 1_000_000_000
BRIEF_MS = 50.0
"""A budget that is over soon, but not before what waits for one `Gate` (10 ms)."""


class Clock:
    """A clock by hand."""

    def __init__(self) -> None:
        self.now_ns = S

    def __call__(self) -> int:
        return self.now_ns


class Held(Always):
    """A policy that chooses one strategy, and wants budgets to be held."""

    adaptive = True


def adaptive(*kernels: Kernel, clock: Any = None, shadow: Any = None, **settings: Any) -> Router:
    """Make a router with one slot, by `AdaptivePolicy`; a late loop is no matter, unless told."""
    policy = settings.pop("policy", None)
    settings = {
        "cpu_parallelism": 1,
        "hop_us": 50.0,
        "heed_other_cpu_use": False,
        "max_loop_lag_ms": 1e6,
    } | settings
    return Router(
        RouterConfig(**settings),
        kernels=(*BUILT_IN, *kernels),
        policy=AdaptivePolicy() if policy is None else policy,
        shadow=shadow,
        clock=time.perf_counter_ns if clock is None else clock,
    )


async def hold_slot(r: Router, gate: Gate) -> None:
    """Let a job wait in the router's only slot, until the gate opens."""
    r.submit_soon(job(0, "Gate", compute_cost=LARGE))
    await gate.begun()


def teach(r: Router, kind: str, ns_per_work: float, *, at_ns: int | None = None) -> None:
    """Let a router believe that it has seen many jobs of a kind."""
    model = r._costs.of_kernel(kind)
    for work in 50 * [1.0, 64.0]:
        model.learn(work, work * ns_per_work, r._clock() if at_ns is None else at_ns)


def gates(jobs: int, **fields: Any) -> JobColumns:
    """Make jobs for a gate, as columns."""
    block = JobBlock("Gate", np.empty((jobs, 0), np.uint64), compute_cost=LARGE, **fields)
    return JobColumns([block])


async def until(there: Callable[[], bool]) -> None:
    """Wait until something is so, which no event tells."""
    with anyio.fail_after(30):
        while not there():
            await anyio.lowlevel.checkpoint()


def submit_soon(r: Router, each: Job) -> Any:
    return r.submit_soon(each).wait()


async def submit_many(r: Router, each: Job) -> Outcome:
    return (await r.submit_many([each]))[0]


WAYS = pytest.mark.parametrize(
    "submit", [Router.submit, submit_soon, submit_many], ids=["submit", "submit_soon", "many"]
)
Submit = Callable[[Router, Job], Any]


@pytest.fixture
def punctual(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let event loops count as in time, however busy the machine is."""
    monkeypatch.setattr(Pressure, "lag_ms", lambda self, now_ns: 0.0)


# -- Budgets are held -----------------------------------------------------------------------------


@WAYS
@pytest.mark.usefixtures("punctual")
async def test_a_waiting_job_expires_by_the_timer(submit: Submit) -> None:
    """It is dropped when its budget is over, while the only slot is held; and it never runs."""
    gate = Gate()
    async with adaptive(gate.kernel) as r:
        await hold_slot(r, gate)
        with anyio.fail_after(30):
            outcome = await submit(
                r, job(1, "Gate", compute_cost=LARGE, latency_budget_ms=BRIEF_MS)
            )
        assert (outcome.status, outcome.reason) == (Status.DROPPED, "expired")
        assert outcome.strategy is Strategy.DROP
        assert outcome.decided is not Strategy.DROP
        assert outcome.latency_ms >= BRIEF_MS
        assert outcome.retry_after_s == 0
        assert (r.stats().waiting, r.stats().in_flight) == (0, 1)
        gate.open()
    assert gate.ran == [0]
    assert r.stats().dropped_by_reason == {"expired": 1}
    check_balanced(r.stats())


@pytest.mark.usefixtures("punctual")
async def test_columns_expire_by_their_own_budgets() -> None:
    """Of one call, those whose budget is over are dropped, and the others wait on."""
    gate = Gate(ns_per_work=10.0)
    outcomes: Any = None
    budgets = np.array([BRIEF_MS, np.nan, 2 * BRIEF_MS, 60_000.0])

    async def run() -> None:
        nonlocal outcomes
        outcomes = await r.submit_many(gates(4, latency_budget_ms=budgets, id=np.arange(1, 5)))

    async with adaptive(gate.kernel) as r, anyio.create_task_group() as tasks:
        await hold_slot(r, gate)
        tasks.start_soon(run)
        await until(lambda: r.stats().dropped_by_reason.get("expired", 0) == 2)
        gate.open()
    assert [each.reason for each in outcomes] == ["expired", "large", "expired", "large"]
    assert [each.status for each in outcomes][1::2] == [Status.COMPLETED] * 2
    assert [each.retry_after_s for each in outcomes] == [0, None, 0, None]
    assert sorted(gate.ran) == [0, 2, 4]
    check_balanced(r.stats())


@WAYS
@pytest.mark.parametrize(
    ("policy", "expires"),
    [
        (AdaptivePolicy, True),
        (functools.partial(Held, Strategy.CPU_POOL), True),
        (StaticPolicy, False),
        (functools.partial(Always, Strategy.CPU_POOL), False),
    ],
    ids=["adaptive", "users_adaptive", "static", "users"],
)
async def test_late_jobs_are_dropped_when_a_thread_takes_them(
    submit: Submit, policy: Callable[[], Any], expires: bool
) -> None:
    """The timer aside; and only under a policy that wants it, AdaptivePolicy or a user's own."""
    gate, clock = Gate(), Clock()
    outcome: Any = None

    async def run() -> None:
        nonlocal outcome
        scales = job(1, "Gate", (), LARGE, scaling_potential=1.0, latency_budget_ms=60_000.0)
        outcome = await submit(r, scales)

    async with adaptive(gate.kernel, clock=clock, policy=policy()) as r:
        await hold_slot(r, gate)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await anyio.wait_all_tasks_blocked()
            assert r.stats().in_flight == 2
            clock.now_ns += 60_001 * MS  # the timer will fire in a minute
            gate.open()
    assert outcome.reason == "expired" if expires else outcome.status is Status.COMPLETED
    assert gate.ran == [0] if expires else gate.ran == [0, 1]
    check_balanced(r.stats())


async def test_a_probe_is_not_held_to_its_budget() -> None:
    """It runs, so that something is learnt; the next job of its kind is dropped beforehand."""
    clock = Clock()
    async with adaptive(clock=clock) as r:
        teach(r, "HashMix", 1e5)
        slow = job(1, compute_cost=LARGE, latency_budget_ms=50)
        dropped = await r.submit(slow)
        assert (dropped.reason, dropped.retry_after_s) == ("infeasible", None)
        clock.now_ns += S + 1
        r._pressure._due_ns = math.inf
        probe = await r.submit(slow)
        assert (probe.reason, probe.status) == ("probe", Status.COMPLETED)
        assert (await r.submit(slow)).reason != "probe"
    check_balanced(r.stats())


async def test_one_probe_is_enough() -> None:
    """A kind that was slow for a while, and was known well before, is admitted after one run."""
    clock = Clock()
    async with adaptive(clock=clock) as r:
        teach(r, "HashMix", 1e5)
        slow = job(1, compute_cost=LARGE, latency_budget_ms=50)
        reasons = []
        for _ in range(10):
            clock.now_ns += S + 1
            r._pressure._due_ns = math.inf
            reasons.append((await r.submit(slow)).reason)
        assert reasons.count("probe") == 1


def hundred(budget_ms: float) -> list[Job]:
    """Return a call's jobs, which take 280 ms each by what `teach` says with 1e5."""
    return [job(i, compute_cost=LARGE, latency_budget_ms=budget_ms) for i in range(100)]


@pytest.mark.usefixtures("punctual")
async def test_a_batch_of_a_call_takes_no_less_than_its_job() -> None:
    """In columns, too, a job is infeasible that takes longer than its budget however it runs."""
    async with adaptive() as r:
        teach(r, "HashMix", 1e5)
        for jobs in (8, 16):
            r._costs.of_kernel("HashMix").gains.learn(jobs, jobs * 1e6, jobs * 5e5)
        outcomes = await r.submit_many(hundred(50))
        assert {each.reason for each in outcomes} == {"infeasible"}


@pytest.mark.usefixtures("punctual")
async def test_one_job_of_a_call_is_the_probe() -> None:
    """When one is due, it is one of its kind, and not all that come together."""
    clock = Clock()
    async with adaptive(clock=clock) as r:
        teach(r, "HashMix", 2e4)  # 56 ms, by what is set for all that wait, 250
        for jobs in (8, 16):  # no gain, so that no batch is tried
            r._costs.of_kernel("HashMix").gains.learn(jobs, jobs * 1e6, jobs * 1e6)
        for _ in range(EXPLORED):
            r._costs.of_kernel("HashMix").note_batch_probe(clock())
        clock.now_ns += S + 1
        outcomes = await r.submit_many(hundred(50))
        assert sum(each.decided is not Strategy.DROP for each in outcomes) == 1
        assert r._costs.of_kernel("HashMix")._probed_ns == clock()


async def test_a_batch_is_taken_as_soon_as_a_slot_is_free() -> None:
    """All that gathered meanwhile, in one call, long before the delay of a batch is over."""
    gate = Gate()
    policy = Held(Strategy.SPAWN)
    settings: dict[str, Any] = {"batch_max_delay_ms": 60_000, "drain_timeout_s": 5.0}
    async with adaptive(gate.kernel, policy=policy, **settings) as r:
        teach(r, "HashMix", 1.8)
        await hold_slot(r, gate)
        policy.strategy = Strategy.BATCH
        tickets = [r.submit_soon(job(i, compute_cost=LARGE)) for i in range(10)]
        await anyio.wait_all_tasks_blocked()
        assert (r.stats().batches, r.stats().waiting) == (0, 10)
        gate.open()
        with anyio.fail_after(30):
            outcomes = [await ticket.wait() for ticket in tickets]
        assert {each.strategy for each in outcomes} == {Strategy.BATCH}
        assert (r.stats().batches, r.stats().batched_jobs) == (1, 10)
    check_balanced(r.stats())


# -- A late loop ----------------------------------------------------------------------------------


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the event loop of every router be 20 ms late."""
    monkeypatch.setattr(Pressure, "lag_ms", lambda self, now_ns: 20.0)


@WAYS
@pytest.mark.parametrize("shadow", [None, StaticPolicy()], ids=["", "shadow"])
@pytest.mark.usefixtures("late")
async def test_a_late_loop_drops_jobs(submit: Submit, shadow: Any) -> None:
    """Cold and known kinds alike, and says when to retry, however a job is submitted."""
    async with adaptive(shadow=shadow, max_loop_lag_ms=10.0) as r:
        teach(r, "HashMix", 1.0)
        for kind in ("HashMix", "MonteCarlo"):
            outcome = await submit(r, job(1, kind, latency_budget_ms=60_000))
            assert (outcome.status, outcome.reason) == (Status.DROPPED, "loop_saturated")
            assert outcome.decided is outcome.strategy is Strategy.DROP
            assert outcome.retry_after_s == pytest.approx(0.01)
            assert outcome.latency_ms >= 0
            # What has no budget has time.
            assert (await submit(r, job(1, kind))).status is Status.COMPLETED
        r.reconfigure(max_loop_lag_ms=20)
        assert (await submit(r, job(1, latency_budget_ms=60_000))).status is Status.COMPLETED
    assert r.stats().dropped_by_reason == {"loop_saturated": 2}
    check_balanced(r.stats())


@WAYS
@pytest.mark.usefixtures("late")
async def test_wrong_jobs_raise_all_the_same(submit: Submit) -> None:
    """What isn't a job, or of no kind that there is, is no answer to overload."""
    wrong: Any = "a job"
    async with adaptive(max_loop_lag_ms=10.0) as r:
        with pytest.raises(TypeError, match=r"must be a helixnb\.Job"):
            await submit(r, wrong)
        with pytest.raises(UnknownKindError, match="'Nothing'"):
            await submit(r, job(1, "Nothing"))
    assert r.stats().submitted == 0


@pytest.mark.usefixtures("late")
async def test_static_policy_knows_no_late_loop() -> None:
    """It decides as the original did."""
    async with router() as r:
        assert (await r.submit(job())).status is Status.COMPLETED


async def test_drops_for_a_late_loop_let_it_turn() -> None:
    """By the router's own clock: late at once, and in time again after a heartbeat or two."""
    clock = Clock()
    hurried = job(latency_budget_ms=60_000)
    async with adaptive(clock=clock, max_loop_lag_ms=10.0) as r:
        assert (await r.submit(hurried)).status is Status.COMPLETED
        await until(lambda: r._pressure._due_ns < math.inf)
        with anyio.fail_after(30):
            clock.now_ns += 100 * MS
            outcome = await r.submit(hurried)
            assert outcome.reason == "loop_saturated"
            assert outcome.retry_after_s is not None
            assert 0.05 < outcome.retry_after_s < 0.1
            assert r.stats().loop_lag_ms > 50
            while (await r.submit(hurried)).status is Status.DROPPED:
                pass  # without a wait of its own
        assert r.stats().loop_lag_ms == 0
    check_balanced(r.stats())


# -- What would be decided ------------------------------------------------------------------------


def counts(stats: Stats) -> dict[str, Any]:
    """Return what of the statistics only jobs may change."""
    record = stats.as_dict()
    for name in ("loop_lag_ms", "cpu_left"):
        del record[name]
    return record


async def test_explain_says_what_submit_would_do() -> None:
    """And changes nothing: neither the books nor whose turn a probe is."""
    clock = Clock()
    async with adaptive(clock=clock) as r:
        teach(r, "HashMix", 1e5, at_ns=0)  # a second ago
        clock.now_ns += 1
        slow = job(3, compute_cost=LARGE, latency_budget_ms=5)
        before = counts(r.stats())
        first, again = r.explain(slow), r.explain(slow)
        assert counts(r.stats()) == before
        assert first == again
        assert first.decision == Decision(Strategy.SPAWN, "probe")
        outcome = await r.submit(slow)
        assert (outcome.strategy, outcome.reason) == (Strategy.SPAWN, "probe")
        assert r.explain(slow).decision.reason != "probe"


@pytest.mark.parametrize("late_ms", [0.0, 3.0, 20.0])
async def test_the_quick_way_to_run_inline_is_the_policys(
    late_ms: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs inline without the policy being asked is what it would let run inline."""
    lag_ms = 0.0
    monkeypatch.setattr(Pressure, "lag_ms", lambda self, now_ns: lag_ms)
    gate, clock = Gate(), Clock()
    seen = set()
    async with adaptive(gate.kernel, clock=clock, max_loop_lag_ms=10.0) as r:

        def compare() -> None:
            for ns_per_work in (10.0, 1_000.0, 1e5):
                r._costs.of_kernel("HashMix").alone.__init__()  # type: ignore[misc]
                teach(r, "HashMix", ns_per_work)
                for cost in (64, 640, 6_400, LARGE):
                    for budget_ms in (None, 0.0, 0.02, 0.2, 3.02, 3.2, 50.0):
                        each = job(1, compute_cost=cost, latency_budget_ms=budget_ms)
                        quick = r._decider.runs_inline(r._entry_of(each), clock())
                        assert quick == (r.explain(each).decision.strategy is Strategy.INLINE)
                        seen.add(quick)

        for step in ("idle", "busy", "nine wait"):
            lag_ms = 0.0
            if step == "busy":
                await hold_slot(r, gate)
            elif step == "nine wait":
                for i in range(9):
                    r.submit_soon(job(i, "Gate", compute_cost=LARGE))
            lag_ms = late_ms
            compare()
        gate.open()
    assert seen == {True, False}


@pytest.mark.usefixtures("punctual")
async def test_explain_as_data_and_as_a_line() -> None:
    """Predicted times, the budget, and the rule that fired."""
    gate, clock = Gate(), Clock()
    async with adaptive(gate.kernel, clock=clock) as r:
        teach(r, "PrimeCount", 1e6)
        model = r._costs.of_kernel("PrimeCount").alone
        await hold_slot(r, gate)
        each = job(1, "PrimeCount", compute_cost=20_000, latency_budget_ms=2)
        before = counts(r.stats())
        told = r.explain(each)
        assert counts(r.stats()) == before
        assert told.decision.strategy is Strategy.DROP
        assert told.decision.reason == "infeasible"
        assert (told.load.cpu_busy, told.load.waiting) == (1, 0)
        assert told.estimate.samples == model.samples
        assert told.wait_ms == pytest.approx(10)
        assert told.run_ms == pytest.approx(told.estimate.run_us / 1e3)
        assert told.p95_ms == pytest.approx(told.run_ms * model.p95_factor)
        assert told.latency_budget_ms == 2
        line = str(told)
        assert "\n" not in line
        assert line.startswith("drop (infeasible): wait 10 ms + run ")
        assert "budget 2 ms; 1 slots busy, 0 jobs wait, loop 0 ms late; 98 runs known" in line
        assert "no budget" in str(r.explain(job()))
        assert "retry after" in str(r.explain(job(1, compute_cost=LARGE, latency_budget_ms=5)))
        with pytest.raises(UnknownKindError):
            r.explain(job(1, "Nothing"))
        assert counts(r.stats()) == before
        gate.open()
    check_balanced(r.stats())


@pytest.mark.usefixtures("punctual")
async def test_explain_says_what_submit_does_while_a_slot_is_free() -> None:
    """No batch gathers then, which alone might be in time."""
    async with adaptive() as r:
        teach(r, "HashMix", 1e5)
        r._costs.of_kernel("HashMix").gains.learn(8, 8e6, 1e6)
        estimate = r.explain(job(compute_cost=LARGE)).estimate
        between_ms = (estimate.run_us + estimate.p95_us) / 2e3
        tight = job(compute_cost=LARGE, latency_budget_ms=between_ms)
        told = r.explain(tight)
        assert told.decision.reason == (await r.submit(tight)).reason == "infeasible"


async def test_explain_knows_what_the_router_refuses() -> None:
    """A job too large, and any job when it is closed."""
    huge = job(compute_cost=2**64 - 1)
    async with adaptive() as r:
        assert (await r.submit(huge)).reason == "too_large"
        assert r.explain(huge).decision.reason == "too_large"
        await r.close()
        assert (await r.submit(job())).reason == "router_closed"
        assert r.explain(job()).decision.reason == "router_closed"


async def test_a_decision_can_be_repeated_from_its_log_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The record's fields make the job, the load and the estimate that gave the decision."""
    gate = Gate()
    kinds = ("HashMix", "PrimeCount", "MonteCarlo")
    draw = random.Random(5)

    def some(count: int) -> list[Job]:
        return [
            job(
                i,
                draw.choice(kinds),
                compute_cost=draw.choice([1, 10_000, LARGE]),
                scaling_potential=draw.random(),
                latency_budget_ms=draw.choice([None, 0.01, 1, 11.0, 100.0]),
            )
            for i in range(count)
        ]

    with caplog.at_level(logging.DEBUG, "helixnb.route"):
        async with adaptive(gate.kernel) as r, anyio.create_task_group() as tasks:
            for _ in range(3):
                for each in some(30):
                    await r.submit(each)
                await r.submit_many(some(30))
            await hold_slot(r, gate)
            tickets = [r.submit_soon(each) for each in some(100)]
            tasks.start_soon(r.submit_many, some(100))
            await anyio.wait_all_tasks_blocked()
            gate.open()
            for ticket in tickets:
                await ticket.wait()
            config = r.config
    reasons = set()
    for record in caplog.records:
        fields: Any = record.__dict__
        line = dict(part.split("=") for part in record.getMessage().split()[1:])

        def read(kind: type, fields: Any = fields, line: Any = line) -> Any:
            names = kind.__dataclass_fields__  # type: ignore[attr-defined]
            for name in names:
                assert str(fields[name]) == line[name]
            return kind(**{name: fields[name] for name in names})

        again = AdaptivePolicy().decide(
            job(
                fields["job_id"],
                fields["kind"],
                compute_cost=fields["cost"],
                scaling_potential=fields["scaling"],
                latency_budget_ms=fields["latency_budget_ms"],
            ),
            read(Load),
            config,
            read(Estimate),
        )
        assert again.strategy.value == fields["strategy"]
        if "executed" not in fields:
            assert again.reason == fields["reason"]
            reasons.add(again.reason)
    assert len(caplog.records) == 381
    assert len(reasons) >= 5
    check_balanced(r.stats())


# -- A shadow -------------------------------------------------------------------------------------


@WAYS
async def test_a_shadow_only_counts(submit: Submit) -> None:
    """Each job that it would let run otherwise is a disagreement, and runs as decided."""
    shadow = Always(Strategy.CPU_POOL)
    async with adaptive(policy=Always(Strategy.INLINE), shadow=shadow) as r:
        for _ in range(3):
            assert (await submit(r, job())).strategy is Strategy.INLINE
        assert (r.stats().shadow_compared, r.stats().shadow_disagreements) == (3, 3)
        shadow.strategy = Strategy.INLINE
        assert (await submit(r, job())).strategy is Strategy.INLINE
        assert (r.stats().shadow_compared, r.stats().shadow_disagreements) == (4, 3)
    check_balanced(r.stats())


async def test_built_in_shadows_in_columns() -> None:
    """Rows are compared one by one."""
    async with adaptive(policy=StaticPolicy(), shadow=AdaptivePolicy(), cpu_parallelism=2) as r:
        costs = [640, 64_000, 640, 640]
        jobs = [job(i, compute_cost=cost) for i, cost in enumerate(costs)]
        jobs.append(job(9, compute_cost=LARGE, latency_budget_ms=60_000))
        await r.submit_many(jobs)
        assert (r.stats().shadow_compared, r.stats().shadow_disagreements) == (5, 0)
        r.reconfigure(cold_samples=1)
        model = r._costs.of_kernel("HashMix")
        for work in 5 * [1.0, 50.0]:
            model.alone.learn(work, work * 1e6, r._clock(), 200)
        await r.submit_many(jobs)  # a thousand times as long as it was declared
        assert r.stats().shadow_compared == 10
        assert r.stats().shadow_disagreements >= 3
    check_balanced(r.stats())


@WAYS
async def test_a_shadow_that_raises_is_counted_and_warned_about_once(
    submit: Submit, caplog: pytest.LogCaptureFixture
) -> None:
    """Its errors are its own: jobs run as decided."""

    class Broken:
        def decide(self, *_: Any) -> Decision:
            raise ArithmeticError("shadow")

    async with adaptive(policy=Always(Strategy.INLINE), shadow=Broken()) as r:
        for _ in range(3):
            assert (await submit(r, job())).status is Status.COMPLETED
        assert (r.stats().shadow_compared, r.stats().shadow_disagreements) == (3, 3)
    assert caplog.text.count("the shadow policy raised ArithmeticError('shadow')") == 1
    check_balanced(r.stats())


@pytest.mark.parametrize("name", ["policy", "shadow"])
def test_policies_are_checked_beforehand(name: str) -> None:
    """One that takes no estimate, or isn't a policy at all, is refused before anything runs."""

    class Old:
        def decide(self, job: Job, load: Load, config: RouterConfig) -> Decision:
            raise NotImplementedError

    arguments: dict[str, Any] = {name: Old()}
    with pytest.raises(TypeError, match=f"{name}.decide must take job, load, config and estimate"):
        Router(**arguments)
    arguments[name] = object()
    with pytest.raises(TypeError, match=f"{name} must have a method decide"):
        Router(**arguments)


# -- Settings of a running router -----------------------------------------------------------------


@WAYS
@pytest.mark.usefixtures("punctual")
async def test_the_bound_on_the_backlog_can_be_changed(submit: Submit) -> None:
    """The next job is held to the new one."""
    gate = Gate()
    waiting = job(1, compute_cost=LARGE, latency_budget_ms=60_000)
    async with adaptive(gate.kernel, max_backlog_ms=5) as r:
        await hold_slot(r, gate)
        dropped = await submit(r, waiting)
        assert dropped.reason == "queue_full"
        assert 0 < dropped.retry_after_s <= 0.0051
        r.reconfigure(max_backlog_ms=50)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(submit, r, waiting)
            await anyio.wait_all_tasks_blocked()
            assert r.stats().in_flight == 2
            gate.open()
    assert r.stats().dropped_by_reason == {"queue_full": 1}
    check_balanced(r.stats())


async def test_other_settings_of_the_policy_can_be_changed() -> None:
    """Each counts from the next decision on."""
    clock = Clock()
    async with adaptive(clock=clock) as r:
        teach(r, "HashMix", 1e5)
        slow = job(1, compute_cost=LARGE, latency_budget_ms=50)
        clock.now_ns += 2 * MS
        assert r.explain(slow).decision.reason == "infeasible"
        r.reconfigure(probe_interval_s=0.001)
        assert r.explain(slow).decision.reason == "probe"
        r.reconfigure(cold_samples=1_000)
        assert r.explain(slow).decision.reason == "large"
        r.reconfigure(queue_target_ms=7.0)
        assert r._backlog.standing.target_ns == 7 * MS
        r.reconfigure(hop_us=12.5)
        assert (r.stats().hop_us, r.explain(slow).load.hop_us) == (12.5, 12.5)


async def test_how_much_a_kind_must_gain_can_be_changed() -> None:
    """A job goes to the batch or to the pool by the gain that is asked for now."""
    gate = Gate()
    async with adaptive(gate.kernel) as r:
        teach(r, "HashMix", 1_000.0)
        model = r._costs.of_kernel("HashMix")
        for jobs in (8, 16):
            model.gains.learn(jobs, jobs * 1e6, jobs * 5e5 if jobs == 8 else jobs * 1e6)
        for _ in range(EXPLORED):
            model.note_batch_probe(r._clock())
        await hold_slot(r, gate)
        each = job(1, compute_cost=LARGE)
        assert r.explain(each).decision.reason == "batch_gain"
        r.reconfigure(batch_min_gain=2.5, batch_probe_interval_s=1e6)
        assert r.explain(each).decision.reason == "slots_busy"
        gate.open()


async def test_what_a_hop_takes_is_measured_unless_it_is_set() -> None:
    """When the router opens; the routing log and the statistics have it."""
    async with adaptive(hop_us=None) as r:
        measured_us = r.stats().hop_us
        assert 0 < measured_us < 1e6
        assert r.explain(job()).load.hop_us == measured_us
        r.reconfigure(hop_us=77.0)
        assert r.stats().hop_us == 77
        r.reconfigure(hop_us=None)
        assert r.stats().hop_us == measured_us


# -- Callables ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cost", "at_first", "at_last"),
    [(1, {"medium"}, {"cheaper_inline"}), (LARGE, {"large"}, {"not_declared_cheap", "slot_idle"})],
)
async def test_callables_are_learnt(cost: int, at_first: set[str], at_last: set[str]) -> None:
    """By the function or the kind that it is given; inline only if declared cheap."""

    def quick() -> int:
        return 5

    async with adaptive(cpu_parallelism=2) as r:
        call = functools.partial(r.run, quick, compute_cost=cost)
        outcomes = [await call() for _ in range(40)]
        assert {each.value for each in outcomes} == {5}
        assert outcomes[0].reason in at_first
        assert outcomes[-1].reason in at_last
        assert (outcomes[-1].strategy is Strategy.INLINE) == (cost == 1)
        assert (await call(kind="another")).reason in at_first
    check_balanced(r.stats())


async def test_callables_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many kinds an application makes up."""
    monkeypatch.setattr(estimate_module, "MOST_KINDS", 8)
    async with adaptive() as r:
        for i in range(50):
            await r.run(int, compute_cost=1, kind=f"kind {i}")
        assert len(r._costs._callables) == 8
        for i in range(50):
            await r.run(functools.partial(int, i), compute_cost=1)
        assert len(r._costs._callables) == 8
    assert r.stats().completed == 100


# -- What presses from outside --------------------------------------------------------------------


class Meter:
    """What stands for `CpuMeter.read`: says when it was called often enough."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, give: Callable[[], float]) -> None:
        self.calls = 0
        self._give = give
        self._enough = threading.Event()
        monkeypatch.setattr(pressure, "CPU_PERIOD_S", 0.001)
        monkeypatch.setattr(CpuMeter, "read", lambda _: self._read())

    def _read(self) -> float:
        self.calls += 1
        if self.calls >= 4:
            self._enough.set()
        return self._give()

    async def was_read(self) -> None:
        assert await anyio.to_thread.run_sync(self._enough.wait, 30)


async def test_what_others_take_of_the_cpu_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they leave is in the load, unless it shall not be heeded."""
    meter = Meter(monkeypatch, lambda: 0.5)
    async with adaptive(cpu_parallelism=2, heed_other_cpu_use=True) as r:
        assert r.stats().cpu_left is None
        await r.submit(job())  # nothing is measured before
        await meter.was_read()
        await until(lambda: r.stats().cpu_left == 0.5)
        assert r.explain(job()).load.cpu_left == 0.5
        assert r.explain(job()).run_ms == pytest.approx(2 * r.explain(job()).estimate.run_us / 1e3)
        r.reconfigure(heed_other_cpu_use=False)
        await until(lambda: r.stats().cpu_left is None)


async def test_a_machine_without_counters(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """That is warned about once, and the router goes on as if it had the machine to itself."""

    def fail() -> float:
        raise OSError("no counters")

    meter = Meter(monkeypatch, fail)
    async with adaptive(heed_other_cpu_use=True) as r:
        await r.submit(job())
        await meter.was_read()
        assert r.stats().cpu_left is None
        assert (await r.submit(job())).status is Status.COMPLETED
    assert caplog.text.count("can't be measured: OSError('no counters')") == 1
    check_balanced(r.stats())


async def test_nothing_is_measured_while_no_jobs_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while without any the router sleeps, and the next one wakes it."""
    meter = Meter(monkeypatch, lambda: 0.5)
    clock = Clock()
    async with adaptive(clock=clock, heed_other_cpu_use=True, cpu_parallelism=2) as r:
        assert r._pressure.resting
        await r.submit(job())
        await meter.was_read()
        clock.now_ns += 2 * S
        await until(lambda: r._pressure.resting)
        await until(lambda: r.stats().cpu_left is None)
        await until(lambda: r._pressure.lag_ms(clock()) == 0)
        r.submit_soon(job())
        assert not r._pressure.resting
        await until(lambda: r.stats().cpu_left == 0.5)


# -- The books ------------------------------------------------------------------------------------

KINDS = ("HashMix", "PrimeCount", "MonteCarlo", "Picky")


async def act(r: Router, draw: random.Random, number: int) -> None:
    """Do one thing that a service might do to a router."""

    def made() -> Job:
        return job(
            number,
            draw.choice(KINDS),
            [number],
            compute_cost=draw.choice([100, 10_000, 1_000_000]),
            scaling_potential=draw.random(),
            latency_budget_ms=draw.choice([None, 0.0, 0.1, 1.0, 3.0, 1_000.0]),
        )

    match draw.randrange(7):
        case 0 | 1:
            await r.submit(made())
        case 2:
            with anyio.move_on_after(draw.random() * 0.004):
                await r.submit(made())
        case 3:
            tickets = [r.submit_soon(made()) for _ in range(20)]
            tickets[3].cancel()
            for ticket in tickets:
                await ticket.wait()
        case 4:
            with anyio.move_on_after(draw.random() * 0.02):
                outcomes = await r.submit_many([made() for _ in range(draw.randrange(60))])
                assert all(each.job_id == number for each in outcomes)
        case 5:
            await r.run(divmod, number, draw.randrange(3), compute_cost=number, kind="divmod")
        case 6:
            r.reconfigure(
                cpu_parallelism=draw.randint(1, 3),
                max_backlog_ms=draw.choice([0.0, 1.0, 250.0]),
                max_loop_lag_ms=draw.choice([0.5, 10.0]),
                batch_min_gain=draw.choice([1.0, 9.0]),
                cold_samples=draw.choice([1, 8, 100]),
                queue_target_ms=draw.choice([0.01, 5.0]),
            )
            r.explain(made())


@pytest.mark.parametrize("shadow", [None, AdaptivePolicy()], ids=["", "shadow"])
@pytest.mark.parametrize("seed", range(4))
async def test_random_traffic(seed: int, shadow: Any) -> None:
    """Whatever comes with whatever budgets, no job is lost or counted twice, and nothing leaks."""
    draw = random.Random(seed)
    r = adaptive(PICKY, shadow=shadow, probe_interval_s=0.01, queue_capacity=50)

    async def client(first: int) -> None:
        for number in range(first, first + 12):
            await act(r, draw, number)

    with anyio.fail_after(50):
        async with r:
            async with anyio.create_task_group() as tasks:
                for i in range(12):
                    tasks.start_soon(client, i * 100)
            await r.drain()
            check_balanced(r.stats(), idle=False)
            assert (r.stats().in_flight, r.stats().waiting) == (0, 0)
    stats = r.stats()
    check_balanced(stats)
    assert stats.submitted > 100
    assert (stats.shadow_compared > 0) == (shadow is not None)


async def test_budgets_are_met_by_what_completes_under_overload() -> None:
    """Many times more than fits: each job is answered, and drops say why, and when to retry."""
    known = {"infeasible", "expired", "queue_full", "loop_saturated"}
    async with adaptive(max_backlog_ms=5.0, queue_capacity=200) as r:
        outcomes: list[Outcome] = []

        async def client() -> None:
            for i in range(20):
                each = job(i, "MonteCarlo", compute_cost=2_000_000, latency_budget_ms=4.0)
                outcomes.append(await r.submit(each))

        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                for _ in range(40):
                    tasks.start_soon(client)
    assert len(outcomes) == 800
    for each in outcomes:
        assert each.status in (Status.COMPLETED, Status.DROPPED)
        if each.status is Status.DROPPED:
            assert each.reason in known
            assert each.retry_after_s is None or each.retry_after_s >= 0
    check_balanced(r.stats())
    assert dataclasses.replace(r.stats(), state="closed").submitted == 800


async def test_nothing_is_learnt_for_a_policy_that_is_not_adaptive() -> None:
    """Alone, in a batch, and in columns, with a form for batches and without one."""
    policy = Always(Strategy.CPU_POOL)
    async with router(PICKY, policy=policy) as r:
        for kind in ("HashMix", "Picky"):
            jobs = [job(3 * i + 1, kind) for i in range(40)]
            await r.submit(jobs[0])
            await r.submit_many(jobs)
            policy.strategy = Strategy.BATCH
            await r.submit(jobs[0])
            model = r._costs.of_kernel(kind)
            assert (model.alone.samples, model.gains.best) == (
                -SKIPPED,
                0 if kind == "HashMix" else 1,
            )
