"""Runs of `learning.py` about times: what a router predicts, and how it follows what changes.

Each opens a router of its own, gives it seeded jobs, and returns plain records.
"""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, takewhile
from statistics import fmean, median

import anyio
import numpy as np

from helixnb import (
    AdaptivePolicy,
    Decision,
    Estimate,
    Job,
    Load,
    Outcome,
    Router,
    RouterConfig,
    Status,
    Strategy,
    kernel,
)
from helixnb._core.estimate import KindModel
from helixnb._core.policy import COLD
from helixnb.workload import asian_call, closed_loop, open_loop, poisson
from helixnb_kernels import BUILT_IN, Kernel, warm_up

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31 = np.uint64(27), np.uint64(30), np.uint64(31)


@kernel(
    name="Chain",
    inputs="uint64[1]",
    returns="uint64",
    shared={"factor": "uint64[1]"},
    ns_per_work=5.0,
)
def chain(seed, compute_cost, factor):  # type: ignore[no-untyped-def]
    """Take ``factor * compute_cost`` steps of SplitMix64's finaliser, each from the one before.

    `factor` changes the true cost under traffic, without a word to the router.
    """
    x = seed[0]
    for _ in range(compute_cost * factor[0]):
        x += _GOLDEN
        x = (x ^ (x >> _S30)) * _MIX_1
        x = (x ^ (x >> _S27)) * _MIX_2
        x ^= x >> _S31
    return x


CHAIN: Kernel = chain
KERNELS: tuple[Kernel, ...] = (*BUILT_IN, asian_call, CHAIN)
COSTS = {
    "HashMix": (640_000, 32_000_000),
    "PrimeCount": (10_000, 250_000),
    "MonteCarlo": (1_000_000, 10_000_000),
    "AsianCall": (1_000, 50_000),
    "Chain": (5_000, 250_000),
}
"""Least and largest cost by kind: 50 times, about 20 us to 1 ms. PrimeCount and MonteCarlo clamp
their work, which can't vary more than 25 and 10 times: 2 to 40 us, and 6 to 60."""

LEARNT_FROM, COMPARED, LEARNING_CLIENTS = 200, 100, 8
LATEST = 25
"""Jobs that a median of the latest is over."""


def set_factor(factor: int) -> None:
    """Set the true cost of Chain's jobs, as a multiple."""
    CHAIN.bind(factor=np.array([factor], np.uint64))


def draw_job(draw: random.Random, kind: str, job_id: int, least: int, most: int) -> Job:
    """Make a job whose cost is spread evenly over its logarithm."""
    params = {}
    inputs: list[float] = [draw.randint(0, 200_000) for _ in range(draw.randint(2, 6))]
    if kind == asian_call.name:
        inputs = [draw.uniform(80.0, 120.0), draw.uniform(0.0, 0.05), draw.uniform(0.25, 2.0)]
        params = {"strike": draw.uniform(80.0, 120.0), "volatility": draw.uniform(0.1, 0.4)}
    elif kind == CHAIN.name:
        inputs = inputs[:1]
    cost = round(math.exp(draw.uniform(math.log(least), math.log(most))))
    return Job(id=job_id, kind=kind, inputs=inputs, compute_cost=cost, params=params)


def solo_us(job: Job, kernels: dict[str, Kernel]) -> float:
    """Measure the CPU time of a job by itself on this thread, the median of three."""
    each = kernels[job.kind]
    inputs, params = each.as_inputs(job.inputs), each.as_params(job.params)
    run = each.solo_call(inputs, job.compute_cost, job.id, params)
    taken_ns = []
    for _ in range(3):
        began_ns = time.thread_time_ns()
        run()
        taken_ns.append(time.thread_time_ns() - began_ns)
    return median(taken_ns) / 1e3


# -- Predictions ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Prediction:
    """What was predicted for the jobs of a kind.

    Attributes
    ----------
    routed
        By strategy, how many of the jobs that were learnt from ran so.
    ratios
        Predicted over measured CPU time, of the jobs after those.
    works
        Their work.
    """

    routed: Counter[str] = field(default_factory=Counter)
    ratios: list[float] = field(default_factory=list)
    works: list[float] = field(default_factory=list)


async def predictions(seed: int) -> dict[str, Prediction]:
    """Let a router learn all kinds at once, then compare what it predicts with what jobs take."""
    set_factor(1)
    draw = random.Random(seed)
    kernels = {each.name: each for each in KERNELS}
    ids = count()
    found = {kind: Prediction() for kind in COSTS}

    def jobs(of_each: int) -> list[Job]:
        kinds = [kind for kind in COSTS for _ in range(of_each)]
        draw.shuffle(kinds)
        return [draw_job(draw, kind, next(ids), *COSTS[kind]) for kind in kinds]

    def note(outcome: Outcome) -> None:
        found[outcome.kind].routed[outcome.strategy] += 1

    policy = Noting()
    async with Router(kernels=KERNELS, policy=policy) as router:
        await closed_loop(router, jobs(LEARNT_FROM), clients=LEARNING_CLIENTS, on_outcome=note)
        compared = jobs(COMPARED)
        policy.predicted_us.clear()
        with timed_runs() as taken_us:
            await closed_loop(router, compared, clients=LEARNING_CLIENTS)
    for job in compared:
        prior_ns = kernels[job.kind].predict_ns(job.compute_cost, len(job.inputs))
        if prior_ns in taken_us:  # not what ran in a batch
            kind = found[job.kind]
            kind.ratios.append(policy.predicted_us[job.id] / taken_us[prior_ns])
            kind.works.append(kernels[job.kind].work(job.compute_cost, len(job.inputs)))
    return found


class Noting(AdaptivePolicy):
    """Keeps what was predicted for each job when it was decided."""

    def __init__(self) -> None:
        self.predicted_us: dict[int, float] = {}

    def decide(
        self, job: Job, load: Load, config: RouterConfig, estimate: Estimate = COLD
    ) -> Decision:
        """Note the prediction, and decide."""
        self.predicted_us[job.id] = estimate.run_us
        return super().decide(job, load, config, estimate)


@contextmanager
def timed_runs() -> Iterator[dict[float, float]]:
    """Let every run alone be timed, and give what each took by its work, in microseconds.

    So predictions are compared with what the router's own runs take, where they run.
    """
    taken_us: dict[float, float] = {}
    learn, is_due = KindModel.learn, KindModel.is_due

    def noting(model: KindModel, work: float, taken_ns: float, now_ns: int) -> None:
        taken_us[work] = taken_ns / 1e3
        learn(model, work, taken_ns, now_ns)

    def always(_model: KindModel) -> bool:
        return True

    KindModel.learn = noting  # type: ignore[assignment, method-assign]
    KindModel.is_due = always  # type: ignore[assignment, method-assign]
    try:
        yield taken_us
    finally:
        KindModel.learn, KindModel.is_due = learn, is_due  # type: ignore[method-assign]


# -- A cost that changes --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How predictions follow a cost that triples.

    Attributes
    ----------
    routed
        By strategy, how many jobs after the change ran so.
    before
        The median of predicted over actual of the latest jobs, before the change.
    medians
        The same after each job from it on.
    settled
        After how many jobs it is within 25 % for good; None for never.
    """

    routed: Counter[str]
    before: float
    medians: list[float]
    settled: int | None


async def tripled(clients: int, jobs: int, seed: int) -> Change:
    """Triple the true cost of a kind after some jobs, and follow the predictions."""
    set_factor(1)
    draw = random.Random(seed)
    made = [draw_job(draw, CHAIN.name, i, *COSTS[CHAIN.name]) for i in range(2 * jobs)]
    queue = iter(made)
    predicted_us: list[tuple[Job, float]] = []
    routed: Counter[str] = Counter()

    async def client(router: Router) -> None:
        for job in queue:
            if job.id == jobs:
                set_factor(3)
            predicted_us.append((job, router.explain(job).estimate.run_us))
            outcome = await router.submit(job)
            if job.id >= jobs:
                routed[outcome.strategy] += 1

    async with Router(kernels=(CHAIN,)) as router, anyio.create_task_group() as tasks:
        for _ in range(clients):
            tasks.start_soon(client, router)
    # Afterwards, so that to measure them doesn't hold up the event loop.
    kernels = {CHAIN.name: CHAIN}
    ratios = []
    for job, us in predicted_us:
        set_factor(3 if job.id >= jobs else 1)
        ratios.append(us / solo_us(job, kernels))
    medians = [median(ratios[max(0, i + 1 - LATEST) : i + 1]) for i in range(len(ratios))]
    after = medians[jobs:]
    off = [i for i, each in enumerate(after) if abs(each - 1) > 0.25]
    settled = off[-1] + 2 if off else 1
    return Change(
        routed=routed,
        before=medians[jobs - 1],
        medians=after,
        settled=settled if settled <= jobs else None,
    )


# -- A disturbance --------------------------------------------------------------------------------

RATE, BUDGET_MS, SOLO_MS = 100.0, 50.0, (1.0, 4.0)
BEFORE_S, DISTURBED_S, AFTER_S, BUCKET_S = 1.5, 1.0, 5.0, 0.25
DISTURBANCE = 50


@dataclass(slots=True)
class Bucket:
    """What became of the jobs that were due in a quarter of a second."""

    offered: int = 0
    admitted: int = 0
    in_budget: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome, latency_s: float) -> None:
        """Count one job."""
        self.offered += 1
        self.admitted += outcome.decided is not Strategy.DROP
        self.in_budget += outcome.status is Status.COMPLETED and latency_s * 1e3 <= BUDGET_MS
        if outcome.status is Status.DROPPED:
            self.dropped[outcome.reason] += 1

    def merge(self, other: Bucket) -> None:
        """Count the jobs of another one too."""
        self.offered += other.offered
        self.admitted += other.admitted
        self.in_budget += other.in_budget
        self.dropped += other.dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbance:
    """How a router gets over a disturbance.

    Attributes
    ----------
    buckets
        By quarters of a second from its beginning.
    admitted_before
        Share of the jobs before it that were admitted.
    back_s
        Seconds after its end from which on every quarter of a second has at least 90 % of that
        share; None if none has.
    answers_back_s
        The same of answers within budget.
    """

    buckets: dict[int, Bucket]
    admitted_before: float
    back_s: float | None
    answers_back_s: float | None


def chain_ns() -> float:
    """Measure what a step of Chain takes, in nanoseconds."""
    set_factor(1)
    warm_up([CHAIN], parallel=False)
    job = Job(id=0, kind=CHAIN.name, inputs=[1], compute_cost=1_000_000)
    return solo_us(job, {CHAIN.name: CHAIN}) * 1e3 / job.compute_cost


async def disturbed(step_ns: float, seed: int) -> Disturbance:
    """Let all jobs take 50 times as long for a second."""
    set_factor(1)
    draw = random.Random(seed)
    whole_s = BEFORE_S + DISTURBED_S + AFTER_S
    due_s = list(takewhile(lambda due: due < whole_s, poisson(RATE, seed)))
    least, most = (round(ms * 1e6 / step_ns) for ms in SOLO_MS)
    made = [draw_job(draw, CHAIN.name, i, least, most) for i in range(LEARNT_FROM + len(due_s))]
    jobs = [
        dataclasses.replace(job, id=i, latency_budget_ms=BUDGET_MS)
        for i, job in enumerate(made[LEARNT_FROM:])
    ]
    outcomes: dict[int, Outcome] = {}

    async def disturb() -> None:
        await anyio.sleep(BEFORE_S)
        set_factor(DISTURBANCE)
        await anyio.sleep(DISTURBED_S)
        set_factor(1)

    def note(outcome: Outcome) -> None:
        outcomes[outcome.job_id] = outcome

    async with Router(kernels=(CHAIN,)) as router:
        await closed_loop(router, made[:LEARNT_FROM], clients=LEARNING_CLIENTS)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(disturb)
            latencies_s = await open_loop(router, jobs, arrivals=due_s, on_outcome=note)
    buckets: dict[int, Bucket] = {}
    admitted, answered = [], []
    for job, due, latency_s in zip(jobs, due_s, latencies_s, strict=True):
        since_s = due - BEFORE_S
        one = Bucket()
        one.add(outcomes[job.id], latency_s)
        buckets.setdefault(math.floor(since_s / BUCKET_S), Bucket()).merge(one)
        admitted.append((since_s, one.admitted))
        answered.append((since_s, one.in_budget))
    return Disturbance(
        buckets=buckets,
        admitted_before=fmean(good for since_s, good in admitted if since_s < 0),
        back_s=back_after(admitted),
        answers_back_s=back_after(answered),
    )


def back_after(seen: Sequence[tuple[float, int]]) -> float | None:
    """Return how long after the end of a disturbance jobs fare as before it, for good.

    `seen` has when each was due after its beginning, and whether it fared well.
    """
    least = 0.9 * fmean(good for since_s, good in seen if since_s < 0)
    after = [(since_s - DISTURBED_S, good) for since_s, good in seen if since_s >= DISTURBED_S]
    last_s = after[-1][0] - BUCKET_S
    back_s: float | None = 0.0
    for begin_s, _ in after:
        window = [good for at_s, good in after if begin_s <= at_s < begin_s + BUCKET_S]
        if begin_s <= last_s and fmean(window) < least:
            later = [at_s for at_s, _ in after if begin_s < at_s <= last_s]
            back_s = later[0] if later else None
    return back_s
