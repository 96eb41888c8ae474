"""What is seen: the routing log and the statistics."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import numpy as np
import pytest
from support import PICKY, Always, Gate, check_balanced, job, router

from helixnb import Decision, Kernel, Router, RouterConfig, StaticPolicy, Status, Strategy
from helixnb._core.counts import LatencyWindow
from helixnb._log import SafeLogger
from helixnb._observe.stats import summarise

pytestmark = pytest.mark.anyio


async def test_one_line_a_job(caplog: pytest.LogCaptureFixture) -> None:
    """The line has every field in order, and the record has them too."""
    with caplog.at_level(logging.DEBUG, "helixnb.route"):
        config = RouterConfig(cpu_parallelism=2, hop_us=50, heed_other_cpu_use=False)
        async with Router(config, policy=StaticPolicy(), clock=lambda: 0) as r:
            await r.submit(
                job(123, "PrimeCount", [], 98_324, scaling_potential=0.31, latency_budget_ms=32)
            )
            await r.submit(job(124, compute_cost=1))
    first, second = caplog.records
    assert first.getMessage() == (
        "route job_id=123 kind=PrimeCount cost=98324 scaling=0.31 latency_budget_ms=32.0 "
        "strategy=cpu_pool cpu_busy=0 reason=large waiting=0 backlog_s=0.0 "
        "batch_backlog_s=0.0 cpu_left=inf "
        "loop_lag_ms=0.0 hop_us=50.0 sharers=1 elapsed_ms=0.0 samples=0 run_us=inf p95_us=inf "
        "batch_gain=0.0 batch_us=inf probe=False batch_probe=False may_inline=True"
    )
    assert second.getMessage().startswith(
        "route job_id=124 kind=HashMix cost=1 scaling=0.5 latency_budget_ms=None "
        "strategy=inline cpu_busy=0 reason=small waiting=0 "
    )
    assert first.levelno == logging.DEBUG
    fields = {name: getattr(first, name) for name in ("job_id", "kind", "cost", "scaling")}
    assert fields == {"job_id": 123, "kind": "PrimeCount", "cost": 98_324, "scaling": 0.31}
    assert (first.strategy, first.cpu_busy, first.reason) == (  # type: ignore[attr-defined]
        "cpu_pool",
        0,
        "large",
    )


async def test_decided_and_executed_are_both_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Where a job runs otherwise than decided, the line says how and why."""
    gate = Gate()
    with caplog.at_level(logging.DEBUG, "helixnb.route"):
        async with router(
            gate.kernel, policy=Always(Strategy.SPAWN), cpu_parallelism=1, queue_capacity=1
        ) as r:
            for i in range(3):
                r.submit_soon(job(i, "Gate"))
            gate.open()
    lines = [record.getMessage() for record in caplog.records]
    assert "strategy=spawn cpu_busy=0 reason=test" in lines[0]
    assert "strategy=spawn cpu_busy=1 executed=cpu_pool reason=spawn_saturated" in lines[1]
    assert "strategy=spawn cpu_busy=1 executed=drop reason=queue_full" in lines[2]


async def test_the_log_costs_nothing_where_nobody_listens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Above DEBUG no record is made."""
    logger = logging.getLogger("helixnb.route")
    monkeypatch.setattr(logger, "makeRecord", None)  # calling it would raise
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.manager._clear_cache()  # type: ignore[attr-defined]  # as setLevel does
    async with router() as r:
        await r.submit(job())


async def test_a_record_factory_of_the_applications_own(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another part of the application sets the same names, the line is there all the same."""

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = logging.LogRecord(*args, **kwargs)
        record.job_id = "theirs"
        return record

    monkeypatch.setattr(logging, "_logRecordFactory", factory)
    with caplog.at_level(logging.DEBUG, "helixnb.route"):
        async with router(policy=Always(Strategy.DROP)) as r:
            await r.submit(job(5))
    assert "route job_id=5 kind=HashMix" in caplog.text
    check_balanced(r.stats())


async def test_stats_are_a_frozen_snapshot() -> None:
    """They don't move with the router, can't be written, and turn into JSON."""
    async with router(policy=Always(Strategy.INLINE)) as r:
        await r.submit(job(latency_budget_ms=1e6))
        before = r.stats()
        await r.submit(job())
        after = r.stats()
    assert (before.completed, after.completed) == (1, 2)
    with pytest.raises(AttributeError):
        before.completed = 5  # type: ignore[misc]
    assert (before.by_strategy["inline"].routed, after.by_strategy["inline"].routed) == (1, 2)
    check_balanced(after)
    record = json.loads(json.dumps(after.as_dict()))
    assert record["completed"] == record["by_strategy"]["inline"]["routed"] == 2
    assert record["by_strategy"]["inline"]["latency"]["count"] == 2
    assert record["by_strategy"]["spawn"]["latency"]["p99_ms"] is None
    assert list(record["by_strategy"]) == [strategy.value for strategy in Strategy]


def test_latency_quantiles() -> None:
    """Average over all, quantiles over the window, in fractions of a millisecond."""
    window = LatencyWindow(size=100)
    for latency_us in range(1, 201):
        window.record(latency_us * 1_000)
    summary = summarise(window)
    assert summary.count == 200
    assert summary.avg_ms == pytest.approx(0.1005)
    kept = np.arange(101, 201) / 1_000
    expected = np.quantile(kept, [0.50, 0.95, 0.99])
    assert [summary.p50_ms, summary.p95_ms, summary.p99_ms] == pytest.approx(expected)


# -- What observes never decides a job's fate ----------------------------------------------------


class Nasty(logging.Handler):
    """A log handler that raises, which the standard ones never do."""

    def __init__(self, error: type[BaseException] = ZeroDivisionError) -> None:
        super().__init__()
        self.error = error
        self.calls = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.calls += 1
        raise self.error


class NastyFilter(logging.Filter):
    """A log filter that raises."""

    def filter(self, record: logging.LogRecord) -> bool:
        raise ZeroDivisionError


@pytest.fixture
def nasty() -> Iterator[Nasty]:
    """Let everything that helixnb logs end in an error."""
    handler = Nasty()
    log = logging.getLogger("helixnb")
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    yield handler
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)


async def every_way(r: Router) -> None:
    """Submit on each way in, by each strategy, and check the answers."""
    policy: Any = r._policy
    for policy.strategy in Strategy:
        if policy.strategy is Strategy.DROP:
            continue
        outcomes = [
            await r.submit(job()),
            await r.submit_soon(job()).wait(),
            await r.run(len, "abc", compute_cost=1),
            *await r.submit_many([job()] * 3),
        ]
        assert [outcome.status for outcome in outcomes] == [Status.COMPLETED] * 6
        r.explain(job())
    policy.strategy = Strategy.DROP
    assert (await r.submit(job())).status is Status.DROPPED
    check_balanced(r.stats(), idle=False)  # a thread may have its slot for a moment


async def test_a_log_handler_that_raises(nasty: Nasty) -> None:
    """Every job is answered."""
    async with router(policy=Always(Strategy.INLINE)) as r:
        await every_way(r)
    assert nasty.calls > 20
    check_balanced(r.stats())


def test_a_logger_that_fails_says_so_once(
    nasty: Nasty, capsys: pytest.CaptureFixture[str], anyio_backend_name: str
) -> None:
    """On the standard error stream, as the logging module does where it can."""
    log = SafeLogger("helixnb")
    for _ in range(2):
        log.warning("a warning")
    assert nasty.calls == 2
    assert capsys.readouterr().err.count("ZeroDivisionError") == 1


async def test_a_log_filter_that_raises(nasty: Nasty) -> None:
    """The same."""
    log = logging.getLogger("helixnb.route")
    log.addFilter(reject := NastyFilter())
    try:
        async with router(policy=Always(Strategy.INLINE)) as r:
            await every_way(r)
    finally:
        log.removeFilter(reject)
    check_balanced(r.stats())


async def test_an_interrupt_in_a_log_handler(nasty: Nasty) -> None:
    """It goes on to the program, and leaves no job in flight."""
    nasty.error = KeyboardInterrupt
    async with router(policy=Always(Strategy.INLINE)) as r:
        for r._policy.strategy in (Strategy.INLINE, Strategy.CPU_POOL):  # type: ignore[attr-defined]
            with pytest.raises(KeyboardInterrupt):
                await r.submit(job())
            with pytest.raises(KeyboardInterrupt):
                r.submit_soon(job())
            with pytest.raises(KeyboardInterrupt):
                await r.submit_many([job()] * 3)
        with anyio.fail_after(30):
            await r.drain()
        check_balanced(r.stats(), idle=False)
        nasty.error = ZeroDivisionError


async def test_other_warnings_through_a_handler_that_raises(nasty: Nasty) -> None:
    """A batch form that is broken, a failure nobody waits for, and a shadow that raises."""

    class Wrong:
        def decide(self, *args: Any) -> Any:
            raise ZeroDivisionError

    def serial(*_: Any) -> None:
        raise RuntimeError("broken")

    broken = Kernel(name="Broken", solo=lambda *_: 1, serial=serial, returns="uint64")
    async with Router(
        RouterConfig(cpu_parallelism=2),
        kernels=[broken, PICKY],
        policy=Always(Strategy.BATCH),
        shadow=Wrong(),
    ) as r:
        with anyio.fail_after(30):
            tickets = [r.submit_soon(job(i, "Broken")) for i in range(20)]
            assert [(await ticket.wait()).value for ticket in tickets] == [1] * 20
            r.submit_soon(job(3, "Picky"))
            await r.drain()
    assert r.stats().shadow_disagreements == 21
    check_balanced(r.stats())


class Deaf(logging.Logger):
    """A logger class of an application's own that fails when it is asked."""

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802  # as `logging` names it
        raise ZeroDivisionError


async def test_a_logger_that_cant_tell_whether_it_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens, then, and every job is answered."""
    deaf = SafeLogger("helixnb.route")
    deaf._logger = Deaf("deaf")
    monkeypatch.setattr("helixnb._observe.routing_log.logger", deaf)
    async with router(policy=Always(Strategy.INLINE)) as r:
        await every_way(r)
    check_balanced(r.stats())


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
async def test_an_observer_that_raises(error: type[BaseException]) -> None:
    """It hears no more, all others do, and every job is answered; Ctrl-C goes on to the program."""
    calls: list[str] = []

    def note(*_: Any) -> None:
        calls.append("raises")
        raise error

    raises: Any = note

    async with router(policy=Always(Strategy.INLINE)) as r:
        r._ledger.tell(raises)
        with r.watch() as watch:
            if error is KeyboardInterrupt:
                with pytest.raises(KeyboardInterrupt):
                    await r.submit(job())
                r._ledger.tell_no_more(raises)
            await every_way(r)
            assert len(watch.latest()) > 10
        assert calls == ["raises"]
    check_balanced(r.stats())


async def test_a_progress_callback_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """It is called no more, which is logged, and the router opens."""
    calls: list[int] = []

    def refuse(done: int, total: int, name: str) -> None:
        calls.append(done)
        raise ZeroDivisionError

    async with Router(RouterConfig(cpu_parallelism=1), progress=refuse) as r:
        assert (await r.submit(job())).status is Status.COMPLETED
    assert calls == [0]
    assert "progress raised" in caplog.text


class Says:
    """A policy that says what it is told to."""

    def __init__(self, says: Any) -> None:
        self.says = says

    def decide(self, *args: Any) -> Any:
        return self.says(*args)


async def _forgets(*_: Any) -> Any:
    return Decision(Strategy.INLINE, "too late")


def _nonsense(*_: Any) -> Any:
    strategy: Any = "nonsense"
    return Decision(strategy, "why")


@pytest.mark.parametrize(
    ("says", "error", "message"),
    [
        (lambda *_: 1 / 0, ZeroDivisionError, "division"),
        (lambda *_: None, TypeError, "Says.decide must return a Decision, got None"),
        (lambda *_: "inline", TypeError, "must return a Decision, got 'inline'"),
        (_forgets, TypeError, "must return a Decision, got <coroutine"),
        (_nonsense, ValueError, "'nonsense' is not a valid Strategy"),
        (lambda *_: Decision(Strategy.INLINE, ["why"]), TypeError, "reason must be a string"),  # type: ignore[arg-type]
        (lambda *_: Decision(Strategy.DROP, "why", "soon"), TypeError, "retry_after_s must be a"),  # type: ignore[arg-type]
        (lambda *_: Decision(Strategy.DROP, "why", -1.0), ValueError, "retry_after_s must be a"),
        (lambda *_: Decision(Strategy.DROP, "why", math.nan), ValueError, "got nan"),
    ],
)
async def test_a_policy_that_raises_or_says_nonsense(
    says: Any, error: type[Exception], message: str
) -> None:
    """Whoever asked is told in one line; no job was taken, and nothing waits."""
    policy = Says(lambda *_: Decision(Strategy.INLINE, "fine"))
    async with router(policy=policy) as r:
        policy.says = says
        calls: list[Callable[[], Any]] = [
            lambda: r.submit(job()),
            lambda: r.submit_many([job()] * 3),
            lambda: r.run(len, "abc", compute_cost=1),
        ]
        for call in calls:
            with pytest.raises(error, match=message) as caught:
                await call()
            assert "\n" not in str(caught.value)
        for at_once in (r.submit_soon, r.explain):
            with pytest.raises(error, match=message):
                at_once(job())
        check_balanced(r.stats())
        assert r.stats().submitted == 0
        policy.says = lambda *_: Decision(Strategy.CPU_POOL, "fine")
        assert (await r.submit(job())).status is Status.COMPLETED
    check_balanced(r.stats())


async def test_a_shadow_that_says_nonsense() -> None:
    """It disagrees, and that is all."""
    shadow = Says(lambda *_: None)
    async with Router(RouterConfig(cpu_parallelism=2), shadow=shadow) as r:
        assert (await r.submit(job())).status is Status.COMPLETED
        assert len(await r.submit_many([job()] * 3)) == 3
    assert (r.stats().shadow_compared, r.stats().shadow_disagreements) == (4, 4)
    check_balanced(r.stats())
