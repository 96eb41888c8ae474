"""Routers for a service's own tests: each outcome on request, by whichever call."""

from __future__ import annotations

import functools
import importlib
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
from support import EXAMPLES, LARGE, check_balanced, python

import helixnb.testing._script
from helixnb import (
    AdaptivePolicy,
    Job,
    JobBlock,
    JobColumns,
    JobDropped,
    JobError,
    Kernel,
    Outcome,
    Router,
    RouterConfig,
    Status,
    Strategy,
    kernel,
)
from helixnb.testing import Hold, Script, ScriptedBlockingRouter, ScriptedRouter, opened
from helixnb_kernels import BUILT_IN, hash_mix, prime_count, reference

pytestmark = pytest.mark.anyio

COST = 10_000
JOB = Job(id=7, kind="PrimeCount", compute_cost=COST, latency_budget_ms=50.0)
PRIMES = reference.prime_count(COST)
HASH_MIX = BUILT_IN[0]
RUN_BY = [each for each in Strategy if each is not Strategy.DROP]


def hashed(value: int, cost: int) -> Any:
    """Return the value of a job of HashMix, without a router."""
    return HASH_MIX.solo_call(HASH_MIX.as_inputs([value]), cost, 0)()


class Boom(Exception):
    """What goes wrong in a test."""


@kernel(inputs="float64[:]", returns="float64", shared={"weights": "float64[2]"})
def weighted(x: Any, weights: Any) -> Any:
    """Weigh two numbers."""
    return x[0] * weights[0] + x[1] * weights[1]


@pytest.fixture
async def router() -> AsyncIterator[ScriptedRouter]:
    async with opened(ScriptedRouter()) as router:
        yield router
    check_balanced(router.stats())


@pytest.fixture
def script(router: ScriptedRouter) -> Iterator[Script]:
    with router.script as script:
        yield script


async def by_submit(router: Router) -> Outcome:
    return await router.submit(JOB)


async def by_ticket(router: Router) -> Outcome:
    return await router.submit_soon(JOB).wait()


async def by_many(router: Router) -> Outcome:
    (outcome,) = await router.submit_many([JOB])
    return outcome


async def by_columns(router: Router) -> Outcome:
    block = JobBlock("PrimeCount", np.empty((1, 0), np.uint64), compute_cost=COST)
    (outcome,) = await router.submit_many(JobColumns([block]))
    return outcome


async def by_run(router: Router) -> Outcome:
    return await router.run(prime_count, COST, compute_cost=LARGE, kind="PrimeCount")


CALLS = [by_submit, by_ticket, by_many, by_columns, by_run]
Call = Callable[[Router], Awaitable[Outcome]]

each_call = pytest.mark.parametrize("call", CALLS)


# -- Each outcome, by each call --------------------------------------------------------------------


@each_call
async def test_drop(router: ScriptedRouter, script: Script, call: Call) -> None:
    """A job is dropped, with the reason and the time that the test wants, and the next one runs."""
    script.drop("PrimeCount", reason="queue_full", retry_after_s=1.5)
    outcome = await call(router)
    assert (outcome.status, outcome.strategy) == (Status.DROPPED, Strategy.DROP)
    assert (outcome.reason, outcome.retry_after_s) == ("queue_full", 1.5)
    with pytest.raises(JobDropped, match=r"queue_full; retry after 1\.5 s"):
        _ = outcome.value
    assert (await call(router)).value == PRIMES
    assert router.stats().dropped_by_reason == {"queue_full": 1}


@each_call
async def test_fail(router: ScriptedRouter, script: Script, call: Call) -> None:
    """A job fails with the very error of the test, and the next one runs."""
    error = Boom("scripted")
    script.fail("PrimeCount", error)
    outcome = await call(router)
    assert (outcome.status, outcome.error) == (Status.FAILED, error)
    with pytest.raises(Boom, match="scripted"):
        _ = outcome.value
    assert (await call(router)).value == PRIMES
    assert router.stats().failed == 1


@each_call
async def test_hold(router: ScriptedRouter, script: Script, call: Call) -> None:
    """A job is slow until it is released, others of its kind pass it, and its value is right."""
    outcomes: list[Outcome] = []

    async def ask() -> None:
        outcomes.append(await call(router))

    hold = script.hold("PrimeCount")
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await hold.begun()
            assert (await call(router)).value == PRIMES
            assert not outcomes
            assert router.stats().in_flight == 1
            hold.release()
    assert [outcome.value for outcome in outcomes] == [PRIMES]


@each_call
async def test_hold_for_a_time(router: ScriptedRouter, script: Script, call: Call) -> None:
    """A job goes on by itself when its time is over, if nobody releases it."""
    hold = script.hold("PrimeCount", 0.01)
    outcome = await call(router)
    await hold.begun()
    assert outcome.value == PRIMES
    assert outcome.latency_ms >= 10


@each_call
@pytest.mark.parametrize("strategy", RUN_BY)
async def test_route(
    router: ScriptedRouter, script: Script, call: Call, strategy: Strategy
) -> None:
    """A job is decided as the test wants; where a call can't have that, it says so as ever."""
    script.route("PrimeCount", strategy)
    outcome = await call(router)
    assert (outcome.decided, outcome.value) == (strategy, PRIMES)
    changed = {"in_columns", "not_declared_cheap", "not_batchable"}
    assert outcome.strategy is strategy or outcome.reason in changed
    assert (await call(router)).decided is Strategy.CPU_POOL


@pytest.mark.parametrize("strategy", RUN_BY)
async def test_fail_by_a_strategy(
    router: ScriptedRouter, script: Script, strategy: Strategy
) -> None:
    """What runs before a job fails can be told, too."""
    script.fail("PrimeCount", strategy=strategy)
    outcome = await router.submit(JOB)
    assert (outcome.status, outcome.strategy) == (Status.FAILED, strategy)
    assert isinstance(outcome.error, RuntimeError)


# -- Which job takes which step --------------------------------------------------------------------


async def test_in_order_and_by_kind(router: ScriptedRouter, script: Script) -> None:
    """Each job takes the first step for its kind, or for any, and each step is for one job."""
    script.drop("HashMix", reason="one")
    script.drop(reason="two")
    script.drop(BUILT_IN[1], reason="three")  # PrimeCount
    kinds = ["PrimeCount", "PrimeCount", "HashMix", "PrimeCount", "MonteCarlo"]
    jobs = [Job(id=1, kind=kind, compute_cost=100) for kind in kinds]
    assert [(await router.submit(job)).reason for job in jobs] == [
        *("two", "three", "one", "scripted", "scripted")
    ]
    assert script.jobs == jobs


async def test_times(router: ScriptedRouter, script: Script) -> None:
    """A step may be for several jobs, or for all that come until it is cleared."""
    script.drop(times=2)
    script.fail("PrimeCount", times=None)
    statuses = [(await router.submit(JOB)).status for _ in range(6)]
    assert statuses == [*[Status.DROPPED] * 2, *[Status.FAILED] * 4]
    script.clear()
    assert (await router.submit(JOB)).value == PRIMES
    assert script.jobs == [JOB]


async def test_all_calls_share_the_steps(router: ScriptedRouter, script: Script) -> None:
    """They are taken in the order of the submits, however the calls are mixed."""
    for number in range(len(CALLS)):
        script.drop("PrimeCount", reason=str(number))
    assert [(await call(router)).reason for call in CALLS] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("strategy", RUN_BY)
async def test_many_at_once(router: ScriptedRouter, script: Script, strategy: Strategy) -> None:
    """Among jobs that run together each takes its own step, and all others have their values."""
    for turn in range(30):
        if turn == 3:
            script.drop("HashMix")
        elif turn == 11:
            script.fail("HashMix", Boom(), strategy=strategy)
        else:
            script.route("HashMix", strategy)
    jobs = [Job(id=i, kind="HashMix", inputs=[i], compute_cost=100) for i in range(30)]
    tickets = [router.submit_soon(job) for job in jobs]
    for i, ticket in enumerate(tickets):
        outcome = await ticket.wait()
        if i in (3, 11):
            assert outcome.status is (Status.DROPPED if i == 3 else Status.FAILED)
        else:
            assert outcome.value == hashed(i, 100)
            assert outcome.decided is strategy


@pytest.mark.parametrize(
    ("strategy", "jobs"), [*((each, 40) for each in RUN_BY), (Strategy.INLINE, 20_000)]
)
async def test_columns_of_two_kinds(
    router: ScriptedRouter, script: Script, strategy: Strategy, jobs: int
) -> None:
    """The i-th job of a call takes the i-th step, whichever block it is of."""
    half = jobs // 2
    order = np.arange(jobs).reshape(2, half).T.reshape(-1)  # by turns
    rows = np.arange(half, dtype=np.uint64)[:, None]
    columns = JobColumns(
        [
            JobBlock("HashMix", rows, compute_cost=10),
            JobBlock("PrimeCount", rows[:, :0], compute_cost=COST),
        ],
        order,
    )
    script.route("HashMix", strategy, times=10)
    script.drop("PrimeCount", reason="first")
    script.fail("HashMix", Boom())
    script.route("PrimeCount", strategy, times=9)
    script.drop("PrimeCount", reason="second", retry_after_s=2.0)
    script.hold("PrimeCount", 0.0)
    outcomes = await router.submit_many(columns)
    ended = {
        i: outcome.status for i, outcome in enumerate(outcomes) if outcome.status != "completed"
    }
    assert ended == {1: Status.DROPPED, 20: Status.FAILED, 21: Status.DROPPED}
    assert (outcomes[21].reason, outcomes[21].retry_after_s) == ("second", 2.0)
    assert {outcomes[i].decided for i in (*range(0, 20, 2), *range(3, 21, 2))} == {strategy}
    assert outcomes[22].decided is Strategy.CPU_POOL
    assert outcomes[38].value == hashed(19, 10)
    assert outcomes[23].value == PRIMES


async def test_jobs_of_columns_are_noted_as_they_came(
    router: ScriptedRouter, script: Script
) -> None:
    """The arrays are the caller's again when the outcomes are there."""
    rows = np.array([[3], [4]], np.uint64)
    await router.submit_many(JobColumns([JobBlock("HashMix", rows, compute_cost=5)]))
    rows[:] = 0
    assert [(job.kind, list(job.inputs), job.compute_cost) for job in script.jobs] == [
        ("HashMix", [3], 5),
        ("HashMix", [4], 5),
    ]
    assert {type(job.inputs) for job in script.jobs} == {np.ndarray}


async def test_callables_are_known_by_their_names(router: ScriptedRouter, script: Script) -> None:
    """As ever: the qualified name, of a partial's function too; and what can't be is refused."""
    script.drop("hash_mix")
    outcome = await router.run(functools.partial(hash_mix, [1]), 5, compute_cost=1)
    assert (outcome.kind, outcome.status) == ("hash_mix", Status.DROPPED)
    outcome = await router.run(functools.partial(hash_mix, [1]), 5, compute_cost=1)
    assert outcome.value == hash_mix([1], 5)
    for wrong, said in ((by_run, "coroutine function"), (weighted, "kernel"), (1, "callable")):
        with pytest.raises(TypeError, match=said):
            await router.run(wrong, compute_cost=1)  # type: ignore[arg-type]
    assert [job.kind for job in script.jobs] == ["hash_mix"] * 2


async def test_what_is_refused_takes_no_step(router: ScriptedRouter, script: Script) -> None:
    """Neither do jobs that can't be, nor a look at what would be decided."""
    script.drop(reason="scripted drop")
    with pytest.raises(JobError):
        await router.submit(Job(id=1, kind="PrimeCount", inputs=["much"], compute_cost=1))
    with pytest.raises(JobError):
        router.submit_soon(Job(id=1, kind="Nothing", compute_cost=1))
    for _ in range(3):
        assert router.explain(JOB).decision.reason == "scripted drop"
    assert script.jobs == []
    assert (await router.submit(JOB)).reason == "scripted drop"


async def test_a_router_that_is_closed_takes_no_step() -> None:
    """It drops by itself, as ever."""
    script = Script()
    async with ScriptedRouter(script=script) as router:
        pass
    script.drop(reason="never")
    for call in CALLS:
        assert (await call(router)).reason == "router_closed"
    assert script.pending == ("drop any kind",)


# -- Independent of load --------------------------------------------------------------------------


async def test_decisions_depend_on_no_load(router: ScriptedRouter, script: Script) -> None:
    """While all slots are taken and jobs wait, decisions are those of an idle router."""
    with script.hold("PrimeCount", times=4) as hold:
        held = [router.submit_soon(JOB) for _ in range(4)]
        await hold.begun(4)
        waiting = [router.submit_soon(JOB) for _ in range(2_000)]
        assert router.stats().cpu_busy == 4
        script.route("HashMix", Strategy.INLINE)
        mixed = await router.submit(Job(id=1, kind="HashMix", inputs=[1], compute_cost=5))
        assert mixed.strategy is Strategy.INLINE
    outcomes = [await ticket.wait() for ticket in (*held, *waiting)]
    assert {(outcome.value, outcome.reason) for outcome in outcomes} == {(PRIMES, "scripted")}
    assert {outcome.strategy for outcome in outcomes[4:]} == {Strategy.CPU_POOL}


async def test_nobody_is_held_to_a_budget(router: ScriptedRouter, script: Script) -> None:
    """A budget that can't be met is noted in the outcome, and drops nothing."""
    outcome = await router.submit(Job(id=1, kind="HashMix", compute_cost=1, latency_budget_ms=0))
    assert (outcome.status, outcome.met_budget) == (Status.COMPLETED, False)


# -- The script ------------------------------------------------------------------------------------


def test_steps_that_no_job_took() -> None:
    """A test that leaves some has tested something else, and is told; its own error comes first."""
    script = Script()
    said = r"had: drop HashMix; fail any kind, 2 times$"
    with pytest.raises(AssertionError, match=said), script:
        script.drop("HashMix")
        script.fail(times=2)
        script.drop(times=None)
    with pytest.raises(Boom), script:
        script.drop("HashMix")
        raise Boom
    assert script.pending == ()


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda s: s.drop(5), TypeError, "kind must be the name of a kernel, a kernel, or None"),
        (lambda s: s.drop(times=0), ValueError, "times must be an integer of at least 1, or None"),
        (lambda s: s.drop(times=1.0), ValueError, "times must be"),
        (lambda s: s.drop(retry_after_s=-1.0), ValueError, "retry_after_s must be"),
        (lambda s: s.drop(reason=None), TypeError, "reason must be a string"),
        (lambda s: s.fail(None, "no"), TypeError, "error must be an exception, got 'no'"),
        (lambda s: s.fail(None, KeyboardInterrupt()), TypeError, "error must be an exception"),
        (lambda s: s.hold(seconds=-1), ValueError, "seconds must be 0 or more, or None"),
        (lambda s: s.hold(strategy="inline"), ValueError, "would hold the event loop"),
        (lambda s: s.hold(strategy="drop"), ValueError, "`Script.drop` lets jobs be dropped"),
        (lambda s: s.route(None, Strategy.DROP), ValueError, "strategy must be a way to run"),
        (
            lambda s: s.route(None, "sideways"),
            ValueError,
            "is not a valid Strategy: must be one of",
        ),
        (lambda s: Script(Strategy.DROP), ValueError, "strategy must be a way to run"),
    ],
)
def test_what_a_script_refuses(call: Any, error: type[Exception], said: str) -> None:
    """Wrong arguments are refused where they are given, with what is allowed."""
    script = Script()
    with pytest.raises(error, match=said):
        call(script)
    assert script.pending == ()


async def test_a_hold_that_nobody_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test hangs: the job fails by itself, and says why."""
    monkeypatch.setattr(helixnb.testing._script, "LONGEST_HOLD_S", 0.01)
    async with ScriptedRouter() as router:
        router.script.hold("PrimeCount")
        outcome = await router.submit(JOB)
    with pytest.raises(TimeoutError, match="nobody released this held job within"):
        _ = outcome.value


async def test_waiting_for_a_hold_that_never_begins() -> None:
    """A test whose job never came is told."""
    hold = Hold(None)
    with pytest.raises(TimeoutError, match="1 held jobs were to begin within 0 s, and 0 did"):
        await hold.begun(timeout_s=0)
    with pytest.raises(TimeoutError, match="was one submitted"):
        hold.wait_begun(timeout_s=0)


async def test_a_body_that_raises_releases() -> None:
    """The test has failed, and nobody else would release what it held."""
    with pytest.raises(Boom):
        async with ScriptedRouter() as router:
            hold = router.script.hold()
            ticket = router.submit_soon(JOB)
            await hold.begun()
            raise Boom
    assert ticket.done
    check_balanced(router.stats())


async def test_closing_while_a_job_is_held() -> None:
    """A router that closes waits for a held job, as for any, so that this can be tested."""
    router = await ScriptedRouter().open()
    hold = router.script.hold()
    ticket = router.submit_soon(JOB)
    await hold.begun()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(router.close)
        await anyio.wait_all_tasks_blocked()
        assert (router.state, ticket.done) == ("closing", False)
        hold.release()
    assert ticket.outcome is not None
    assert ticket.outcome.value == PRIMES


# -- Routers ---------------------------------------------------------------------------------------


async def test_opened_releases_what_tests_left() -> None:
    """A fixture ends, whatever its last test has left; and the router is closed."""
    async with opened(ScriptedRouter()) as router:
        hold = router.script.hold()
        ticket = router.submit_soon(JOB)
        await hold.begun()
    assert ticket.done
    assert router.state == "closed"


async def test_opened_looks_at_the_books() -> None:
    """A job that was lost, or counted twice, is told; any router will do."""
    async with opened(Router()) as router:
        assert (await router.submit(JOB)).status is Status.COMPLETED
    with pytest.raises(AssertionError, match="2 jobs were submitted and 1 have ended"):
        async with opened(Router()) as router:
            await router.submit(JOB)
            router._ledger.submitted += 1


async def test_one_script_for_several_routers() -> None:
    """An application makes its routers itself, from what a test puts in the place of the class."""
    script = Script(Strategy.INLINE)
    make = functools.partial(ScriptedRouter, script=script)
    config = RouterConfig(cpu_parallelism=1)
    async with make() as one, make(config, policy=AdaptivePolicy()) as two:
        assert two.config is config
        script.drop(times=2)
        assert [(await r.submit(JOB)).status for r in (one, two)] == [Status.DROPPED] * 2
        assert [(await r.submit(JOB)).strategy for r in (one, two)] == [Strategy.INLINE] * 2
    assert len(script.jobs) == 4


async def test_a_kernel_has_one_state() -> None:
    """What is bound to the kernel is bound for the router, then and later; it stays as it was."""
    weighted.bind(weights=[1.0, 10.0])
    async with ScriptedRouter(kernels=[weighted]) as router:
        job = weighted.job([2.0, 3.0])
        assert (await router.submit(job)).value == 32.0
        weighted.bind(weights=[10.0, 1.0])
        router.script.fail(weighted, Boom())
        tickets = [router.submit_soon(job) for _ in range(40)]
        outcomes = [await ticket.wait() for ticket in tickets]
    assert isinstance(outcomes[0].error, Boom)
    assert {outcome.value for outcome in outcomes[1:]} == {23.0}
    assert type(weighted).__module__ == "helixnb._kernels"


async def test_a_kernel_that_comes_later(router: ScriptedRouter, script: Script) -> None:
    """It is scripted too; in plain Python it runs as it always does."""
    await router.add_kernel(Kernel(name="Plain", solo=lambda inputs, cost, job_id: job_id))
    job = Job(id=5, kind="Plain", compute_cost=1)
    script.fail("Plain", Boom())
    assert isinstance((await router.submit(job)).error, Boom)
    assert (await router.submit(job)).value == 5
    script.fail("Plain", Boom())
    failed, completed = await router.submit_many([job, job])
    assert isinstance(failed.error, Boom)
    assert completed.value == 5


async def test_what_no_router_takes() -> None:
    """It is refused as `Router` does."""
    with pytest.raises(TypeError, match="got the kernel HashMix alone"):
        ScriptedRouter(kernels=HASH_MIX)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a kernel must be"):
        ScriptedRouter(kernels=["HashMix"])  # type: ignore[list-item]


def test_blocking() -> None:
    """The same without an event loop of one's own, from several threads."""
    with ScriptedBlockingRouter() as router, ThreadPoolExecutor() as pool:
        script = router.script
        script.drop(retry_after_s=3.0)
        assert router.submit(JOB).retry_after_s == 3.0
        script.fail("prime_count", Boom())
        assert isinstance(router.run(prime_count, COST, compute_cost=1).error, Boom)
        hold = script.hold()
        asking = pool.submit(router.submit, JOB)
        hold.wait_begun()
        assert router.submit_many([JOB] * 3)[0].value == PRIMES
        assert router.submit_soon(JOB).wait().value == PRIMES
        assert not asking.done()
        hold.release()
        assert asking.result(20).value == PRIMES
    check_balanced(router.stats())


def test_a_blocking_body_that_raises_releases() -> None:
    """As above; the thread that asks has its answer."""
    with pytest.raises(Boom), ScriptedBlockingRouter() as router:
        hold = router.script.hold()
        asking = threading.Thread(target=router.submit, args=(JOB,))
        asking.start()
        hold.wait_begun()
        raise Boom
    asking.join(20)
    assert not asking.is_alive()
    check_balanced(router.stats())


def test_pytest_isn_t_needed() -> None:
    """Nor is anything else that tests bring, until a test brings it."""
    code = """if True:
        import sys
        import helixnb
        assert "helixnb.testing" not in sys.modules
        import helixnb.testing
        print([name for name in ("pytest", "starlette", "trio") if name in sys.modules])
    """
    done = python("-c", code)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


# -- A service -------------------------------------------------------------------------------------


@pytest.fixture
def service() -> Iterator[Any]:
    names = ("service", "option_pricing", "scoring")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        yield importlib.import_module("service")
        for name in names:
            sys.modules.pop(name)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_service_that_makes_its_own_router(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it answers in each case, with nothing but its class `Router` replaced."""
    script = Script()
    monkeypatch.setattr(service, "Router", functools.partial(ScriptedRouter, script=script))
    app = service.create_service(service.new_router)
    body = {"features": [0.25] * 16}
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://service") as web,
    ):
        with script:
            script.drop("score", retry_after_s=7.2)
            dropped = await web.post("/score", json=body)
            assert (dropped.status_code, dropped.json()) == (503, {"error": "dropped: infeasible"})
            assert 8 <= int(dropped.headers["Retry-After"]) <= 8 + service.JITTER_S
            script.drop("score", reason="pool_saturated")
            assert "Retry-After" not in (await web.post("/score", json=body)).headers
            script.fail("score", Boom())
            assert (await web.post("/score", json=body)).status_code == 500
            assert (await web.post("/score", json=body)).status_code == 200
            assert [job.latency_budget_ms for job in script.jobs] == [6.0] * 4
