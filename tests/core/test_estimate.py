"""The cost model: what it learns from made-up runs, with a clock by hand."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from helixnb import Estimate, RouterConfig
from helixnb._core import estimate as estimate_module
from helixnb._core.estimate import (
    EXPLORED,
    HOPE,
    LARGE_BATCH,
    LEAST_NS,
    NEWS,
    SETTLED,
    SKIPPED,
    STALE_NS,
    STRIDE,
    CostModel,
    Gains,
    KindModel,
    Line,
)

CONFIG = RouterConfig(cpu_parallelism=2)
SLOPE_NS = 10_000.0
MS = 1_000_000
S = 1_000_000_000


class Run(NamedTuple):
    work: float
    true_ns: float
    taken_ns: float


class Kind:
    """A kind of jobs whose work varies 50 times, with noise and outliers of ten times as long."""

    def __init__(
        self, seed: int, offset_ns: float = 0.0, sigma: float = 0.1, outliers: float = 0.0
    ) -> None:
        self._draw = random.Random(seed)
        self.offset_ns = offset_ns
        self.sigma = sigma
        self.outliers = outliers
        self.factor = 1.0

    def runs(self, count: int) -> Iterator[Run]:
        for _ in range(count):
            work = 50 ** self._draw.random()
            true_ns = self.factor * (self.offset_ns + SLOPE_NS * work)
            taken_ns = true_ns * math.exp(self._draw.gauss(0, self.sigma))
            if self._draw.random() < self.outliers:
                taken_ns *= 10
            yield Run(work, true_ns, taken_ns)

    def off(self, line: Line) -> float:
        """Return by what factor predictions are wrong, at the median of a hundred."""
        ratios = [line.predict_ns(run.work) / run.true_ns for run in self.runs(100)]
        return math.exp(statistics.median(abs(math.log(ratio)) for ratio in ratios))


class Service:
    """Runs jobs of a kind at a steady rate, and lets a model see those that it wants to."""

    def __init__(self, model: KindModel, gap_ns: int = MS) -> None:
        self.model = model
        self.gap_ns = gap_ns
        self.now_ns = 0
        self.timed = 0

    def run(self, kind: Kind, count: int) -> None:
        for run in kind.runs(count):
            self.now_ns += self.gap_ns
            if self.model.is_due():
                self.timed += 1
                self.model.learn(run.work, run.taken_ns, self.now_ns)


def new_model(config: RouterConfig = CONFIG) -> KindModel:
    return CostModel(config).of_kernel("Kind")


def taught(line: Line, runs: list[tuple[float, float]], half_life: int = 200) -> Line:
    """Return a line that has seen some runs, a millisecond apart, after those that it skips."""
    for at, (work, taken_ns) in enumerate([runs[0]] * SKIPPED + runs):
        line.learn(work, taken_ns, at * MS, half_life)
    return line


# -- Time alone -----------------------------------------------------------------------------------


@pytest.mark.parametrize("outliers", [0.0, 0.01])
@pytest.mark.parametrize("sigma", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("offset", [0, 5, 10])
def test_two_hundred_jobs_are_enough(offset: int, sigma: float, outliers: float) -> None:
    """Predictions are within 25 %, whatever part of the time depends on the work."""
    for seed in range(5):
        kind = Kind(seed, offset * SLOPE_NS, sigma, outliers)
        model = new_model()
        Service(model).run(kind, 200)
        assert kind.off(model.alone) < 1.25


@pytest.mark.parametrize("offset", [0, 5, 10])
@pytest.mark.parametrize("factor", [3.0, 1 / 3])
def test_a_change_of_cost_is_learnt_in_fewer_than_a_hundred_jobs(
    factor: float, offset: int
) -> None:
    """Predictions are within 25 % again, although most runs weren't even timed before."""
    for seed in range(5):
        kind = Kind(seed, offset * SLOPE_NS, 0.1, 0.01)
        service = Service(new_model())
        service.run(kind, 2_000)
        assert kind.off(service.model.alone) < 1.25
        kind.factor = factor
        assert kind.off(service.model.alone) > 2
        service.run(kind, 100)
        assert kind.off(service.model.alone) < 1.25


@pytest.mark.parametrize("factor", [50.0, 1 / 50])
@pytest.mark.parametrize("disturbed", [1, NEWS - 1, NEWS, 50, 1_000])
def test_one_run_after_a_pause_ends_a_disturbance(disturbed: int, factor: float) -> None:
    """A single fresh run brings predictions back, however long the disturbance was."""
    for seed in range(5):
        kind = Kind(seed)
        service = Service(new_model())
        service.run(kind, 300)
        kind.factor = factor
        service.run(kind, disturbed)
        kind.factor = 1.0
        service.now_ns += STALE_NS
        for run in kind.runs(1):
            service.model.learn(run.work, run.taken_ns, service.now_ns)
        assert kind.off(service.model.alone) < 2


def test_without_a_pause_one_run_does_not_end_it() -> None:
    """While runs come all the time, it takes several of one mind."""
    kind = Kind(0, sigma=0.0)
    line = taught(Line(), [(run.work, run.taken_ns) for run in kind.runs(50)])
    now_ns = line.seen_ns
    kind.factor = 50.0
    for count, run in enumerate(kind.runs(NEWS), 1):
        assert (kind.off(line) > 10) == (count <= NEWS)
        now_ns += STALE_NS - 1
        line.learn(run.work, run.taken_ns, now_ns, 200)
    assert kind.off(line) < 1.25


def test_news_of_both_signs_are_none() -> None:
    """Runs that are too slow and too fast by turns don't start the fit anew."""
    line = taught(Line(), [(1.0, 1e6)] * 200)
    now_ns = line.seen_ns
    for at in range(4 * NEWS):
        now_ns += MS
        line.learn(1.0, 1e6 * (30 if at % NEWS else 1 / 30), now_ns, 200)
    assert line.predict_ns(1.0) < 2e6


@pytest.mark.parametrize("outliers", [1, 3, NEWS - 3])
@pytest.mark.parametrize("factor", [10.0, 1_000.0, 0.1])
def test_a_few_outliers_hardly_move_it(outliers: int, factor: float) -> None:
    """However far out, as long as they are too few to be news."""
    for seed in range(5):
        kind = Kind(seed, 5 * SLOPE_NS)
        service = Service(new_model())
        service.run(kind, 300)
        before = [service.model.alone.predict_ns(work) for work in (1, 10, 50)]
        for run in kind.runs(outliers):
            service.now_ns += MS
            service.model.learn(run.work, factor * run.true_ns, service.now_ns)
        after = [service.model.alone.predict_ns(work) for work in (1, 10, 50)]
        assert after == pytest.approx(before, rel=0.04 * outliers)


def test_work_all_alike() -> None:
    """Where the slope can't be told from the intercept, the prediction is right all the same."""
    line = taught(Line(), [(64.0, 5_000.0)] * 100)
    assert line.predict_ns(64.0) == pytest.approx(5_000, rel=0.01)
    assert line.predict_ns(32.0) == pytest.approx(2_500, rel=0.05)  # through the origin


def test_no_work_at_all() -> None:
    """Jobs that declare none all take the same."""
    line = taught(Line(), [(0.0, 4_000.0), (0.0, 6_000.0)] * 50)
    assert line.predict_ns(0.0) == pytest.approx(5_000, rel=0.1)
    assert line.b == 0


def test_a_job_takes_something() -> None:
    """Where the clock saw nothing, the least that it can see is believed."""
    assert taught(Line(), [(1.0, 0.0)] * 20).predict_ns(1.0) == pytest.approx(LEAST_NS)


@pytest.mark.parametrize("seed", range(5))
def test_neither_part_is_ever_negative(seed: int) -> None:
    """Neither for what takes less the more it is, nor for what grows faster than a line."""
    draw = random.Random(seed)
    for power in (-1.0, 0.0, 2.0, 3.0):
        line = Line()
        for at in range(300):
            work = 50 ** draw.random()
            taken_ns = 1e6 * work**power * math.exp(draw.gauss(0, 0.3))
            line.learn(work, taken_ns, at * MS, 50)
            assert line.a_ns >= 0
            assert line.b >= 0
            assert math.isfinite(line.predict_ns(50.0))
            if line.samples > 0:
                assert line.predict_ns(1.0) > 0


@pytest.mark.parametrize("sigma", [0.1, 0.2, 0.5])
def test_the_95th_percentile(sigma: float) -> None:
    """About so many of further jobs take less than it, as long as nothing changes."""
    kind = Kind(1, 5 * SLOPE_NS, sigma)
    line = Line()
    for at, run in enumerate(kind.runs(2_000)):
        line.learn(run.work, run.taken_ns, at * MS, 200)
    below = sum(
        run.taken_ns <= line.predict_ns(run.work) * line.p95_factor for run in kind.runs(2_000)
    )
    assert 0.92 < below / 2_000 < 0.99


def test_older_runs_count_less() -> None:
    """What was seen a half-life ago weighs half: the line follows a drift that is no outlier."""
    slow, quick = Line(), Line()
    for line, half_life in ((slow, 1_000), (quick, 10)):
        taught(line, [(1.0, 1e6)] * 100, half_life)
        taught(line, [(1.0, 1.1e6)] * 20, half_life)
    assert slow.predict_ns(1.0) < 1.05e6
    assert quick.predict_ns(1.0) > 1.07e6


@pytest.mark.parametrize("sigma", [0.0, 0.1])
@pytest.mark.parametrize("offset", [0, 5, 10])
def test_two_hundred_jobs_are_enough_however_seldom_they_come(offset: int, sigma: float) -> None:
    """A kind that runs once a second is learnt as well as a busy one."""
    for seed in range(20):
        kind = Kind(seed, offset * SLOPE_NS, sigma)
        model = new_model()
        Service(model, gap_ns=S).run(kind, 200)
        assert kind.off(model.alone) < 1.25


@pytest.mark.parametrize("disturbed", [NEWS, 50, 300])
def test_a_disturbance_leaves_the_shape_of_the_line(disturbed: int) -> None:
    """One fresh run after a pause is enough where part of the time is for every job, too."""
    for seed in range(20):
        kind = Kind(seed, 10 * SLOPE_NS, 0.05)
        service = Service(new_model())
        service.run(kind, 300)
        kind.factor = 50.0
        service.run(kind, disturbed)
        kind.factor = 1.0
        service.now_ns += STALE_NS
        for run in kind.runs(1):
            service.model.learn(run.work, run.taken_ns, service.now_ns)
        assert kind.off(service.model.alone) < 2


@pytest.mark.parametrize("offset", [5, 50, 200])
def test_the_order_of_the_first_jobs_does_not_matter(offset: int) -> None:
    """Not even to what hardly depends on the work, and without any noise."""
    for seed in range(60):
        kind = Kind(seed, offset * SLOPE_NS, sigma=0.0)
        model = new_model()
        Service(model).run(kind, 200)
        assert kind.off(model.alone) < 1.25


def test_a_probe_is_timed() -> None:
    """Of a kind that was known well, of which otherwise only every eighth run is."""
    service = Service(new_model())
    service.run(Kind(0, sigma=0.01), SKIPPED + SETTLED + 2)
    assert not service.model.is_due()
    now_ns = service.now_ns + 2 * S
    assert service.model.estimate(1.0, 0.0, now_ns).probe
    service.model.note_probe(now_ns)
    assert service.model.is_due()


# -- A kind ---------------------------------------------------------------------------------------


def test_cold_until_enough_was_seen() -> None:
    """The first runs don't count; until there are enough others, the prior is what is said."""
    model = new_model()
    for at in range(SKIPPED + CONFIG.cold_samples):
        assert model.is_cold
        assert model.to_learn == 8 + SKIPPED - at
        assert model.predict_ns(1.0, 7_000.0) == 7_000
        assert model.estimate(1.0, 7_000.0, 0) == Estimate(
            samples=max(0, at - SKIPPED), run_us=7, p95_us=7, may_inline=False
        )
        model.learn(1.0, 1e9 if at < SKIPPED else 50_000.0, at * MS)
    assert not model.is_cold
    assert model.to_learn == 0
    assert model.predict_ns(1.0, 7_000.0) == pytest.approx(50_000)
    estimate = model.estimate(1.0, 7_000.0, 0)
    assert estimate.samples == 8
    assert estimate.run_us == pytest.approx(50)
    assert estimate.p95_us > 60  # little is known yet


def test_a_kind_that_is_known_is_timed_now_and_then() -> None:
    """Every eighth run once it has settled, and each one again when two in a row are off."""
    service = Service(new_model())
    kind = Kind(0, sigma=0.01)
    service.run(kind, SKIPPED + SETTLED)
    assert service.timed == SKIPPED + SETTLED
    service.run(kind, 40 * STRIDE)
    assert service.timed <= SKIPPED + SETTLED + 45
    kind.factor = 10.0
    before = service.timed
    service.run(kind, 4 * STRIDE)
    assert service.timed - before >= NEWS


def test_a_kind_that_is_seldom_timed_is_timed_always() -> None:
    """Where eight runs take long to come, none is left out."""
    service = Service(new_model(), gap_ns=STALE_NS // 4)
    service.run(Kind(0, sigma=0.01), 200)
    assert service.timed == 200


def test_nothing_runs_alone_to_be_learnt_from_unless_that_is_wanted() -> None:
    """For a policy that never asks what is known."""
    assert CostModel(CONFIG, learns=False).of_kernel("Kind").to_learn == 0


def test_a_cold_kind_that_was_refused_has_probes() -> None:
    """One until a run has shown how long it takes, then as many at once as it needs."""
    model = new_model()
    assert model.probes(0) == 0
    model.note_refusal()
    assert model.probes(0) == 1
    states: list[bool | None] = [True, None]
    model.note_lesson(0, lambda: states[0])
    model.note_lesson(0, lambda: states[1])
    assert model.probes(0) == 0
    states[0] = False  # it has ended, however
    assert model.probes(0) == 1
    states[1] = True
    assert model.probes(0) == 0
    assert model.probes(S + 1) == 1  # it takes too long to wait for
    model.learn(1.0, 1_000.0, 0)
    assert model.probes(S + 1) == model.to_learn == 9
    model.learn(1.0, 1e9, 0)
    model.note_probe(S)
    assert model.probes(2 * S) == 0  # they are long, so one an interval
    assert model.probes(2 * S + 1) == 1


def test_nothing_is_probed_unless_it_is_learnt_from() -> None:
    model = CostModel(CONFIG, learns=False).of_kernel("Kind")
    model.note_refusal()
    assert model.probes(0) == 0


@pytest.mark.parametrize("declares_time", [False, True])
def test_may_run_on_the_loop_once_it_is_known(declares_time: bool) -> None:
    """By its author's word, or when enough was timed; and not while it is barred."""
    model = CostModel(CONFIG).of_kernel("Kind", declares_time=declares_time)
    for _ in range(SKIPPED + CONFIG.cold_samples):
        assert model.may_inline(0) is declares_time
        assert model.estimate(1.0, 1.0, 0).may_inline is declares_time
        model.learn(1.0, 1_000.0, 0)
    assert model.estimate(1.0, 1.0, 0).may_inline
    model.watch(1.0, 1_000.0, 1e9, 1e9, 0)
    assert not model.estimate(1.0, 1.0, 0).may_inline


def test_a_run_elsewhere_is_measured_by_the_better_prediction() -> None:
    """A job that was decided by a wrong declaration isn't news to a kind that is known since."""
    model = known_model()
    model.watch(1.0, 1.0, 4e6, 4e6, 0)
    assert model.may_inline(0)
    cold = new_model()
    cold.watch(1.0, 1.0, 4e6, 4e6, 0)  # nobody said that it is short
    assert not cold.guard.is_barred
    declared = CostModel(CONFIG).of_kernel("Kind", declares_time=True)
    declared.watch(1.0, 1.0, 4e6, 4e6, 0)
    assert declared.guard.is_barred


def known_model() -> KindModel:
    """Return a model of a kind whose jobs take a millisecond, seen last at 0."""
    model = new_model()
    for _ in range(40):
        model.learn(1.0, 1e6, 0)
    return model


def test_a_probe_is_due_once_an_interval_without_a_run() -> None:
    """A run of any kind, or a probe that was sent, puts the next one off."""
    model = known_model()

    def due(now_ns: int) -> bool:
        return model.estimate(1.0, 0.0, now_ns).probe

    assert not due(S)
    assert due(S + 1)
    assert due(S + 1)  # to ask changes nothing
    model.note_probe(S + 1)
    assert not due(S + 2)
    assert not due(2 * S + 1)
    assert due(2 * S + 2)
    model.learn_batch(4, 4.0, 2e6, 2 * S + 2)
    assert not due(3 * S)
    model.learn(1.0, 1e6, 4 * S)
    assert not due(5 * S)
    assert due(5 * S + 1)


def test_batch_probes_come_in_bursts() -> None:
    """A few jobs are batched to see whether that pays, and again after a while, unless it does."""
    model = known_model()

    def due(now_ns: int) -> bool:
        return model.estimate(1.0, 0.0, now_ns).batch_probe

    def explore(now_ns: int) -> None:
        for _ in range(EXPLORED):
            assert due(now_ns)
            model.note_batch_probe(now_ns)
        assert not due(now_ns)

    explore(0)
    model.learn_batch(LARGE_BATCH - 1, 7.0, 1e6, 0)  # too few to tell
    assert not due(S)
    explore(S + 1)
    model.learn_batch(LARGE_BATCH, 8.0, 8e6, S + 1)  # that didn't pay
    assert not due(11 * S)
    explore(11 * S + 2)
    model.learn_batch(LARGE_BATCH, 8.0, 1e6, 11 * S + 2)
    assert not due(10**15)


def test_a_kernel_without_a_form_for_batches_is_never_tried_with_them() -> None:
    """It is known beforehand that they gain it nothing."""
    model = CostModel(CONFIG).of_kernel("Kind", batches=False)
    for _ in range(40):
        model.learn(1.0, 1e6, 0)
    estimate = model.estimate(1.0, 0.0, 0)
    assert (estimate.batch_gain, estimate.batch_probe) == (1, False)


def test_what_a_batch_would_take() -> None:
    """All that wait and the job, and those that will come if batches have been larger."""
    model = known_model()
    # Nothing is known of batches but hope.
    alone = model.estimate(1.0, 0.0, 0, 0, 0.0)
    assert alone.batch_us == pytest.approx(1_000, rel=0.01)
    three = model.estimate(1.0, 0.0, 0, 2, 5e6)
    assert three.batch_us == pytest.approx(6_000 * HOPE, rel=0.01)
    for _ in range(50):
        model.learn_batch(10, 10.0, 2e6, 0)
    assert model.batch_jobs == pytest.approx(10, rel=0.01)
    model.batch_jobs = 10.0
    assert model.estimate(1.0, 0.0, 0, 0, 0.0).batch_us == pytest.approx(2_000, rel=0.05)
    assert model.estimate(1.0, 0.0, 0, 9, 19e6).batch_us == pytest.approx(4_000, rel=0.05)


def test_batches_of_a_cold_kind_teach_nothing() -> None:
    """A share of nobody knows what is no gain."""
    model = new_model()
    model.learn_batch(16, 16.0, 1e6, 0)
    assert model.gains.best == 0


# -- Gains ----------------------------------------------------------------------------------------


def test_hope_before_anything_is_known() -> None:
    """Two and more jobs are believed to take less; one takes what it takes."""
    gains = Gains()
    assert (gains.best, gains.scale(1), gains.scale(2), gains.scale(100)) == (0, 1, HOPE, HOPE)
    assert gains.largest == 2 * LARGE_BATCH - 1
    assert gains.enough > 10**9


def test_small_batches_tell_their_own_size_only() -> None:
    """They don't say what the kind gains in large ones."""
    gains = Gains()
    gains.learn(4, 4e6, 2e6)
    assert (gains.best, gains.scale(4), gains.scale(7)) == (0, 0.5, 0.5)
    assert (gains.scale(2), gains.scale(8)) == (1, 0.5 * HOPE)


def test_the_gain_is_that_of_the_best_large_batch() -> None:
    """And batches grow step by step, to twice what is known."""
    gains = Gains()
    gains.learn(8, 8e6, 7.6e6)  # 0.95: nothing promises more
    assert gains.best == pytest.approx(1 / 0.95)
    assert gains.largest == 31
    gains.learn(16, 16e6, 4e6)
    assert gains.best == pytest.approx(4 / HOPE)  # 32 are hoped to gain more
    assert gains.largest == 63
    gains.learn(32, 32e6, 31e6)
    assert gains.best == pytest.approx(4)
    assert (gains.scale(16), gains.scale(31)) == (0.25, 0.25)
    assert gains.scale(64) == pytest.approx(31 / 32)


def test_how_many_are_enough() -> None:
    """The smallest batch that gains two thirds of the best."""
    gains = Gains()
    for jobs, share in ((2, 0.9), (4, 0.4), (8, 0.29), (16, 0.2), (32, 0.95)):
        gains.learn(jobs, jobs * 1e6, jobs * share * 1e6)
    assert gains.best == pytest.approx(5)
    assert gains.enough == 8


def test_the_newest_batch_counts_a_quarter() -> None:
    """So that one that was disturbed doesn't end all batches, and a few that lose do."""
    gains = Gains()
    for jobs in (8, 16):  # the larger one gains nothing, so that nothing is hoped for
        gains.learn(jobs, jobs * 1e6, jobs * 1e6 if jobs == 16 else jobs * 5e5)
    assert gains.best == pytest.approx(2)
    gains.learn(8, 8e6, 8e6)
    assert gains.scale(8) == pytest.approx(0.625)
    for _ in range(30):
        gains.learn(8, 8e6, 8e6)
    assert gains.best == pytest.approx(1, rel=0.01)


# -- All kinds ------------------------------------------------------------------------------------


def test_kernels_are_remembered_for_good_and_callables_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of callables, the ones that were used last; a kernel of the same name is another kind."""
    monkeypatch.setattr(estimate_module, "MOST_KINDS", 3)
    costs = CostModel(CONFIG)
    kernel = costs.of_kernel("a")
    a, b, _ = (costs.of_callable(key) for key in "abc")
    assert a is not kernel
    assert costs.of_callable("a") is a
    costs.of_callable("d")  # b is the one that wasn't used for the longest time
    assert costs.of_callable("a") is a
    assert costs.of_callable("b") is not b
    assert costs.of_kernel("a") is kernel


def test_a_changed_configuration_counts_at_once() -> None:
    """Models read it when they are asked."""
    costs = CostModel(CONFIG)
    model = costs.of_kernel("Kind")
    for _ in range(12):
        model.learn(1.0, 1e6, 0)
    assert not model.is_cold
    costs.config = CONFIG.replace(cold_samples=100)
    assert model.is_cold
    costs.config = CONFIG.replace(sample_half_life=1)
    for _ in range(20):
        model.learn(1.0, 1.1e6, 0)
    assert model.predict_ns(1.0, 0.0) == pytest.approx(1.1e6, rel=0.005)
    costs.config = CONFIG.replace(probe_interval_s=0.01)
    assert model.estimate(1.0, 0.0, 20 * MS).probe
