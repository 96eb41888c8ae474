"""The event loop is kept free: by real kernels, in every way in, and what others do is no fault."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import numpy as np
import pytest
from support import Always, check_balanced, job, router

import helixnb
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
    Status,
    Strategy,
)
from helixnb._core import estimate as estimate_module
from helixnb._core.estimate import CostModel
from helixnb._core.guard import BARRED_NS, CLEAN_RUNS
from helixnb._core.lifecycle import Entry, Ledger
from helixnb._core.policy import COLD
from helixnb._core.rules import DECISIONS, INLINE_CHEAP
from helixnb._exec import cpu_time
from helixnb._exec.inline import LoopWatch, run_on_loop

pytestmark = pytest.mark.anyio

MS, S = 1_000_000, 1_000_000_000
SHORT, LONG = 10, 3_000_000
"""Steps of `steps`: far below a microsecond, and far above 5 ms on any machine."""


@helixnb.kernel(inputs="int64[1]", returns="float64")
def steps(x):  # type: ignore[no-untyped-def]
    """Take as many steps as its input says, which its cost doesn't tell."""
    total = 0.0
    for i in range(x[0]):
        total += np.sin(np.float64(i))
    return total


class Where:
    """A kernel in plain Python that notes whether it runs on the event loop."""

    def __init__(self, name: str = "Where", **declared: Any) -> None:
        self.on_loop: list[bool] = []
        self._loop = threading.get_ident()
        self.kernel = Kernel(name=name, solo=self._solo, **declared)

    def _solo(self, inputs: Any, compute_cost: int, job_id: int) -> int:
        self.on_loop.append(threading.get_ident() == self._loop)
        return job_id


def adaptive(*kernels: Kernel, **settings: Any) -> Router:
    """Make a router by `AdaptivePolicy`, for which no loop is late and no slot is lost."""
    config = {
        "cpu_parallelism": 2,
        "max_loop_lag_ms": 1e6,
        "heed_other_cpu_use": False,
        "hop_us": 60.0,
    }
    policy = settings.pop("policy", None)
    clock = settings.pop("clock", None)
    return Router(
        RouterConfig(**(config | settings)),
        kernels=kernels,
        policy=policy,
        **({} if clock is None else {"clock": clock}),
    )


async def learn(r: Router, kernel: Any = steps, runs: int = 60) -> None:
    """Run short jobs until a kind is known, and runs inline."""
    for _ in range(runs):
        outcome = await r.submit(kernel.job([SHORT]))
    assert outcome.reason == "cheaper_inline"


async def one_by_one(r: Router, jobs: list[Job]) -> list[Outcome]:
    return [await r.submit(each) for each in jobs]


async def as_tickets(r: Router, jobs: list[Job]) -> list[Outcome]:
    tickets = [r.submit_soon(each) for each in jobs]
    return [await ticket.wait() for ticket in tickets]


async def together(r: Router, jobs: list[Job]) -> list[Outcome]:
    return list(await r.submit_many(jobs))


WAYS = pytest.mark.parametrize("submit", [one_by_one, as_tickets, together])
Submit = Callable[[Router, list[Job]], Any]


# -- What nobody has timed ------------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize(
    "declared",
    [{}, {"ns_per_work": 1.0}, {"work": lambda cost, inputs: 1.0}],
    ids=["nothing", "ns_per_work", "work"],
)
async def test_what_was_never_timed_stays_off_the_loop(
    submit: Submit, declared: dict[str, Any]
) -> None:
    """However small it claims to be, unless its author declared work and its time."""
    where = Where(**declared)
    async with adaptive(where.kernel) as r:
        outcomes = await submit(r, [job(i, "Where", compute_cost=1) for i in range(6)])
    assert not any(where.on_loop)
    assert all(each.status is Status.COMPLETED for each in outcomes)
    assert not any(each.strategy is Strategy.INLINE for each in outcomes)
    check_balanced(r.stats())


@WAYS
@pytest.mark.parametrize(("ns_per_work", "on_loop"), [(1e3, True), (1e9, False)])
async def test_what_is_declared_short_runs_on_the_loop_at_once(
    submit: Submit, ns_per_work: float, on_loop: bool
) -> None:
    """By work and the time of a unit together; not what is declared long."""
    where = Where(work=lambda cost, inputs: 1.0, ns_per_work=ns_per_work)
    async with adaptive(where.kernel) as r:
        outcomes = await submit(r, [job(1, "Where", compute_cost=1)])
    assert where.on_loop == [on_loop]
    assert (outcomes[0].reason == "small") is on_loop


async def test_built_in_kernels_declare_their_time() -> None:
    """A first job of each runs on the loop where that is short."""
    async with router(policy=AdaptivePolicy()) as r:
        for kind in ("HashMix", "PrimeCount", "MonteCarlo"):
            assert (await r.submit(job(1, kind))).reason == "small"


async def test_what_was_timed_comes_to_the_loop() -> None:
    """After a few runs elsewhere, a kind that is short runs inline."""
    async with adaptive(steps) as r:
        assert (await r.submit(steps.job([SHORT]))).strategy is Strategy.SPAWN
        await learn(r)


@WAYS
async def test_other_policies_are_obeyed(submit: Submit) -> None:
    """`StaticPolicy` and a user's own let jobs run inline that nobody has timed."""
    for policy in (StaticPolicy(), Always(Strategy.INLINE)):
        where = Where()
        async with adaptive(where.kernel, policy=policy) as r:
            await submit(r, [job(1, "Where", compute_cost=1)])
        assert where.on_loop == [True]


async def test_a_policy_that_asks_the_adaptive_one_has_its_rule() -> None:
    """The estimate says whether a job may run on the loop."""

    class Own(AdaptivePolicy):
        def decide(
            self, job: Job, load: Load, config: RouterConfig, estimate: Estimate = COLD
        ) -> Decision:
            seen.append(estimate.may_inline)
            return super().decide(job, load, config, estimate)

    seen: list[bool] = []
    where = Where()
    async with adaptive(where.kernel, policy=Own()) as r:
        await r.submit(job(1, "Where", compute_cost=1))
    assert (seen, where.on_loop) == ([False], [False])


# -- A surprise -----------------------------------------------------------------------------------


@WAYS
async def test_a_surprise_holds_up_the_loop_once(
    submit: Submit, caplog: pytest.LogCaptureFixture
) -> None:
    """A kind whose time hangs on a value: the next jobs run elsewhere, and it is said once."""
    async with adaptive(steps, hop_us=1_000.0) as r:  # so that inline pays on a busy machine, too
        await learn(r)
        outcomes = []
        for _ in range(3):
            outcomes += await submit(r, [steps.job([n]) for n in (SHORT, LONG, SHORT, LONG)])
        assert r.stats().inline_overruns == 1
        assert not r.explain(steps.job([SHORT])).estimate.may_inline
        metrics = {each.metric.name: each.value for each in r.metrics()}
        assert metrics["helixnb.inline.overruns"] == 1
    long = [each for i, each in enumerate(outcomes) if i % 2]
    assert sum(each.strategy is Strategy.INLINE for each in long) == 1
    assert len({each.value for each in long}) == 1
    assert all(each.status is Status.COMPLETED for each in outcomes)
    warnings = [each for each in caplog.records if "held up the event loop" in each.message]
    assert len(warnings) == 1
    assert warnings[0].levelno == logging.WARNING
    for part in ("kind steps", "work=", "ns_per_work="):
        assert part in warnings[0].message
    check_balanced(r.stats())


async def test_tickets_that_wait_for_the_loop_are_sent_elsewhere() -> None:
    """What was decided before a surprise isn't run on the loop after it; the outcome says so."""
    async with adaptive(steps) as r:
        await learn(r)
        outcomes = await as_tickets(r, [steps.job([n]) for n in (LONG, SHORT, LONG, LONG)])
    assert [each.decided for each in outcomes] == [Strategy.INLINE] * 4
    assert outcomes[0].strategy is Strategy.INLINE
    assert {each.reason for each in outcomes[1:]} == {"inline_overrun"}
    assert {each.strategy for each in outcomes[1:]} <= {Strategy.SPAWN, Strategy.CPU_POOL}
    check_balanced(r.stats())


async def test_rows_that_wait_for_the_loop_are_sent_elsewhere() -> None:
    """The rest of a call with columns goes to its threads, each job with its own answer."""
    values = [SHORT, LONG, SHORT + 1, LONG, SHORT + 2]
    async with adaptive(steps) as r:
        await learn(r)
        block = JobBlock("steps", np.array([[n] for n in values]), compute_cost=1)
        outcomes = await r.submit_many(JobColumns([block]))
        rows = list(outcomes)
        expected = [await r.submit(steps.job([n])) for n in values]
    assert [each.decided for each in rows] == [Strategy.INLINE] * 5
    assert [each.strategy for each in rows[:2]] == [Strategy.INLINE] * 2
    assert [each.reason for each in rows[2:]] == ["inline_overrun"] * 3
    assert [each.strategy for each in rows[2:]] == [Strategy.BATCH] * 3
    assert [each.value for each in rows] == [each.value for each in expected]
    check_balanced(r.stats())


async def test_a_callable_that_surprises() -> None:
    """Plain Python that computes: one call on the loop, and then none."""
    on_loop: list[bool] = []
    here = threading.get_ident()

    def work(count: int) -> int:
        on_loop.append(threading.get_ident() == here)
        return sum(range(count))

    async with adaptive() as r:
        for _ in range(60):
            outcome = await r.run(work, 1, compute_cost=1)
        assert outcome.strategy is Strategy.INLINE
        on_loop.clear()
        for _ in range(3):
            await r.run(work, 3_000_000, compute_cost=1)
    assert on_loop == [True, False, False]


async def test_a_job_that_fails_late_is_one_that_held_up_the_loop() -> None:
    """What it raised is the outcome, and its kind is barred all the same."""

    def fail(inputs: Any, compute_cost: int, job_id: int) -> int:
        if job_id:
            sum(range(3_000_000))
            raise ArithmeticError("late")
        return 0

    kernel = Kernel(name="Late", solo=fail, work=lambda cost, inputs: 1.0, ns_per_work=100.0)
    async with adaptive(kernel) as r:
        outcomes = [await r.submit(job(i, "Late", compute_cost=1)) for i in (0, 1, 1)]
        assert r.stats().inline_overruns == 1
    assert [each.strategy is Strategy.INLINE for each in outcomes] == [True, True, False]
    assert outcomes[1].status is Status.FAILED
    check_balanced(r.stats())


async def test_a_tail_stays_off_the_loop() -> None:
    """One long job in twenty: the first that runs on the loop is the last."""
    async with adaptive(steps) as r:
        await learn(r)
        outcomes = await one_by_one(
            r, [steps.job([LONG if i % 20 == 9 else 5]) for i in range(100)]
        )
        assert r.stats().inline_overruns == 1
    assert sum(each.strategy is Strategy.INLINE for each in outcomes) == 10
    check_balanced(r.stats())


async def test_a_long_run_in_a_thread_keeps_the_kind_off_the_loop() -> None:
    """The loop needn't meet one itself."""
    policy = Always(Strategy.SPAWN)
    policy.adaptive = True  # type: ignore[attr-defined]
    async with adaptive(steps, policy=policy) as r:
        for _ in range(60):
            await r.submit(steps.job([SHORT]))
        assert r.explain(steps.job([SHORT])).estimate.may_inline
        # Every eighth run is timed.
        for _ in range(8):
            await r.submit(steps.job([LONG]))
        assert not r.explain(steps.job([SHORT])).estimate.may_inline
        assert r.stats().inline_overruns == 0


async def test_who_listens_to_the_warning_has_no_say(caplog: pytest.LogCaptureFixture) -> None:
    """A filter that raises leaves the job its outcome."""

    def refuse(record: logging.LogRecord) -> bool:
        raise ArithmeticError("filter")

    logger = logging.getLogger("helixnb")
    async with adaptive(steps) as r:
        await learn(r)
        logger.addFilter(refuse)
        try:
            assert (await r.submit(steps.job([LONG]))).status is Status.COMPLETED
        finally:
            logger.removeFilter(refuse)
    check_balanced(r.stats())


# -- What others do is no fault -------------------------------------------------------------------


class Clocks:
    """Made-up clocks, and a job that moves them."""

    def __init__(self) -> None:
        self.wall_ns = self.cpu_ns = self.collected_ns = S

    def pass_by(self, wall_ns: int, cpu_ns: int = 0, collected_ns: int = 0) -> None:
        self.wall_ns += wall_ns
        self.cpu_ns += cpu_ns
        self.collected_ns += collected_ns


class Rig:
    """Runs jobs on a loop of made-up clocks, of a kind that should take a microsecond."""

    def __init__(self, *, is_compiled: bool) -> None:
        self.clocks = Clocks()
        self.ledger = Ledger(lambda: self.clocks.wall_ns)
        self.watch = LoopWatch(
            self.ledger,
            cpu_clock=lambda: self.clocks.cpu_ns,
            collected=lambda: self.clocks.collected_ns,
        )
        self.costs = CostModel(RouterConfig(cpu_parallelism=2))
        self.model = self.costs.of_kernel("Kind")
        for _ in range(50):
            self.model.learn(1.0, 1e3, S)

        class Made(Kernel):
            @property
            def is_compiled(self) -> bool:
                return is_compiled

        self.kernel = Made(name="Kind", solo=lambda inputs, cost, job_id: self._doing())
        self._doing: Callable[[], Any] = int

    def run(self, **passes: int) -> bool:
        """Run a job for which so much passes by; returns whether the kind is barred then."""
        self._doing = lambda: self.clocks.pass_by(**passes)
        inputs: Any = self.kernel.as_inputs([])
        entry = Entry(
            job(1, "Kind"), self.clocks.wall_ns, self.kernel, inputs, predicted_ns=1e3, work=1.0
        )
        entry.model = self.model
        entry.decide(DECISIONS[INLINE_CHEAP])
        self.ledger.enter(entry)
        run_on_loop(self.ledger, self.watch, entry)
        assert entry.outcome is not None
        assert entry.outcome.status is Status.COMPLETED
        return not self.model.guard.allows(self.clocks.wall_ns)


async def test_threads_and_processes_bar_no_compiled_kind() -> None:
    """The wall clock alone proves nothing, however long and however often."""
    rig = Rig(is_compiled=True)
    for _ in range(300):
        assert not rig.run(wall_ns=100 * MS, cpu_ns=40_000)
    assert rig.ledger.counts.inline_overruns == 0
    assert rig.run(wall_ns=3 * MS, cpu_ns=3 * MS)
    assert rig.ledger.counts.inline_overruns == 1


async def test_what_the_loop_did_before_is_no_fault() -> None:
    """The CPU clock is read anew if the last reading isn't fresh when a job begins."""
    rig = Rig(is_compiled=True)
    assert not rig.run(wall_ns=1_000, cpu_ns=1_000)
    rig.clocks.pass_by(400_000, 400_000)
    assert not rig.run(wall_ns=1_000, cpu_ns=1_000)
    rig.clocks.pass_by(S, S)
    assert not rig.run(wall_ns=S, cpu_ns=1_000)


async def test_a_collection_is_no_fault_of_compiled_code() -> None:
    """Which makes no objects; plain Python has to answer for what it leaves."""
    assert not Rig(is_compiled=True).run(wall_ns=90 * MS, cpu_ns=90 * MS, collected_ns=89 * MS)
    assert Rig(is_compiled=False).run(wall_ns=90 * MS, cpu_ns=90 * MS, collected_ns=89 * MS)


async def test_three_sleeps_in_a_row_are() -> None:
    """Of plain Python; and it comes back when runs elsewhere were as short as predicted."""
    rig = Rig(is_compiled=False)
    assert [rig.run(wall_ns=50 * MS) for _ in range(3)] == [False, False, True]
    rig.clocks.pass_by(BARRED_NS)
    for _ in range(CLEAN_RUNS):
        rig.model.watch(1.0, 1e3, 1_000, 1_000, rig.clocks.wall_ns)
    assert not rig.run(wall_ns=1_000)
    assert rig.run(wall_ns=S, cpu_ns=S)


async def test_a_barred_kind_is_timed_always() -> None:
    """So that it is soon known whether it may come back."""
    rig = Rig(is_compiled=True)
    for _ in range(200):
        rig.model.learn(1.0, 1e3, rig.clocks.wall_ns)
    assert not rig.model.is_due()
    rig.run(wall_ns=S, cpu_ns=S)
    for _ in range(20):
        assert rig.model.is_due()
        rig.model.watch(1.0, 1e3, 1_000, 1_000, rig.clocks.wall_ns)
        rig.model.learn(1.0, 1e3, rig.clocks.wall_ns)


def test_collections_are_measured() -> None:
    cpu_time.watch_collections()
    assert gc.callbacks.count(cpu_time._note_collection) == 1
    cpu_time.watch_collections()
    assert gc.callbacks.count(cpu_time._note_collection) == 1
    before_ns = cpu_time.collected_ns()
    gc.collect()
    assert cpu_time.collected_ns() > before_ns


async def test_a_forgotten_callable_does_not_come_back_too_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """None that is new runs on the loop while one that was forgotten is barred for certain."""
    monkeypatch.setattr(estimate_module, "MOST_KINDS", 2)
    costs = CostModel(RouterConfig(cpu_parallelism=2, cold_samples=1))
    bad = costs.of_callable("bad")
    bad.guard.note_inline(1e3, S, S, S, is_compiled=False)
    for each in ("a", "b"):
        costs.of_callable(each)
    again = costs.of_callable("bad")
    assert again is not bad
    for _ in range(10):
        again.learn(1.0, 1e3, S)
    assert not again.may_inline(S + BARRED_NS - 1)
    assert again.may_inline(S + BARRED_NS)


# -- A cold kind doesn't starve -------------------------------------------------------------------


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    opened = threading.Event()
    yield opened
    opened.set()


@pytest.mark.parametrize("reason", ["infeasible", "queue_full"])
async def test_a_cold_kind_that_is_refused_is_probed(reason: str, gate: threading.Event) -> None:
    """Ahead of what waits; one at first, as many as it needs as soon as one has ended."""

    def hold(inputs: Any, compute_cost: int, job_id: int) -> int:
        assert gate.wait(30)
        return job_id

    holder = Kernel(name="Holder", solo=hold, work=lambda cost, inputs: 1.0, ns_per_work=1e9)
    settings = {"max_backlog_ms": 1.0} if reason == "queue_full" else {"max_backlog_ms": 1e6}
    budget_ms = 1.0 if reason == "infeasible" else None
    # By a clock that stands still, the holder has 10 ms to go.
    async with adaptive(holder, steps, cpu_parallelism=1, clock=lambda: S, **settings) as r:
        held = r.submit_soon(job(1, "Holder", compute_cost=100_000))
        await anyio.wait_all_tasks_blocked()

        def submit() -> Any:
            return r.submit_soon(steps.job([SHORT], latency_budget_ms=budget_ms))

        first = await submit().wait()
        assert (first.status, first.reason) == (Status.DROPPED, reason)
        probe = submit()
        assert not probe.done
        assert submit().outcome.reason == reason  # one is on its way
        assert probe.cancel()
        probe = submit()  # which made room
        assert not probe.done
        gate.set()
        outcome = await probe.wait()
        assert (outcome.status, outcome.reason) == (Status.COMPLETED, "probe")
        await held.wait()
    check_balanced(r.stats())


async def test_a_cold_kind_gets_known_under_saturation() -> None:
    """Beside jobs that wait for longer than its budget allows, without an end."""

    async def press(r: Router) -> None:
        while True:
            outcome = await r.submit(job(1, compute_cost=64 * 2_000_000))
            if outcome.status is Status.DROPPED:
                await anyio.lowlevel.checkpoint()

    async with router(steps, policy=AdaptivePolicy(), max_loop_lag_ms=1e6) as r:
        for _ in range(12):
            await r.submit(job(0, compute_cost=64 * 2_000_000))
        model = r._costs.of_kernel("steps")
        async with anyio.create_task_group() as tasks:
            for _ in range(40):
                tasks.start_soon(press, r)
            reasons = set()
            with anyio.fail_after(30):
                while model.is_cold:
                    outcome = await r.submit(steps.job([SHORT], latency_budget_ms=5))
                    reasons.add(outcome.reason)
            assert "probe" in reasons
            tasks.cancel_scope.cancel()
    check_balanced(r.stats())


class Mixed:
    """A policy that asks others, by the kind of job."""

    adaptive = True

    def decide(self, job: Job, load: Load, config: RouterConfig, estimate: Estimate) -> Decision:
        asked: Any = StaticPolicy() if job.kind == "Where" else AdaptivePolicy()
        decision: Decision = asked.decide(job, load, config, estimate)
        return decision


async def test_columns_of_a_policy_that_asks_others() -> None:
    """What it takes from `AdaptivePolicy` is watched, though another one decides in equal words."""

    @helixnb.kernel(
        inputs="int64[1]", returns="float64", work=lambda cost, inputs: 1, ns_per_work=1.0
    )
    def liar(x):  # type: ignore[no-untyped-def]
        total = 0.0
        for i in range(x[0]):
            total += np.sin(np.float64(i))
        return total

    where = Where()
    async with adaptive(liar, where.kernel, policy=Mixed()) as r:
        jobs = [job(0, "Where", compute_cost=1), *(liar.job([LONG]) for _ in range(5))]
        outcomes = await r.submit_many(jobs)
        inline = [outcome.strategy is Strategy.INLINE for outcome in outcomes]
        assert sum(inline[1:]) <= 1
        assert inline[0]
    check_balanced(r.stats())


@pytest.mark.parametrize("way", ["submit", "submit_many"])
async def test_a_handler_that_raises_at_the_warning(way: str) -> None:
    """The job that held up the loop is settled before anybody hears of it."""

    class Raises(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise KeyboardInterrupt

    handler = Raises()
    async with adaptive(steps) as r:
        await learn(r)
        logging.getLogger("helixnb").addHandler(handler)
        try:
            surprise = steps.job([LONG])
            with pytest.raises(KeyboardInterrupt):
                await (r.submit(surprise) if way == "submit" else r.submit_many([surprise]))
        finally:
            logging.getLogger("helixnb").removeHandler(handler)
        with anyio.fail_after(30):
            await r.drain()
        check_balanced(r.stats())
