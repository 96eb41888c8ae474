"""Each strategy, from submit to outcome."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import pytest
from numba.core import event
from support import IN_THREADS, PICKY, Always, Gate, Picky, check_balanced, job, router, submit_all

import helixnb
from helixnb import Decision, JobError, Kernel, Load, RouterConfig, Status, Strategy
from helixnb_kernels import max_threads, reference

pytestmark = pytest.mark.anyio

ALL_BUT_DROP = (Strategy.INLINE, *IN_THREADS)


def _thread_of(inputs: Any, compute_cost: int, job_id: int) -> int:
    return threading.get_ident()


WHERE = Kernel(name="Where", solo=_thread_of)


@pytest.mark.parametrize("strategy", ALL_BUT_DROP)
async def test_every_kind_is_answered(strategy: Strategy) -> None:
    """On each strategy each built-in kernel gives the oracle's answer."""
    async with router(policy=Always(strategy)) as r:
        outcomes = [
            await r.submit(job(9, kind, [1, 2**64 - 1], compute_cost=20_000, latency_budget_ms=9e9))
            for kind in r.kernels
        ]
    answers = [
        reference.hash_mix_job([1, 2**64 - 1], 20_000, 9),
        reference.prime_count_job([], 20_000, 9),
        reference.monte_carlo_job([1, 2**64 - 1], 20_000, 9),
    ]
    assert [outcome.value for outcome in outcomes] == answers
    for outcome in outcomes:
        assert outcome.status is Status.COMPLETED
        assert outcome.strategy is outcome.decided is strategy
        assert outcome.reason == "test"
        assert outcome.latency_ms > 0
        assert outcome.met_budget
    stats = r.stats()
    check_balanced(stats)
    assert stats.completed == stats.within_budget == stats.by_strategy[strategy].routed == 3


@pytest.mark.parametrize(("strategy", "here"), [(s, s is Strategy.INLINE) for s in ALL_BUT_DROP])
async def test_where_a_kernel_runs(strategy: Strategy, here: bool) -> None:
    """Inline runs on the event loop's thread, all else in another."""
    async with router(WHERE, policy=Always(strategy)) as r:
        outcome = await r.submit(job(kind="Where"))
    assert (outcome.value == threading.get_ident()) is here


async def test_a_drop_is_an_outcome_with_a_reason() -> None:
    """A dropped job ends at once, without a value."""
    async with router(policy=Always(Strategy.DROP)) as r:
        outcome = await r.submit(job())
        assert outcome.status is Status.DROPPED
        assert outcome.reason == "test"
        assert r.stats().dropped_by_reason == {"test": 1}
        check_balanced(r.stats())


async def test_nothing_compiles_once_the_router_is_open() -> None:
    """All strategies and kinds run without a single compilation."""
    policy = Always(Strategy.INLINE)
    with event.install_recorder("numba:compile") as compiled:
        async with router(policy=policy) as r:
            before = len(compiled.buffer)
            for strategy in ALL_BUT_DROP:
                policy.strategy = strategy
                for kind in r.kernels:
                    outcomes = await submit_all(r, [job(i, kind, [i]) for i in range(200)])
                    assert all(outcome.status is Status.COMPLETED for outcome in outcomes)
            assert len(compiled.buffer) == before


async def test_spawn_without_a_slot_is_pooled() -> None:
    """The third spawn on two slots waits in the pool; what was decided stays visible."""
    gate = Gate()
    async with router(gate.kernel, policy=Always(Strategy.SPAWN)) as r:
        tickets = [r.submit_soon(job(i, "Gate")) for i in range(3)]
        await gate.begun(2)
        assert r.stats().cpu_busy == 2
        assert r.stats().waiting == 1
        gate.open()
        outcomes = [await ticket.wait() for ticket in tickets]
    assert [outcome.strategy for outcome in outcomes] == ["spawn", "spawn", "cpu_pool"]
    assert {outcome.decided for outcome in outcomes} == {Strategy.SPAWN}
    assert outcomes[2].reason == "spawn_saturated"
    assert [outcome.value for outcome in outcomes] == [0, 1, 2]
    check_balanced(r.stats())


@pytest.mark.parametrize("strategy", [Strategy.CPU_POOL, Strategy.BATCH])
async def test_a_full_queue_drops(strategy: Strategy) -> None:
    """What finds the queue full is dropped, and the others still run."""
    gate = Gate()
    policy = Always(Strategy.SPAWN)
    async with router(gate.kernel, policy=policy, queue_capacity=3, batch_max_jobs=2) as r:
        holders = [r.submit_soon(job(i, "Gate")) for i in range(2)]
        await gate.begun(2)
        policy.strategy = strategy
        waiting = [r.submit_soon(job(i, "Gate")) for i in range(2, 5)]
        dropped = await r.submit(job(9, "Gate"))
        assert (dropped.status, dropped.reason) == (Status.DROPPED, "queue_full")
        assert (dropped.decided, dropped.strategy) == (strategy, Strategy.DROP)
        assert r.stats().waiting == 3
        gate.open()
        for ticket in holders + waiting:
            assert (await ticket.wait()).status is Status.COMPLETED
    assert 9 not in gate.ran
    check_balanced(r.stats())


async def test_the_bound_is_one_over_all_queues() -> None:
    """A job that waits in the pool takes a place from the batcher, and the reverse."""
    gate = Gate()
    policy = Always(Strategy.SPAWN)
    async with router(gate.kernel, policy=policy, queue_capacity=2) as r:
        for i in range(2):
            r.submit_soon(job(i, "Gate"))
        await gate.begun(2)
        policy.strategy = Strategy.CPU_POOL
        r.submit_soon(job(2, "Gate"))
        policy.strategy = Strategy.BATCH
        r.submit_soon(job(3, "HashMix"))
        assert (await r.submit(job(4, "PrimeCount"))).reason == "queue_full"
        gate.open()
    check_balanced(r.stats())


async def test_never_more_threads_than_slots() -> None:
    """However jobs are routed, no more kernels run at once than there are slots."""
    running = 0
    most = 0
    lock = threading.Lock()

    def count(inputs: Any, compute_cost: int, job_id: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.002)
        with lock:
            running -= 1
        return job_id

    class Turns:
        def decide(self, job: Any, load: Load, config: RouterConfig, estimate: Any) -> Decision:
            assert load.cpu_busy <= config.cpu_parallelism
            return Decision(IN_THREADS[job.id % 3], "test")

    kernel = Kernel(name="Count", solo=count)
    async with router(kernel, policy=Turns(), cpu_parallelism=3, batch_max_jobs=4) as r:
        outcomes = await submit_all(r, [job(i, "Count") for i in range(90)])
    assert [outcome.value for outcome in outcomes] == list(range(90))
    assert 2 <= most <= 3
    check_balanced(r.stats())


async def test_pooled_jobs_share_a_hop_while_slots_are_busy() -> None:
    """Jobs that gathered behind busy slots run in one thread, in order of arrival."""
    threads: list[int] = []

    def where(inputs: Any, compute_cost: int, job_id: int) -> int:
        threads.append(threading.get_ident())
        return job_id

    gate = Gate()
    quick = Kernel(name="Quick", solo=where, ns_per_work=1.0)
    policy = Always(Strategy.SPAWN)
    async with router(gate.kernel, quick, policy=policy, cpu_parallelism=1) as r:
        r.submit_soon(job(0, "Gate"))
        await gate.begun()
        policy.strategy = Strategy.CPU_POOL
        tickets = [r.submit_soon(job(i, "Quick")) for i in range(50)]
        gate.open()
        order = [(await ticket.wait()).value for ticket in tickets]
    assert order == list(range(50))
    assert len(threads) == 50
    assert len(set(threads)) == 1


async def test_a_batch_is_released_by_size() -> None:
    """The job that fills the batch releases it, long before the delay is over."""
    async with router(
        policy=Always(Strategy.BATCH), batch_max_jobs=4, batch_max_delay_ms=60_000
    ) as r:
        with anyio.fail_after(30):
            outcomes = await submit_all(r, [job(i, inputs=[i]) for i in range(8)])
        assert [o.value for o in outcomes] == [reference.hash_mix([i], 10) for i in range(8)]
        assert (r.stats().batches, r.stats().batched_jobs) == (2, 8)


async def test_a_batch_is_released_by_time() -> None:
    """A lone job waits for company for as long as is set, and not longer."""
    async with router(policy=Always(Strategy.BATCH), batch_max_delay_ms=30) as r:
        with anyio.fail_after(30):
            outcome = await r.submit(job())
    assert outcome.latency_ms >= 30


async def test_batches_are_of_one_kind() -> None:
    """Jobs of different kinds never share a kernel call."""
    async with router(
        policy=Always(Strategy.BATCH), batch_max_jobs=3, batch_max_delay_ms=60_000
    ) as r:
        with anyio.fail_after(30):
            await submit_all(r, [job(i, kind) for i in range(3) for kind in r.kernels])
        assert r.stats().batches == 3


@pytest.mark.parametrize("parallel_kernels", ["auto", "never"])
async def test_a_large_batch_runs_on_several_threads(parallel_kernels: str) -> None:
    """Where the work is worth a launch, a batch takes what slots are free; unless told not to."""
    async with router(
        policy=Always(Strategy.BATCH), batch_max_jobs=50, parallel_kernels=parallel_kernels
    ) as r:
        jobs = [job(i, "MonteCarlo", [i], compute_cost=250_000) for i in range(50)]
        outcomes = await submit_all(r, jobs)
        stats = r.stats()
    assert stats.batches >= 1
    if parallel_kernels == "never" or stats.threading_layer not in ("tbb", "omp"):
        assert stats.parallel_launches == 0
    else:
        assert stats.parallel_launches >= 1
    assert outcomes[7].value == reference.monte_carlo_job([7], 250_000, 7)


@pytest.mark.parametrize("strategy", ALL_BUT_DROP)
async def test_a_kernel_that_raises_fails_its_own_job_only(strategy: Strategy) -> None:
    """Each failing job has its own error; its neighbours in a chunk or batch complete."""
    async with router(PICKY, policy=Always(strategy), batch_max_jobs=6) as r:
        outcomes = await submit_all(r, [job(i, "Picky") for i in range(18)])
    for i, outcome in enumerate(outcomes):
        if i % 3:
            assert outcome.value == i
        else:
            assert outcome.status is Status.FAILED
            with pytest.raises(Picky, match=f"job {i}"):
                _ = outcome.value
            assert outcome.value_or("none") == "none"
    assert (r.stats().completed, r.stats().failed) == (12, 6)
    check_balanced(r.stats())


async def test_a_policy_that_raises_reaches_the_caller() -> None:
    """The job counts as never submitted, and the router goes on."""

    class Broken:
        def decide(self, job: Any, load: Load, config: RouterConfig, estimate: Any) -> Decision:
            if job.id == 1:
                raise ArithmeticError("policy")
            return Decision(Strategy.INLINE, "test")

    async with router(policy=Broken()) as r:
        with pytest.raises(ArithmeticError):
            await r.submit(job(1))
        with pytest.raises(ArithmeticError):
            await r.submit_many([job(0), job(1), job(2)])
        assert (await r.submit(job(2))).status is Status.COMPLETED
    assert r.stats().submitted == 1
    check_balanced(r.stats())


@pytest.mark.parametrize("strategy", [Strategy.INLINE, Strategy.DROP])
async def test_submits_that_never_wait_give_way_to_other_tasks(strategy: Strategy) -> None:
    """A task that submits inline jobs, or retries drops, doesn't keep the event loop to itself."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with router(policy=Always(strategy)) as r, anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        for i in range(1_000):
            await r.submit(job(i))
        tasks.cancel_scope.cancel()
    assert turns >= 5
    check_balanced(r.stats())


class Abort(BaseException):
    """Not an `Exception`."""


@pytest.mark.parametrize("strategy", ALL_BUT_DROP)
@pytest.mark.parametrize("error", [SystemExit, Abort, GeneratorExit])
async def test_whatever_a_kernel_raises_is_its_jobs_failure(
    strategy: Strategy, error: type[BaseException]
) -> None:
    """Nothing that a kernel raises ends the router, in a batch call neither."""

    def leave(inputs: Any, compute_cost: int, job_id: int) -> int:
        raise error

    def batch(
        inputs: Any, offsets: Any, parts: Any, costs: Any, ids: Any, failed: Any, out: Any
    ) -> None:
        raise error

    kernels = [
        Kernel(name="Solo", solo=leave),
        Kernel(name="Both", solo=leave, serial=batch, returns="int64"),
    ]
    async with router(*kernels, policy=Always(strategy)) as r:
        for kernel in kernels:
            assert (await r.submit(job(kind=kernel.name))).status is Status.FAILED
            ticket = r.submit_soon(job(kind=kernel.name))
            assert (await ticket.wait()).status is Status.FAILED
        assert (await r.submit(job())).status is Status.COMPLETED
    check_balanced(r.stats())


async def test_a_batch_call_that_raises_is_run_again_job_by_job() -> None:
    """If the one call for the batch fails, each job runs by itself once; only the culprit fails."""
    calls = {"batch": 0, "solo": 0}

    def solo(inputs: Any, compute_cost: int, job_id: int) -> int:
        calls["solo"] += 1
        if job_id == 4:
            raise Picky
        return job_id * 10

    def batch(
        inputs: Any, offsets: Any, parts: Any, costs: Any, ids: Any, failed: Any, out: Any
    ) -> None:
        calls["batch"] += 1
        if 4 in ids:
            raise Picky
        out[:] = ids * 10

    kernel = Kernel(name="K", solo=solo, serial=batch, returns="uint64")
    async with router(kernel, policy=Always(Strategy.BATCH), batch_max_jobs=3) as r:
        outcomes = await submit_all(r, [job(i, "K") for i in range(6)])
    assert [outcome.value_or(None) for outcome in outcomes] == [0, 10, 20, 30, None, 50]
    assert outcomes[4].status is Status.FAILED
    assert calls == {"batch": 2, "solo": 3}
    check_balanced(r.stats())


async def test_a_job_too_large_is_refused_beforehand() -> None:
    """A thread can't be stopped, so what would hold it for too long never starts."""
    async with router(policy=Always(Strategy.CPU_POOL), max_job_s=1) as r:
        outcome = await r.submit(job(compute_cost=2**64 - 1))
        assert (outcome.status, outcome.reason) == (Status.DROPPED, "too_large")
        assert (outcome.decided, outcome.strategy) == (Strategy.CPU_POOL, Strategy.DROP)
        assert (await r.submit(job(compute_cost=64_000))).status is Status.COMPLETED
    check_balanced(r.stats())


async def test_a_batch_holds_no_more_slots_than_numba_has_threads() -> None:
    """Slots that a batch could not use stay free for others."""
    busy = []

    def batch(
        inputs: Any, offsets: Any, parts: Any, costs: Any, ids: Any, failed: Any, out: Any
    ) -> None:
        out[:] = 1
        busy.append(r.stats().cpu_busy)

    kernel = Kernel(
        name="K",
        solo=_thread_of,
        serial=batch,
        parallel=batch,
        returns="uint64",
        ns_per_work=1e6,
    )
    slots = max_threads() + 3
    async with router(kernel, policy=Always(Strategy.BATCH), cpu_parallelism=slots) as r:
        await submit_all(r, [job(i, "K") for i in range(64)])
    assert busy
    assert max(busy) <= max_threads()


async def test_a_policy_may_name_its_strategy() -> None:
    """A plain string is as good as the enum, and a wrong one is refused before it counts."""

    class Named:
        name = "inline"

        def decide(self, job: Any, load: Load, config: RouterConfig, estimate: Any) -> Decision:
            return Decision(self.name, "test")  # type: ignore[arg-type]

    policy = Named()
    async with router(policy=policy) as r:
        assert (await r.submit(job())).strategy is Strategy.INLINE
        policy.name = "teleport"
        with pytest.raises(ValueError, match="'teleport' is not a valid Strategy"):
            await r.submit(job())
        assert r.stats().submitted == 1


async def test_a_users_kernel_on_every_strategy() -> None:
    """It is added to a running router, gives the same bits everywhere, and never compiles again."""

    @helixnb.kernel(inputs="float64[:]", returns="float64", params={"rate": "float64"})
    def discounted(flows: Any, rate: Any) -> Any:
        total = 0.0
        for t in range(len(flows)):
            total += flows[t] / (1.0 + rate) ** t
        return total

    policy = Always(Strategy.INLINE)
    async with router(policy=policy, batch_max_jobs=16) as r:
        await r.add_kernel(discounted)
        seen = set()
        with event.install_recorder("numba:compile") as compiled:
            for strategy in ALL_BUT_DROP:
                policy.strategy = strategy
                jobs = [discounted.job([1.5] * n, rate=0.01 * n) for n in range(40)]
                outcomes = await submit_all(r, jobs)
                seen.add(tuple(outcome.value for outcome in outcomes))
            assert not compiled.buffer
        assert len(seen) == 1
        with pytest.raises(JobError, match=r"params must be rate, got none"):
            await r.submit(discounted.job([1.0]))
        with pytest.raises(JobError, match=r"params\['rate'\] must be a real number, got 'x'"):
            await r.submit(discounted.job([1.0], rate="x"))
    check_balanced(r.stats())


async def test_workers_have_their_turn_beside_a_loop_that_never_idles() -> None:
    """Tasks that are always ready don't keep the GIL from a kernel that has ended."""

    async def spin() -> None:
        while True:
            await anyio.lowlevel.checkpoint()

    async with router(policy=Always(Strategy.CPU_POOL)) as r:
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                for _ in range(100):
                    tasks.start_soon(spin)
                for i in range(20):
                    assert (await r.submit(job(i, compute_cost=6_400_000))).value is not None
                tasks.cancel_scope.cancel()
    check_balanced(r.stats())
