"""A job is answered by the kernel that it was made by, or not at all."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import anyio
import numpy as np
import pytest
from support import Always, Gate, check_balanced, python

import helixnb
import helixnb_kernels
from helixnb import (
    BlockingRouter,
    Job,
    JobBlock,
    JobColumns,
    JobError,
    KernelError,
    Router,
    RouterConfig,
    Status,
    Strategy,
)
from helixnb.testing import ScriptedRouter

CONFIG = RouterConfig(cpu_parallelism=2, parallel_kernels="never")
SOURCE = """
import helixnb
FACTOR = {factor}
{before}
@helixnb.kernel(inputs="float64[:]", returns="float64"{declared})
def scale(x):
    return x[0] * FACTOR
"""


def made(factor: float = 2.0, before: str = "", declared: str = "") -> Any:
    """Return a kernel as a notebook's cell makes it, with the namespace that its code reads."""
    space: dict[str, Any] = {"__name__": "cell"}
    exec(SOURCE.format(factor=factor, before=before, declared=declared), space)
    space["scale"].space = space
    return space["scale"]


OLD, NEW = made(2.0), made(3.0)
"""Compiled by the first test that needs them."""

ANOTHER = "made by another kernel of that name.*await router.replace_kernel"


@pytest.mark.anyio
async def test_another_kernel_of_that_name_does_not_answer() -> None:
    """Whichever way its jobs come, until it is told to."""
    rows = np.ones((3, 1))
    async with Router(CONFIG, kernels=[OLD]) as router:
        assert (await router.submit(OLD.job([1.0]))).value == 2.0
        job = NEW.job([1.0])
        columns = JobColumns([JobBlock(NEW, rows, compute_cost=1)])
        for call in (router.submit_soon, router.explain):
            with pytest.raises(JobError, match=ANOTHER):
                call(job)
        for jobs in ([OLD.job([1.0]), job], columns):
            with pytest.raises(JobError, match=ANOTHER):
                await router.submit_many(jobs)
        with pytest.raises(JobError, match=ANOTHER) as caught:
            await router.submit(job)
        assert len(str(caught.value)) <= 200
        assert (await router.submit(Job(id=0, kind="scale", inputs=[1.0], compute_cost=1))).value
        await router.replace_kernel(NEW)
        assert (await router.submit(job)).value == 3.0
        assert [each.value for each in await router.submit_many(columns)] == [3.0] * 3
        named = JobColumns([JobBlock("scale", rows, compute_cost=1)])
        assert [each.value for each in await router.submit_many(named)] == [3.0] * 3
        with pytest.raises(JobError, match=ANOTHER):
            await router.submit(OLD.job([1.0]))
    check_balanced(router.stats())


@pytest.mark.anyio
@pytest.mark.parametrize("strategy", [Strategy.CPU_POOL, Strategy.BATCH])
async def test_a_kernel_is_replaced_under_traffic(strategy: Strategy) -> None:
    """Jobs under way end on the old one, later ones run on the new one, which is cold."""
    gate = Gate()
    policy = Always(Strategy.SPAWN)
    config = CONFIG.replace(cpu_parallelism=1, batch_max_jobs=64)
    async with Router(config, kernels=[OLD, gate.kernel], policy=policy) as router:
        blocker = router.submit_soon(Job(id=0, kind="Gate", compute_cost=1))
        await gate.begun()
        policy.strategy = strategy
        before = [router.submit_soon(OLD.job([float(i)])) for i in range(12)]
        many: list[Any] = []

        async def submit_many() -> None:
            many.extend(await router.submit_many([OLD.job([float(i)]) for i in range(50)]))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(submit_many)
            await anyio.wait_all_tasks_blocked()
            await router.replace_kernel(NEW)
            assert router.explain(NEW.job([1.0])).estimate.samples == 0
            after = [router.submit_soon(NEW.job([float(i)])) for i in range(12)]
            gate.open()
        assert [(await each.wait()).value for each in before] == [2.0 * i for i in range(12)]
        assert [(await each.wait()).value for each in after] == [3.0 * i for i in range(12)]
        assert [each.value for each in many] == [2.0 * i for i in range(50)]
        assert (await blocker.wait()).status is Status.COMPLETED
        for kernel in (OLD, NEW, OLD):  # no lane is left of those before
            await router.replace_kernel(kernel)
            assert (await router.submit(kernel.job([1.0]))).value == kernel([1.0])
        assert not router._intake._replaced
    check_balanced(router.stats())


@pytest.mark.anyio
async def test_a_job_in_the_middle_of_a_call_keeps_to_its_kernel() -> None:
    """However late in a long call another one takes its place."""
    async with Router(CONFIG, kernels=[OLD]) as router:

        async def replaced() -> None:
            for kernel in (NEW, OLD, NEW):
                await router.replace_kernel(kernel)

        outcomes: Any = None
        async with anyio.create_task_group() as tasks:
            jobs = [OLD.job([float(i)]) for i in range(5_000)]
            tasks.start_soon(replaced)
            outcomes = await router.submit_many(jobs)
        assert [each.value for each in outcomes] == [2.0 * i for i in range(5_000)]
    check_balanced(router.stats())


@pytest.mark.anyio
async def test_what_can_not_be_replaced() -> None:
    router = Router(CONFIG, kernels=[])
    with pytest.raises(helixnb.RouterStateError, match="isn't open"):
        await router.replace_kernel(OLD)
    async with router:
        with pytest.raises(KernelError, match=r"must be one of none, got 'scale'.*add_kernel"):
            await router.replace_kernel(OLD)
        with pytest.raises(TypeError, match=r"must be a helixnb_kernels.Kernel, got 3"):
            await router.replace_kernel(3)  # type: ignore[arg-type]
        await router.add_kernel(OLD)
        with pytest.raises(KernelError, match=r"unique in a router.*replace_kernel"):
            await router.add_kernel(NEW)


def test_other_routers_replace_kernels_too() -> None:
    with BlockingRouter(CONFIG, kernels=[OLD]) as router:
        router.replace_kernel(NEW)
        assert router.submit(NEW.job([1.0])).value == 3.0

    async def scripted() -> None:
        async with ScriptedRouter(kernels=[OLD]) as router:
            with pytest.raises(JobError, match=ANOTHER):
                await router.submit(NEW.job([1.0]))
            await router.replace_kernel(NEW)
            router.script.drop(reason="queue_full")
            assert (await router.submit(NEW.job([1.0]))).reason == "queue_full"
            assert (await router.submit(NEW.job([1.0]))).value == 3.0

    anyio.run(scripted)


@pytest.mark.anyio
async def test_a_global_that_changes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each job, until it is as it was or another kernel answers."""
    said = "global 'FACTOR' was 2.0 and is 5.0.*shared=.*replace_kernel"
    async with Router(CONFIG, kernels=[OLD]) as router:
        with monkeypatch.context() as changed:
            changed.setitem(OLD.space, "FACTOR", 5.0)
            for call in (router.submit_soon, router.explain):
                with pytest.raises(JobError, match=said):
                    call(OLD.job([1.0]))
            for jobs in (
                [OLD.job([1.0])],
                JobColumns([JobBlock("scale", np.ones((3, 1)), compute_cost=1)]),
            ):
                with pytest.raises(JobError, match=said):
                    await router.submit_many(jobs)
            with pytest.raises(JobError, match=said):
                await router.submit(Job(id=0, kind="scale", inputs=[1.0], compute_cost=1))
            with pytest.raises(KernelError, match=r"was 2.0 and is 5.0"):
                OLD([1.0])
            with pytest.raises(KernelError, match=r"was 2.0 and is 5.0"):
                async with Router(CONFIG, kernels=[OLD]):
                    pass
        assert (await router.submit(OLD.job([1.0]))).value == 2.0
    check_balanced(router.stats())


LONGER = """
import helixnb
import numba
import numpy as np

TABLE = np.arange(3.0)
LIMIT = 4

@numba.njit
def helped(x):
    return x + LIMIT

@helixnb.kernel(
    inputs="float64[:]", returns="float64", params={"p": "float64"}, name="long",
    work=lambda cost, n: 2.0 * n, ns_per_work=3.0,
)
def long(x, p):
    for i in range(10):
        p += helped(x[0]) * TABLE[1]
    return p

@long.batch(parallel=False)
def batch(inputs, offsets, parts, p, failed, out):
    for i in range(len(out)):
        out[i] = p[i] + 1.0
"""
EDITS = [
    ("range(10)", "range(11)"),
    ("* TABLE", "/ TABLE"),
    ("LIMIT = 4", "LIMIT = 5"),
    ("LIMIT = 4", "LIMIT = 4.0"),
    ("arange(3.0)", "arange(1.0, 4.0)"),
    ("return x + LIMIT", "return x - LIMIT"),
    ('inputs="float64[:]"', 'inputs="float64[4]"'),
    ('"p": "float64"', '"p": "int64"'),
    ('name="long"', 'name="longer"'),
    ("2.0 * n", "3.0 * n"),
    ("ns_per_work=3.0", "ns_per_work=4.0"),
    ("p[i] + 1.0", "p[i] + 2.0"),
    ('name="long"', 'name="long", boundscheck=True'),
]


def digest_of(source: str) -> str:
    space: dict[str, Any] = {"__name__": "cell"}
    exec(source, space)
    digest: str = space["long"].digest
    return digest


def test_the_digest_tells_kernels_apart() -> None:
    """The same code, loaded again or moved by some lines, is the same kernel."""
    digest = digest_of(LONGER)
    assert digest_of(LONGER) == digest
    assert (
        digest_of("# moved\n\n" + LONGER.replace("import numba", "import numba  # why")) == digest
    )
    edited = [digest_of(LONGER.replace(before, after)) for before, after in EDITS]
    assert len({digest, *edited}) == 1 + len(EDITS)


def test_a_kernel_that_reads_what_nobody_can_digest_is_its_own() -> None:
    """No other one answers its jobs, and it goes on answering those made before it was compiled."""

    def new() -> Any:
        thing = object()

        @helixnb.kernel(inputs="float64[:]", returns="float64")
        def opaque(x: Any) -> Any:
            return x[0] + 1.0 if thing is thing else 0.0  # noqa: PLR0124

        return opaque

    one, other = new(), new()
    job = one.job([1.0])
    assert job.kernel_digest == one.digest != other.digest
    with one.compiling():
        assert job.kernel_digest == one.digest


@pytest.mark.anyio
async def test_jobs_made_before_it_was_compiled_are_its_own() -> None:
    """Though a global was bound meanwhile."""
    late = made(2.0)
    job = late.job([1.0])
    late.space["FACTOR"] = 4.0
    async with Router(CONFIG, kernels=[late]) as router:
        assert late.digest != job.kernel_digest
        assert (await router.submit(job)).value == 4.0
        with pytest.raises(JobError, match=ANOTHER):
            await router.submit(NEW.job([1.0]))


def test_jobs_travel() -> None:
    """Small, and with what they know of their kernel."""
    job = OLD.job([1.0, 2.0], id=3)
    for again in (pickle.loads(pickle.dumps(job)), copy.deepcopy(job), copy.copy(job)):
        assert (again.kernel_digest, again.id) == (OLD.digest, 3)
        assert np.array_equal(again.inputs, job.inputs)
    columns = JobBlock(OLD, np.ones((2, 1)), compute_cost=1)
    assert pickle.loads(pickle.dumps(columns)).kernel_digest == OLD.digest
    named = dataclasses.replace(job, kernel_digest=None)
    assert len(pickle.dumps(job)) < len(pickle.dumps(named)) + 40


MODULE = """
import pickle, sys
import helixnb
from helixnb_kernels import HASH_MIX

@helixnb.kernel(inputs="float64[:]", returns="float64")
def scale(x):
    return x[0] * 2.0

class Models:
    @helixnb.kernel(inputs="float64[:]", returns="float64")
    def inner(x):
        return x[0] * 3.0

from formulas import first
other = helixnb.kernel(inputs="float64[:]", returns="float64", name="other")(first)
"""


def test_kernels_travel_by_their_names(tmp_path: Any) -> None:
    """As functions do; what has no name in a module says so."""
    (tmp_path / "models.py").write_text(MODULE)
    (tmp_path / "formulas.py").write_text("first = lambda x: x[0]")
    send = (
        "import models, pickle; from pathlib import Path\n"
        "kernels = models.scale, models.Models.inner, models.other, models.HASH_MIX\n"
        "Path('sent').write_bytes(pickle.dumps((*kernels, models.scale.job([1.0]))))"
    )
    sent = python("-c", send, cwd=tmp_path)
    assert sent.returncode == 0, sent.stderr
    receive = (
        "import pickle; from pathlib import Path\n"
        "scale, inner, other, mix, job = pickle.loads(Path('sent').read_bytes())\n"
        "import models\n"
        "assert scale is models.scale and inner is models.Models.inner and other is models.other\n"
        "assert mix is models.HASH_MIX and job.kernel_digest == scale.digest"
    )
    received = python("-c", receive, cwd=tmp_path)
    assert received.returncode == 0, received.stderr
    assert copy.deepcopy(OLD) is OLD
    assert copy.copy(OLD) is OLD
    assert pickle.loads(pickle.dumps(helixnb_kernels.PRIME_COUNT)) is helixnb_kernels.PRIME_COUNT
    with pytest.raises(pickle.PicklingError, match=r"kernel scale can't be pickled: .* cell has"):
        pickle.dumps(made(9.0))
