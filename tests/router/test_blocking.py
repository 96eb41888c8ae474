"""The router for threads: the same answers, outcomes and shutdown, without an event loop."""

from __future__ import annotations

import inspect
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest
from support import (
    LARGE,
    PICKY,
    Always,
    Gate,
    check_balanced,
    job,
    job_of,
    original,
    python,
    threads_in_use,
    wait_until,
)

from helixnb import (
    BlockingRouter,
    JobDropped,
    KernelError,
    Router,
    RouterConfig,
    RouterStateError,
    StaticPolicy,
    Strategy,
    UnknownKindError,
    kernel,
)
from helixnb._core.policy import Policy
from helixnb_kernels import BUILT_IN, Kernel

BACKENDS: list[dict[str, Any]] = [
    {"backend": "asyncio"},
    {"backend": "trio"},
    {"backend": "asyncio", "backend_options": {"use_uvloop": os.name != "nt"}},
]


@pytest.fixture(params=BACKENDS, ids=["asyncio", "trio", "uvloop"])
def backend(request: pytest.FixtureRequest) -> Any:
    return request.param


def blocking(*kernels: Kernel, policy: Policy | None = None, **given: Any) -> BlockingRouter:
    """Make a router with two slots; `given` are the backend, and settings."""
    backend = {name: given.pop(name) for name in ("backend", "backend_options") if name in given}
    return BlockingRouter(
        RouterConfig(**{"cpu_parallelism": 2, "drain_timeout_s": 5.0, **given}),
        kernels=(*BUILT_IN, *kernels),
        policy=StaticPolicy() if policy is None else policy,
        **backend,
    )


def test_the_same_calls_with_the_same_parameters() -> None:
    """Whatever a router offers, this one does too, but for what belongs to event loops."""
    names = {name for name in dir(Router) if not name.startswith("_")}
    assert names - set(dir(BlockingRouter)) == {"is_adaptive", "stretch"}
    for name in names & set(dir(BlockingRouter)):
        of_router, of_blocking = getattr(Router, name), getattr(BlockingRouter, name)
        if callable(of_router):
            ours, theirs = inspect.signature(of_blocking), inspect.signature(of_router)
            assert list(ours.parameters.values()) == list(theirs.parameters.values()), name
        assert of_blocking.__doc__


def test_the_originals_answers(backend: Any) -> None:
    """From several threads at once."""
    rows = original()[:60]
    policy = Always(Strategy.CPU_POOL)
    with blocking(policy=policy, **backend) as r, ThreadPoolExecutor(4) as threads:
        outcomes = list(threads.map(lambda row: r.submit(job_of(row)), rows))
        assert [outcome.value for outcome in outcomes] == [row["answer"] for row in rows]
        many = r.submit_many([job_of(row) for row in rows])
        assert [outcome.value for outcome in many] == [row["answer"] for row in rows]
        assert r.stats().submitted == 120
    check_balanced(r.stats())
    assert r.stats().state == "closed"


def test_callables_and_context(backend: Any) -> None:
    """A call sees the context variables of the thread that made it."""
    variable: ContextVar[str] = ContextVar("variable", default="none")
    with blocking(**backend) as r:
        variable.set("mine")
        for cost in (1, LARGE):
            outcome = r.run(lambda end: variable.get() + end, "!", compute_cost=cost, kind="call")
            assert outcome.value == "mine!"
            assert outcome.kind == "call"


def test_settings_kernels_and_what_is_seen(backend: Any) -> None:
    r = blocking(**backend)
    assert r.reconfigure(cpu_parallelism=1).cpu_parallelism == 1
    assert (r.stats().state, r.is_open, r.metrics()) == ("new", False, [])
    with r:
        assert r.is_open
        assert r.reconfigure(cpu_parallelism=2).cpu_parallelism == r.config.cpu_parallelism == 2
        r.add_kernel(PICKY)
        assert "Picky" in r.kernels
        assert r.hop_us > 0
        assert r.explain(job(1)).decision.strategy is Strategy.INLINE
        with r.watch() as watch:
            assert r.submit(job(3, "Picky")).status == "failed"
            assert r.submit(job(1, "Picky")).value == 1
        assert [each.job_id for each in watch.latest()] == [3, 1]
        assert len(r.metrics()) > 5
        r.drain()
        with pytest.raises(UnknownKindError):
            r.submit(job(1, "Nobody"))
        with pytest.raises(KernelError, match="second"):
            r.add_kernel(PICKY)


def test_tickets(backend: Any) -> None:
    gate = Gate()
    with blocking(gate.kernel, policy=Always(Strategy.CPU_POOL), cpu_parallelism=1, **backend) as r:
        first, second, third = (r.submit_soon(job(i, "Gate")) for i in range(3))
        assert not first.done
        with pytest.raises(TimeoutError):
            first.wait(0.01)
        assert second.cancel()
        assert not second.cancel()
        assert second.wait().status == "cancelled"
        gate.open()
        assert first.wait().value == 0
        assert third.wait(10).value == 2
        assert (gate.ran, first.done) == ([0, 2], True)
        assert repr(third) == "<BlockingTicket job_id=2 kind=Gate completed>"
    assert third.wait().value == 2
    assert not third.cancel()


def test_leaving_waits_for_jobs_in_flight(backend: Any) -> None:
    gate = Gate()
    with blocking(gate.kernel, policy=Always(Strategy.CPU_POOL), **backend) as r:
        tickets = [r.submit_soon(job(i, "Gate")) for i in range(5)]
        threading.Timer(0.05, gate.open).start()
    assert [ticket.wait().value for ticket in tickets] == list(range(5))
    check_balanced(r.stats())


def test_a_body_that_raises_is_not_waited_for(backend: Any) -> None:
    gate = Gate()
    r = blocking(gate.kernel, policy=Always(Strategy.CPU_POOL), cpu_parallelism=1, **backend)
    with pytest.raises(ZeroDivisionError), r:
        tickets = [r.submit_soon(job(i, "Gate")) for i in range(3)]
        while not gate.ran:
            time.sleep(0.001)
        gate.open_once(lambda: r.stats().dropped == 2)
        raise ZeroDivisionError
    assert [ticket.wait().status for ticket in tickets] == ["completed", "dropped", "dropped"]
    check_balanced(r.stats())


def test_calls_that_wait_while_it_closes_have_their_outcomes(backend: Any) -> None:
    """And what comes meanwhile is dropped."""
    gate = Gate()
    r = blocking(
        gate.kernel,
        policy=Always(Strategy.CPU_POOL),
        cpu_parallelism=1,
        drain_timeout_s=0.2,
        **backend,
    ).open()
    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(r.submit, job(i, "Gate")) for i in range(3)]
        while r.stats().in_flight < 3 or not gate.ran:
            time.sleep(0.001)
        closing = threads.submit(r.close)
        while r.is_open:
            time.sleep(0.001)
        late = r.submit(job(9, "Gate"))
        assert (late.status, late.reason) == ("dropped", "router_closed")
        with pytest.raises(JobDropped):
            _ = late.value
        while r.stats().dropped < 3:
            time.sleep(0.001)
        gate.open()
        closing.result(30)
        outcomes = [each.result(30) for each in waiting]
    statuses = sorted(outcome.status for outcome in outcomes)
    assert statuses == ["completed", "dropped", "dropped"]
    check_balanced(r.stats())
    with pytest.raises(RouterStateError, match="closed"):
        r.submit(job(1))
    r.close()  # again


def test_open_and_close() -> None:
    r = blocking()
    r.close()  # nothing to close
    with pytest.raises(RouterStateError, match=r"in `with router:`, or open it"):
        r.submit(job(1))
    assert r.open() is r
    assert r.submit(job(1)).status == "completed"
    with pytest.raises(RouterStateError, match="opens once"):
        r.open()
    r.close()
    with pytest.raises(RouterStateError, match="opens once"):
        r.open()


def test_opening_that_fails_says_so(backend: Any) -> None:
    """As itself, and no thread is left."""

    @kernel(inputs="float64[:]", returns="float64", shared={"weights": "float64[:]"})
    def score(features: Any, weights: Any) -> Any:
        return features[0] * weights[0]

    threads = threads_in_use()
    with pytest.raises(KernelError, match="weights"):
        blocking(score, **backend).open()
    with pytest.raises(LookupError, match="nothing"):
        blocking(backend="nothing").open()
    wait_until(lambda: threads_in_use() <= threads)


def test_a_policy_that_crashes_the_router(backend: Any) -> None:
    class Wrong:
        def decide(self, *args: Any) -> Any:
            raise ZeroDivisionError

    with blocking(policy=Wrong(), **backend) as r:
        with pytest.raises(ZeroDivisionError):
            r.submit(job(1))
        check_balanced(r.stats())


def test_a_job_on_the_event_loop_can_not_wait_for_another(backend: Any) -> None:
    """It would wait for itself."""
    with blocking(**backend) as r:
        inline = r.run(lambda: r.submit(job(1)), compute_cost=1)
        assert inline.strategy is Strategy.INLINE
        with pytest.raises(RouterStateError, match="can't wait for another"):
            _ = inline.value
        closing = r.run(r.close, compute_cost=1)
        with pytest.raises(RouterStateError, match="can't be closed by its own"):
            _ = closing.value
        pooled = r.run(lambda: r.stats().submitted, compute_cost=LARGE)
        assert pooled.value == 3


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_is_told(backend: Any) -> None:
    done = python(
        "-W",
        "ignore::DeprecationWarning",
        "-c",
        f"""if True:
        import os
        from helixnb import BlockingRouter, Job, RouterConfig, RouterStateError
        router = BlockingRouter(RouterConfig(parallel_kernels="never"), **{backend!r}).open()
        job = Job(id=1, kind="HashMix", compute_cost=640)
        router.submit(job)
        if (pid := os.fork()) == 0:
            try:
                router.submit(job)
            except RouterStateError as error:
                assert "forked" in str(error)
                with BlockingRouter(RouterConfig(parallel_kernels="never")) as own:
                    assert own.submit(job).status == "completed"
                os._exit(0)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        router.close()
        """,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_after_it_was_opened_is_quiet() -> None:
    """The threading layer is chosen in the thread that opens it, as TBB wants it."""
    done = python(
        "-W",
        "ignore::DeprecationWarning",
        "-c",
        """if True:
        import os
        from helixnb import BlockingRouter
        with BlockingRouter():
            if (pid := os.fork()) == 0:
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        """,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_router_left_open_does_not_keep_the_program(backend: Any) -> None:
    """It ends as if it had been closed: what is queued runs."""
    done = python(
        "-c",
        f"""if True:
        import time
        from helixnb import BlockingRouter, RouterConfig
        router = BlockingRouter(RouterConfig(cpu_parallelism=1), **{backend!r}).open()
        def work(i):
            time.sleep(0.05)
            print("ran", i, flush=True)
        import threading
        for i in range(3):
            threading.Thread(
                target=router.run, args=(work, i), kwargs={{"compute_cost": 10**6}}
            ).start()
        time.sleep(0.02)
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ran") == 3
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_an_interrupt_cancels_the_call() -> None:
    """The job is cancelled, and the router goes on."""
    done = python(
        "-c",
        """if True:
        import os, signal, threading
        from helixnb import BlockingRouter, RouterConfig
        # What a shell runs in the background ignores it, and so would this.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        goes_on = threading.Event()
        def interrupt():
            os.kill(os.getpid(), signal.SIGINT)
            goes_on.wait(20)
        with BlockingRouter(RouterConfig(cpu_parallelism=1)) as router:
            try:
                router.run(interrupt, compute_cost=10**6)
            except KeyboardInterrupt:
                cancelled = router.stats().cancelled
                goes_on.set()
                print(cancelled, router.run(len, "abc", compute_cost=1).value)
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "3"]
