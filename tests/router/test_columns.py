"""submit_many: columns in, columns out, with the outcomes that single jobs would have."""

from __future__ import annotations

import itertools
import logging
import pickle
import threading
from typing import Any

import anyio
import numpy as np
import pytest
from support import (
    IN_THREADS,
    LARGE,
    PICKY,
    Always,
    Gate,
    Picky,
    check_balanced,
    job,
    job_of,
    original,
    router,
)

import helixnb
from helixnb import (
    Decision,
    Job,
    JobBlock,
    JobColumns,
    JobError,
    Kernel,
    Load,
    Router,
    RouterConfig,
    StaticPolicy,
    Status,
    Strategy,
    UnknownKindError,
    _blocks,
)
from helixnb._exec.lanes import PoolLane
from helixnb_kernels import HASH_MIX

pytestmark = pytest.mark.anyio

NAN = np.nan


def block(jobs: int, kind: str = "HashMix", **fields: Any) -> JobBlock:
    """Make a block of jobs without inputs, that no threshold lets run inline."""
    fields.setdefault("compute_cost", LARGE)
    return JobBlock(kind, np.empty((jobs, 0), np.uint64), scaling_potential=0.5, **fields)


def columns_of_original() -> tuple[JobColumns, list[Any]]:
    """Return the original router's jobs as columns, and their answers in the order of the jobs."""
    rows = original()
    kinds = sorted({row["kind"] for row in rows})
    blocks, positions = [], []
    for kind in kinds:
        own = [i for i, row in enumerate(rows) if row["kind"] == kind]
        blocks.append(
            JobBlock(
                kind,
                np.array([v for i in own for v in rows[i]["inputs"]], np.uint64),
                offsets=np.cumsum([0, *(len(rows[i]["inputs"]) for i in own)]),
                compute_cost=[rows[i]["compute_cost"] for i in own],
                scaling_potential=[rows[i]["scaling_potential"] for i in own],
                id=[rows[i]["id"] for i in own],
            )
        )
        positions += own
    order = np.empty(len(rows), np.int64)
    order[positions] = np.arange(len(rows))
    return JobColumns(blocks, order), [row["answer"] for row in rows]


async def test_the_original_answers() -> None:
    """Columns and lists of jobs give the original's answers, bit for bit, in order and typed."""
    columns, answers = columns_of_original()
    async with router() as r:
        for jobs in (columns, [job_of(row) for row in original()]):
            outcomes = await r.submit_many(jobs)
            assert [outcome.value for outcome in outcomes] == answers
            assert [outcome.job_id for outcome in outcomes] == [row["id"] for row in original()]
            assert set(outcomes.kinds) == {"HashMix", "MonteCarlo", "PrimeCount"}
            assert outcomes["MonteCarlo"].values.dtype == np.float64
            assert outcomes["HashMix"].values.dtype == np.uint64
            assert outcomes["HashMix"].completed.all()
            assert (outcomes.status == Status.COMPLETED.code).all()
            assert (outcomes[7].value, outcomes[-1].value) == (answers[7], answers[-1])
            assert [each.value for each in outcomes[3:6]] == answers[3:6]
            assert repr(outcomes) == "<Outcomes: 600 completed>"
            with pytest.raises(IndexError):
                _ = outcomes[600]
            # A thread that was sent for what another one took may have its slot for a moment.
            while r.stats().cpu_busy:  # noqa: ASYNC110
                await anyio.sleep(0.001)
    check_balanced(r.stats())


@pytest.mark.parametrize("busy", [0, 1, 2])
async def test_decided_as_one_by_one(busy: int) -> None:
    """Each row has the decision that the policy makes for the job alone, on the same load."""
    gate = Gate()
    policy: Any = Always(Strategy.SPAWN)
    rows = original()
    async with router(gate.kernel, policy=policy, queue_capacity=1_000) as r:
        for i in range(busy):
            r.submit_soon(job(i, "Gate"))
        await gate.begun(busy)
        r._decider.policy = StaticPolicy()  # which has no use for a gate
        jobs = [job_of(row) for row in rows]
        outcomes: Any = None

        async def run() -> None:
            nonlocal outcomes
            outcomes = await r.submit_many(jobs)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await anyio.wait_all_tasks_blocked()
            gate.open()
        config = r.config
    for each, outcome in zip(jobs, outcomes, strict=True):
        expected = StaticPolicy().decide(each, Load(cpu_busy=busy), config)
        assert outcome.decided is expected.strategy
        if outcome.strategy is outcome.decided:
            assert outcome.reason == expected.reason
        else:
            assert outcome.strategy is Strategy.BATCH
            assert outcome.reason == "in_columns"
    check_balanced(r.stats())


async def test_only_jobs_with_a_budget_find_the_queue_full() -> None:
    """They count in the order of the jobs, with what waits already; the others always fit."""
    gate = Gate()
    policy = Always(Strategy.SPAWN)
    budgets = np.where(np.arange(40) % 2, 60_000.0, NAN)
    order = np.arange(40)[::-1]
    async with router(gate.kernel, policy=policy, queue_capacity=12) as r:
        for i in range(2):
            r.submit_soon(job(i, "Gate"))
        await gate.begun(2)
        policy.strategy = Strategy.CPU_POOL
        for i in range(2):
            r.submit_soon(job(i, "Gate"))
        columns = JobColumns([block(40, latency_budget_ms=budgets)], order)
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                outcomes = await r.submit_many(columns)
                dropped = [i for i, each in enumerate(outcomes) if each.reason == "queue_full"]
                # Of the odd rows, which have a budget, the first ten in order are taken in.
                with_budget = [i for i, row in enumerate(order) if row % 2]
                assert dropped == with_budget[10:]
                assert sum(each.status is Status.COMPLETED for each in outcomes) == 30

            tasks.start_soon(run)
            await anyio.wait_all_tasks_blocked()
            assert r.stats().waiting == 12
            assert (await r.submit(job())).reason == "queue_full"
            gate.open()
    check_balanced(r.stats())


async def test_jobs_without_a_budget_are_never_dropped_for_room() -> None:
    """The columns are the queue, however small the router's own is."""
    async with router(policy=Always(Strategy.BATCH), queue_capacity=2) as r:
        outcomes = await r.submit_many(JobColumns([block(20_000, compute_cost=640)]))
        assert (outcomes.status == Status.COMPLETED.code).all()
        assert r.stats().batched_jobs == 20_000
    check_balanced(r.stats())


@helixnb.kernel(inputs="float64[2]", returns="float64[2]", params={"scale": "int64"}, name="Pair")
def pair(inputs, scale, job_id, out):  # type: ignore[no-untyped-def]
    """Scale two numbers; refuses negative ones."""
    if inputs[0] < 0:
        raise ValueError("negative")
    out[0] = inputs[0] * scale
    out[1] = inputs[1] + job_id


async def test_rows_params_and_vector_results() -> None:
    """Inputs of a fixed length come as rows or flat; each failing row has its own error."""
    given = np.arange(60.0).reshape(30, 2)
    given[4, 0] = given[17, 0] = -1
    scale = np.arange(30)
    flat = np.concatenate(([9.0], given.ravel(), [9.0]))
    flat.setflags(write=False)
    async with router(pair, policy=Always(Strategy.CPU_POOL)) as r:
        for inputs, offsets in ((given, None), (flat, 1 + 2 * np.arange(31))):
            rows = JobBlock(
                "Pair", inputs, offsets=offsets, compute_cost=1, params={"scale": scale}
            )
            outcomes = await r.submit_many(JobColumns([rows]))
            failed = [i for i, each in enumerate(outcomes) if each.status is Status.FAILED]
            assert failed == [4, 17]
            assert sorted(outcomes["Pair"].errors) == [4, 17]
            with pytest.raises(ValueError, match="negative"):
                _ = outcomes[17].value
            fine = np.delete(np.arange(30), [4, 17])
            expected = np.stack([given[:, 0] * scale, given[:, 1] + np.arange(30)], axis=1)
            assert (outcomes["Pair"].values[fine] == expected[fine]).all()
            assert outcomes[3].value.tolist() == expected[3].tolist()
            assert outcomes[4].value_or(None) is None
    check_balanced(r.stats())


@pytest.mark.parametrize("strategy", [Strategy.INLINE, *IN_THREADS])
async def test_plain_python_kernels(strategy: Strategy) -> None:
    """Their rows run one by one, where they were decided to; what one raises is its own."""
    async with router(PICKY, policy=Always(strategy)) as r:
        outcomes = await r.submit_many(JobColumns([block(300, "Picky")]))
    for i, outcome in enumerate(outcomes):
        assert outcome.value_or(None) == (i if i % 3 else None)
        assert outcome.decided is strategy
    with pytest.raises(Picky, match="job 6"):
        _ = outcomes[6].value
    assert (r.stats().completed, r.stats().failed) == (200, 100)
    check_balanced(r.stats())


async def test_a_batch_form_that_raises_is_run_again_job_by_job() -> None:
    """Only the jobs fail that raise by themselves."""

    def solo(inputs: Any, compute_cost: int, job_id: int) -> int:
        if job_id == 5:
            raise Picky
        return 10 * job_id

    def batch(*_: Any) -> None:
        raise RuntimeError("the batch as a whole")

    kernel = Kernel(name="K", solo=solo, serial=batch, returns="uint64")
    async with router(kernel, policy=Always(Strategy.BATCH)) as r:
        outcomes = await r.submit_many(JobColumns([block(100, "K")]))
    assert [each.value_or(None) for each in outcomes] == [
        None if i == 5 else 10 * i for i in range(100)
    ]
    check_balanced(r.stats())


async def test_inline_rows_run_on_the_loop() -> None:
    """And the others in worker threads, in the same call."""
    threads = {}

    def where(inputs: Any, compute_cost: int, job_id: int) -> int:
        threads[job_id] = threading.get_ident()
        return job_id

    async with router(Kernel(name="Where", solo=where)) as r:
        costs = np.where(np.arange(50) % 2, 1, LARGE)
        await r.submit_many(JobColumns([block(50, "Where", compute_cost=costs)]))
    here = threading.get_ident()
    assert [threads[i] == here for i in range(50)] == [i % 2 == 1 for i in range(50)]


async def test_cancelled_with_its_caller() -> None:
    """What hasn't run never does, nothing stays behind in the queue, and the router goes on."""
    gate = Gate()
    async with router(gate.kernel, policy=Always(Strategy.CPU_POOL)) as r:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(r.submit_many, JobColumns([block(99, "Gate", latency_budget_ms=9e6)]))
            await gate.begun(2)
            assert r.stats().waiting > 0
            tasks.cancel_scope.cancel()
        stats = r.stats()
        assert (stats.cancelled, stats.in_flight, stats.waiting) == (99, 0, 0)
        gate.open()
        assert (await r.submit(job(5, "Gate"))).value == 5
    assert len(gate.ran) == 3
    check_balanced(r.stats())


async def test_closing_drops_what_hasnt_begun() -> None:
    """Rows in a thread complete, the rest is dropped with the reason."""
    gate = Gate()
    outcomes: Any = None
    r = router(gate.kernel, policy=Always(Strategy.BATCH), drain_timeout_s=0.02)

    async def run() -> None:
        nonlocal outcomes
        outcomes = await r.submit_many(JobColumns([block(20, "Gate")]))

    async with anyio.create_task_group() as tasks, r:
        tasks.start_soon(run)
        await gate.begun(2)
        gate.open_once(lambda: r.stats().dropped == 18)
    reasons = [each.reason for each in outcomes if each.status is Status.DROPPED]
    assert reasons == ["router_closed"] * 18
    assert len(gate.ran) == 2
    assert (await r.submit_many(JobColumns([block(3)])))[2].reason == "router_closed"
    check_balanced(r.stats())


async def test_single_jobs_take_turns_with_columns() -> None:
    """A job that comes while a long call runs doesn't wait for the end of it."""
    begun = threading.Event()

    def take_a_millisecond(inputs: Any, compute_cost: int, job_id: int) -> int:
        begun.set()
        threading.Event().wait(0.001)
        return job_id

    slow = Kernel(name="Slow", solo=take_a_millisecond)
    policy = Always(Strategy.CPU_POOL)
    one = router(slow, policy=policy, cpu_parallelism=1)
    async with one as r, anyio.create_task_group() as tasks:
        tasks.start_soon(r.submit_many, JobColumns([block(1_000, "Slow")]))
        await anyio.to_thread.run_sync(begun.wait)
        for policy.strategy in IN_THREADS:
            assert (await r.submit(job(1))).status is Status.COMPLETED
        assert r.stats().in_flight > 100
        tasks.cancel_scope.cancel()
    check_balanced(r.stats())


async def test_too_large_and_a_policy_of_the_users() -> None:
    """A policy is asked for each row, as a job; what would hold a thread too long is dropped."""
    seen: list[Job] = []

    class Odd:
        def decide(self, job: Job, load: Load, config: RouterConfig, estimate: Any) -> Decision:
            seen.append(job)
            if job.id % 2:
                return Decision(Strategy.DROP, "odd", 1.5)
            return Decision(Strategy.BATCH, "even")

    costs = np.array([640, 640, 2**63, 2**63], np.uint64)
    columns = JobColumns([block(4, compute_cost=costs, latency_budget_ms=[9e6, NAN, 5, 6])])
    async with router(policy=Odd(), max_job_s=1) as r:
        outcomes = await r.submit_many(columns)
    assert [each.reason for each in outcomes] == ["even", "odd", "too_large", "too_large"]
    assert [each.retry_after_s for each in outcomes] == [None, 1.5, None, None]
    assert [each.decided for each in outcomes] == [Strategy.BATCH, Strategy.DROP] * 2
    assert [each.latency_budget_ms for each in seen] == [9e6, None, 5, 6]
    assert seen[2].compute_cost == 2**63
    assert outcomes[2].decided is Strategy.BATCH
    assert outcomes[2].strategy is Strategy.DROP
    check_balanced(r.stats())


async def test_nothing_is_a_legal_number_of_jobs() -> None:
    """Empty calls, and empty blocks among others."""
    async with router() as r:
        assert len(await r.submit_many(JobColumns([]))) == 0
        assert list(await r.submit_many([])) == []
        outcomes = await r.submit_many(JobColumns([block(0), block(2, "PrimeCount")]))
        assert [each.kind for each in outcomes] == ["PrimeCount"] * 2
        assert len(outcomes["HashMix"].values) == 0
    check_balanced(r.stats())


async def test_rows_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A line a job, with what was decided and what ran."""
    async with router() as r:
        with caplog.at_level(logging.DEBUG, "helixnb.route"):
            await r.submit_many(JobColumns([block(2, id=[7, 8])]))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert "job_id=7" in lines[0]
    assert "strategy=cpu_pool" in lines[0]
    assert "executed=batch" in lines[0]


async def test_a_crash_answers_rows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """They fail with what went wrong, instead of waiting for ever."""

    def crash(*_: Any) -> None:
        raise ArithmeticError("own fault")

    gate = Gate()
    with pytest.raises(helixnb.RouterStateError, match="the router crashed"):
        async with router(gate.kernel, policy=Always(Strategy.SPAWN)) as r:
            for i in range(2):
                r.submit_soon(job(i, "Gate"))
            await gate.begun(2)
            outcomes: Any = None

            async def run() -> None:
                nonlocal outcomes
                outcomes = await r.submit_many(JobColumns([block(5)]))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                await anyio.wait_all_tasks_blocked()
                monkeypatch.setattr(PoolLane, "take", crash)
                gate.open()
    assert {each.status for each in outcomes} <= {Status.FAILED, Status.COMPLETED}
    check_balanced(r.stats())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inputs": np.zeros(3, np.uint64)}, "inputs must have two dimensions, a row a job, or"),
        ({"offsets": [0, 1]}, "inputs must have one dimension beside offsets, got shape"),
        ({"compute_cost": [1.5] * 3}, r"compute_cost\[0\] must be an integer, got 1.5"),
        ({"compute_cost": np.ones(3)}, "compute_cost must have an integer dtype, got float64"),
        ({"compute_cost": [1, -2, 3]}, r"compute_cost\[1\] must lie in 0 .. 2\*\*64-1, got -2"),
        ({"compute_cost": [1, 2]}, r"compute_cost must have one element a job, 3, got shape \(2,"),
        ({"compute_cost": -1}, "compute_cost must lie in 0 .. 2.*, got -1"),
        ({"id": [True] * 3}, r"id\[0\] must be an integer, got True"),
        ({"scaling_potential": [0, 0.5, 1.5]}, r"scaling_potential\[2\] must lie in 0 .. 1, got 1"),
        ({"scaling_potential": NAN}, "scaling_potential.* must lie in 0 .. 1, got nan"),
        ({"latency_budget_ms": [1, -1, NAN]}, r"latency_budget_ms\[1\] must be >= 0 and finite"),
        ({"latency_budget_ms": ["5"] * 3}, r"latency_budget_ms\[0\] must be a real .*'5'"),
        ({"kind": 5}, "kind must be the name of a kernel, got 5"),
    ],
)
def test_columns_that_cant_be(fields: dict[str, Any], message: str) -> None:
    """The message names the column, the value and what is allowed."""
    fields.setdefault("kind", "HashMix")
    fields.setdefault("inputs", np.zeros((3, 2), np.uint64))
    fields.setdefault("compute_cost", 1)
    with pytest.raises(JobError, match=message):
        JobBlock(**fields)


def test_blocks_that_cant_go_together() -> None:
    """One block a kind, and an order that names each job once."""
    with pytest.raises(JobError, match="one block a kind, got HashMix, HashMix"):
        JobColumns([block(1), block(1)])
    with pytest.raises(JobError, match="blocks must be of JobBlock, got 5"):
        JobColumns([5])  # type: ignore[list-item]
    for order in ([0, 0], [0], [0, 2], [0.0, 1.0]):
        with pytest.raises(JobError, match="order must name each of 2 jobs once"):
            JobColumns([block(2)], order)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (block(2, "Nope"), UnknownKindError, "kind must be one of HashMix, .*, got 'Nope'"),
        (
            JobBlock("HashMix", np.full((1, 2), -1), compute_cost=1),
            JobError,
            r"kind HashMix: inputs\[0, 0\] must lie in 0 .. 2\*\*64-1, got -1",
        ),
        (
            JobBlock("HashMix", np.ones((1, 2)), compute_cost=1),
            JobError,
            "kind HashMix: inputs must have an integer dtype, got float64",
        ),
        (
            JobBlock("HashMix", np.zeros(4, np.uint64), offsets=[0, 3, 2], compute_cost=1),
            JobError,
            "kind HashMix: offsets must rise from 0 or more to at most 4",
        ),
        (
            JobBlock(
                "HashMix", np.zeros(4, np.uint64), offsets=[0, 2**63 - 1, -2, 2], compute_cost=1
            ),
            JobError,
            "offsets must rise",
        ),
        (
            JobBlock("HashMix", np.zeros(4, np.uint64), offsets=[0, 5], compute_cost=1),
            JobError,
            "offsets must rise",
        ),
        (block(2, params={"x": [1, 2]}), JobError, "kind HashMix: params must be none, got x"),
        (
            JobBlock("Pair", np.ones((2, 3)), compute_cost=1, params={"scale": [1, 1]}),
            JobError,
            "kind Pair: inputs must have 2 columns, got 3",
        ),
        (
            JobBlock("Pair", np.ones(3), offsets=[0, 2, 3], compute_cost=1),
            JobError,
            "inputs must have 2 elements a job, but job 1 has 1",
        ),
        (
            JobBlock("Pair", np.ones((2, 2)), compute_cost=1, params={"scale": [1]}),
            JobError,
            r"params\['scale'\] must have one element a job, 2, got shape \(1,\)",
        ),
    ],
)
async def test_columns_that_dont_fit_their_kernel(
    wrong: JobBlock, error: type[Exception], message: str
) -> None:
    """They are refused before any work, together with the blocks beside them."""
    async with router(pair) as r:
        with pytest.raises(error, match=message):
            await r.submit_many(JobColumns([block(3, "PrimeCount"), wrong]))
        assert r.stats().submitted == 0


async def test_the_router_must_be_open() -> None:
    """As for single jobs."""
    with pytest.raises(helixnb.RouterStateError, match="the router isn't open"):
        await Router().submit_many([])


async def test_the_callers_arrays_are_its_own_again() -> None:
    """What it writes into them afterwards changes no outcome; read-only ones do as well."""
    ids, order = np.arange(4, dtype=np.uint64), np.array([3, 1, 0, 2])
    budgets, costs = np.full(4, 60_000.0), np.full(4, 640, np.uint64)
    costs.setflags(write=False)
    columns = JobColumns([block(4, id=ids, latency_budget_ms=budgets, compute_cost=costs)], order)
    async with router(policy=Always(Strategy.BATCH)) as r:
        outcomes = await r.submit_many(columns)
        assert r.stats().batches == 1
    ids[:] = 9
    order[:] = 0
    budgets[:] = 0
    assert [each.job_id for each in outcomes] == [3, 1, 0, 2]
    assert all(each.met_budget for each in outcomes)
    copied = pickle.loads(pickle.dumps(outcomes))
    assert [each.value for each in copied] == [each.value for each in outcomes]


async def test_values_that_arent_what_was_declared_fail_their_own_rows() -> None:
    """A column has one dtype; the router goes on."""
    kernel = Kernel(
        name="Odd", solo=lambda inputs, cost, job_id: -1 if job_id == 1 else 5, returns="uint64"
    )
    for strategy in (Strategy.INLINE, Strategy.CPU_POOL):
        async with router(kernel, policy=Always(strategy)) as r:
            outcomes = await r.submit_many(JobColumns([block(3, "Odd")]))
            assert [each.value_or(None) for each in outcomes] == [5, None, 5]
            with pytest.raises(OverflowError):
                _ = outcomes[1].value
            assert r.is_open
        check_balanced(r.stats())


async def test_a_kernel_of_unknown_speed_starts_with_few_jobs() -> None:
    """Its author's guess may be wrong by far; the pieces grow with what is seen."""
    sizes: list[int] = []

    def serial(*arguments: Any) -> None:
        sizes.append(len(arguments[4]))
        arguments[-1][:] = arguments[4]

    kernel = Kernel(
        name="K",
        solo=lambda inputs, cost, job_id: job_id,
        serial=serial,
        returns="uint64",
        ns_per_work=1e-6,
    )
    async with router(kernel, policy=Always(Strategy.BATCH), cpu_parallelism=1) as r:
        outcomes = await r.submit_many(JobColumns([block(5_000, "K")]))
    assert outcomes["K"].values.tolist() == list(range(5_000))
    assert sizes[0] == 16
    assert sum(sizes) == 5_000
    assert all(after <= 4 * before for before, after in itertools.pairwise(sizes))


@pytest.mark.parametrize("batched", [False, True])
async def test_an_interrupt_stops_the_call(batched: bool) -> None:
    """Ctrl-C in a kernel that runs on the loop is no job's failure."""

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    kernel = Kernel(
        name="K", solo=interrupt, serial=interrupt if batched else None, returns="uint64"
    )
    async with router(kernel, policy=Always(Strategy.INLINE)) as r:
        with pytest.raises(KeyboardInterrupt):
            await r.submit_many(JobColumns([block(30, "K")]))
        stats = r.stats()
        assert stats.completed == 0
        assert stats.cancelled >= 29
    check_balanced(r.stats())


def test_nothing_has_no_dtype() -> None:
    """Empty lists are legal columns; masked ones never are."""
    made = JobBlock("HashMix", [], offsets=[0, 0, 0], compute_cost=[5, 6])
    assert len(made) == 2
    assert len(JobBlock("HashMix", [], offsets=[0], compute_cost=[], id=[])) == 0
    assert len(JobColumns([], [])) == 0
    masked = np.ma.MaskedArray([1, 2], [False, True])
    for fields in ({"inputs": masked}, {"compute_cost": masked}, {"latency_budget_ms": masked}):
        given: dict[str, Any] = {"inputs": [0, 0], "compute_cost": 1} | fields
        with pytest.raises(JobError, match="must not be masked"):
            JobBlock("HashMix", offsets=[0, 1, 2], **given)
    with pytest.raises(JobError, match="params must be a mapping of names to columns, got 5"):
        JobBlock("HashMix", [], offsets=[0], compute_cost=1, params=5)  # type: ignore[arg-type]


async def test_a_log_filter_that_raises_is_no_business_of_the_jobs() -> None:
    """They run as if nobody looked."""

    def refuse(record: logging.LogRecord) -> bool:
        raise ArithmeticError("filter")

    logger = logging.getLogger("helixnb.route")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addFilter(refuse)
    try:
        async with router(policy=Always(Strategy.BATCH)) as r:
            await r.submit_many(JobColumns([block(9, latency_budget_ms=9e6)]))
    finally:
        logger.removeFilter(refuse)
        logger.setLevel(level)
    assert r.stats().completed == 9
    check_balanced(r.stats())


async def test_what_a_cold_kind_took_is_no_measure_later() -> None:
    """A kernel's author may be off by any factor: that doesn't count once its time is known."""

    @helixnb.kernel(inputs="float64[1]", returns="float64", shared={"table": "float64[:]"})
    def summed(x: Any, table: Any) -> Any:
        total = x[0]
        for i in range(len(table)):
            total += table[i] * x[0]
        return total

    summed.bind(table=np.ones(20_000))  # 20 us a job, and not 1 ns
    config = RouterConfig(cpu_parallelism=2, max_loop_lag_ms=1e9)
    async with helixnb.Router(config, kernels=[summed]) as r:
        assert (await r.submit_many([summed.job([1.0])] * 50)).status.max() == 0
        jobs = [summed.job([2.0], latency_budget_ms=20_000.0)] * 500
        outcomes = await r.submit_many(jobs)  # a matter of 10 ms
    assert {each.reason for each in outcomes if each.status is not Status.COMPLETED} == set()
    assert set(outcomes["summed"].values) == {40_002.0}


async def test_long_inputs_are_joined_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few jobs may have as many numbers as many: the event loop goes on meanwhile."""
    monkeypatch.setattr(_blocks, "LARGE", 10)
    where = []
    as_columns = HASH_MIX.as_columns

    def noted(*args: Any, **fields: Any) -> Any:
        where.append(threading.get_ident())
        return as_columns(*args, **fields)

    monkeypatch.setattr(HASH_MIX, "as_columns", noted)
    async with router() as r:
        for inputs in ([1], range(100)):
            outcomes = await r.submit_many([job(i, inputs=list(inputs)) for i in range(2)])
            assert all(each.status is Status.COMPLETED for each in outcomes)
    assert where[0] == threading.get_ident() != where[1]
