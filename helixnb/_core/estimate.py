"""The online cost model: what jobs of a kind take, learnt from what they took.

A kind's time alone is a line over its work, fitted by least squares of the relative error with
exponentially fading weights (Ljung and Soederstroem, Theory and Practice of Recursive
Identification, section 2.6). Its time in a batch is a share of that, by the size of the batch.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

from helixnb._config import RouterConfig
from helixnb._core.guard import Guard
from helixnb._records import Array, Estimate, make_estimate

SKIPPED = 2
"""First runs of a kind that aren't learnt from: caches are cold, and something may compile."""

NEWS = 8
"""Runs that are too slow by half of what makes an outlier, with none too fast between them, or the
other way about: the kind has changed."""

SUSPECT = 2
"""How many of those there must be, for every run to be timed."""

YOUNG = 32
"""Runs of a fit below which none is an outlier: the line may be wrong by far."""

STALE_NS = 500_000_000
"""Time without a run after which an outlier is taken at its word. Nothing else would tell that a
kind which is dropped for being slow, but for a probe a second, has recovered."""

CLIP = math.log(1.5)
"""Least deviation, as a logarithm, that makes a run an outlier; three times the spread if that is
more."""

WIDEST = 0.5
"""The widest spread that is believed, as a standard deviation of the logarithm; and what is assumed
at first, with the weight of two runs."""

P95 = 1.645
"""Standard deviations from a normal distribution's median to its 95th percentile."""

RIDGE = 0.01
"""Share by which the fit prefers a line through the origin: where all work is alike, the slope
can't be told from the intercept."""

STRIDE, SETTLED = 8, 64
"""Every which run is timed, after how many: to time one and to learn from it takes 4 us."""

ENOUGH = 1.5
"""How many times a job's share of the best batch its share may be, for the batch to be released."""

FRESH_BATCH = 0.25
"""Weight of the newest batch of a size in the gain of that size."""

EXPLORED = 32
"""Jobs that are batched to find out whether that pays."""

LARGE_BATCH = 8
"""Jobs in a batch from which on it tells what a kind gains."""

PROMISING, HOPE = 0.9, 0.6
"""Share of a job's time in the largest batches so far below which larger ones are worth a try, and
how much less it is believed to be there."""

MOST_LESSONS = 64
"""How many jobs on their way are remembered of a cold kind."""

LONG_PROBE_NS = 1e7
"""Time of a cold kind's latest job from which on its probes come one an interval, as those of a
kind that is known: several of them would hold up all others."""

MOST_KINDS = 1_024
"""How many kinds of callables are remembered, the latest."""

LEAST_NS = 50.0
"""What any run takes: a clock can't tell less."""


Number = TypeVar("Number", float, Array)


class Line:
    """Time over work, t = a + b * work with a, b >= 0, and its spread.

    Attributes
    ----------
    a_ns, b
        In nanoseconds, and nanoseconds a unit of work.
    p95_factor
        How many times longer than predicted 95 % of jobs don't exceed.
    samples
        How many runs were seen, those at first left out.
    seen_ns
        When the latest was.
    is_settled
        Whether enough is known, and often enough, for most runs not to be looked at.
    """

    __slots__ = (
        "_bias",
        "_news",
        "_one",
        "_residual",
        "_runs",
        "_since",
        "_t",
        "_w",
        "_wt",
        "_ww",
        "a_ns",
        "b",
        "is_settled",
        "p95_factor",
        "samples",
        "seen_ns",
        "spread",
    )

    def __init__(self) -> None:
        self.samples = -SKIPPED
        self.seen_ns = -STALE_NS
        self.a_ns = 0.0
        self.b = 0.0
        self._news: list[tuple[bool, float, float]] = []
        self._forget()

    def _forget(self) -> None:
        self._one = self._w = self._t = self._ww = self._wt = 0.0
        self._residual = self._runs = self._bias = 0.0
        self._doubt()

    def _doubt(self) -> None:
        """Believe in no spread but the widest, and time every run."""
        self._since = 0
        self.is_settled = False
        self.spread = WIDEST
        self.p95_factor = math.exp(P95 * WIDEST)

    def predict_ns(self, work: float) -> float:
        """Return how long a job should take."""
        return self.a_ns + self.b * work

    def learn(self, work: float, taken_ns: float, now_ns: int, half_life: int) -> None:
        """Take in what one job took."""
        self.samples += 1
        if self.samples <= 0:
            return
        since_ns = now_ns - self.seen_ns
        stale = since_ns >= STALE_NS
        self.seen_ns = now_ns
        taken_ns = max(taken_ns, LEAST_NS)
        keep = 0.5 ** (1 / half_life)
        predicted_ns = self.a_ns + self.b * work
        if self._runs and predicted_ns > 0:
            residual = math.log(taken_ns / predicted_ns)
            limit = max(CLIP, 3 * self.spread)
            if self._news and self._news[-1][0] != (residual > 0):
                self._news.clear()
            if stale and abs(residual) > limit:
                self._rescale(residual)
                return
            if abs(residual) > limit / 2 and self._since >= YOUNG:
                self._news.append((residual > 0, work, taken_ns))
                if len(self._news) == NEWS:
                    self._restart(keep)
                    return
            clipped = max(-limit, min(residual, limit)) if self._since >= YOUNG else residual
            if clipped != residual:
                taken_ns = predicted_ns * math.exp(clipped)
            self._residual = self._residual * keep + clipped * clipped
            self._bias += clipped / (self._runs + 1)
        self._add(work, taken_ns, keep)
        self._since += 1
        self.is_settled = (
            self._since > SETTLED and len(self._news) < SUSPECT and since_ns < STALE_NS / STRIDE
        )

    def _rescale(self, residual: float) -> None:
        """Go by the latest run alone, but for what time depends on."""
        self._bias += residual
        self._residual, self._runs = 0.0, 1.0
        self._news.clear()
        self.a_ns *= math.exp(residual)
        self.b *= math.exp(residual)
        self._doubt()

    def _restart(self, keep: float) -> None:
        """Go by the runs that were news alone."""
        news, self._news = self._news, []
        self._forget()
        for _, work, taken_ns in news:
            self._add(work, taken_ns, keep)

    def _add(self, work: float, taken_ns: float, keep: float) -> None:
        # By the prediction rather than by what it took, which would favour those that took less.
        predicted_ns = self.a_ns + self.b * work if self._runs else taken_ns
        weight = 1 / max(predicted_ns, taken_ns / 8, LEAST_NS) ** 2
        one = self._one = self._one * keep + weight
        w = self._w = self._w * keep + weight * work
        t = self._t = self._t * keep + weight * taken_ns
        ww = self._ww = self._ww * keep + weight * work * work
        wt = self._wt = self._wt * keep + weight * work * taken_ns
        det = one * (1 + RIDGE) * ww - w * w
        a_ns, b = t / one, 0.0  # for no work at all, or less time for more
        if det > 0 and one * (1 + RIDGE) * wt >= w * t:
            b = (one * (1 + RIDGE) * wt - w * t) / det
            a_ns = (ww * t - w * wt) / det
            if a_ns < 0:
                a_ns, b = 0.0, wt / ww
        # The fit gives the mean. Runs of a few microseconds take twice as long now and then, so
        # that their mean is a third above what is typical.
        typical = math.exp(self._bias)
        self.a_ns, self.b = a_ns * typical, b * typical
        runs = self._runs = self._runs * keep + 1
        self.spread = min(WIDEST, math.sqrt((self._residual + 2 * WIDEST**2) / (runs + 2)))
        self.p95_factor = math.exp(P95 * self.spread)


class Gains:
    """What the jobs of a kind take in batches, as a share of what they should take alone.

    By the binary logarithm of the batch's size: a vector needs enough jobs to be full.

    Attributes
    ----------
    best
        The gain of the best size of at least `LARGE_BATCH`, 0 if no such batch has run.
    enough
        Jobs in a batch from which on more of them hardly help.
    """

    __slots__ = ("_scales", "best", "enough")

    def __init__(self) -> None:
        self._scales: list[float] = []
        self.best = 0.0
        self.enough = 1 << 62

    def learn(self, jobs: int, alone_ns: float, taken_ns: float) -> None:
        """Take in what one batch took."""
        size = jobs.bit_length()
        self._scales += [0.0] * (size + 1 - len(self._scales))
        scale = max(taken_ns / max(alone_ns, LEAST_NS), 1e-6)
        known = self._scales[size]
        self._scales[size] = known + FRESH_BATCH * (scale - known) if known else scale
        if large := [each for each in self._scales[LARGE_BATCH.bit_length() :] if each]:
            self.best = 1 / min(*large, large[-1] * self._hope)
            near = ENOUGH / self.best
            sizes = [size for size, each in enumerate(self._scales) if 0 < each <= near]
            self.enough = 1 << (sizes[0] - 1) if sizes else 1 << 62

    @property
    def _hope(self) -> float:
        """What a batch twice as large as any before is believed to take a job, against those."""
        if len(self._scales) <= LARGE_BATCH.bit_length() or self._scales[-1] < PROMISING:
            return HOPE
        return 1.0

    @property
    def largest(self) -> int:
        """How many jobs to batch at most: twice what is known, step by step."""
        return max(2 * LARGE_BATCH, 1 << len(self._scales)) - 1

    def scale(self, jobs: int) -> float:
        """Return the share for a batch of a size: of the largest known below it, or hoped for."""
        if jobs < 2:
            return 1.0
        size = jobs.bit_length()
        hope = self._hope if size >= len(self._scales) else 1.0
        for known in range(min(size, len(self._scales) - 1), 1, -1):
            if self._scales[known]:
                return self._scales[known] * hope
        return hope


class KindModel:
    """What is known of one kind.

    Attributes
    ----------
    alone
        Its jobs' time alone.
    gains
        What they gain in batches.
    mean_ns
        Time alone of an average job, of the latest.
    batch_jobs
        Jobs in an average batch, of the latest.
    fresh_ns
        When a job of it was measured last, alone or in a batch.
    guard
        What keeps it off the event loop.
    declares_time
        Whether its author said what its jobs take, so that they may be believed to be short before
        any was timed.
    """

    __slots__ = (
        "_batches",
        "_costs",
        "_explored",
        "_explored_ns",
        "_latest_ns",
        "_lessons",
        "_probed_ns",
        "_refused",
        "_skip",
        "alone",
        "batch_jobs",
        "declares_time",
        "fresh_ns",
        "gains",
        "guard",
        "mean_ns",
    )

    def __init__(self, costs: CostModel, *, batches: bool, declares_time: bool = False) -> None:
        self._costs = costs
        self._batches = batches
        self.alone = Line()
        self.gains = Gains()
        if not batches:
            self.gains.best = 1.0
        self.mean_ns = 0.0
        self.batch_jobs = 1.0
        self.fresh_ns = -math.inf
        self.guard = Guard()
        self.declares_time = declares_time
        self._latest_ns = 0.0
        self._refused = False
        self._probed_ns = -math.inf
        self._lessons: list[tuple[float, Callable[[], bool | None]]] = []
        self._skip = 0
        self._explored = 0
        self._explored_ns = -math.inf

    @property
    def is_cold(self) -> bool:
        """Whether too little is known for predictions."""
        return self.alone.samples < self._costs.config.cold_samples

    def is_due(self) -> bool:
        """Tell whether the next run alone is to be timed."""
        if not self._costs.learns:
            return False
        if self._skip > 0:  # threads may all count it down
            self._skip -= 1
            return False
        return True

    @property
    def learns(self) -> bool:
        """Whether anything is learnt at all."""
        return self._costs.learns

    @property
    def to_learn(self) -> int:
        """How many jobs of a batch should run alone, until the kind is known."""
        if not self._costs.learns:
            return 0
        return max(0, self._costs.config.cold_samples - self.alone.samples)

    def predict_ns(self, work: Number, prior_ns: Number) -> Number:
        """Return how long a job, or each of many, should take alone.

        By the prior, while too little is known.
        """
        alone = self.alone
        if alone.samples < self._costs.config.cold_samples:
            return prior_ns
        return alone.a_ns + alone.b * work

    def together_ns(self, jobs: int, alone_ns: float) -> float:
        """Return how long so many jobs should take in one call, from what they take alone."""
        return alone_ns * self.gains.scale(jobs)

    def estimate(
        self,
        work: float,
        prior_ns: float,
        now_ns: int,
        queued: int | None = None,
        queued_ns: float = 0.0,
    ) -> Estimate:
        """Return the estimate of a job.

        Parameters
        ----------
        queued, queued_ns
            How many of its kind wait for a batch, and what they should take alone; None where
            there will be no batch.
        """
        config = self._costs.config
        alone = self.alone
        best = self.gains.best
        if alone.samples < config.cold_samples:
            prior_us = prior_ns / 1e3
            samples = max(alone.samples, 0)
            probe = self.probes(now_ns) > 0
            may_inline = self.may_inline(now_ns)
            return make_estimate(
                samples, prior_us, prior_us, best, math.inf, probe, False, may_inline
            )
        run_ns = alone.a_ns + alone.b * work
        batch_ns = math.inf
        if queued is not None:
            jobs, batch_ns = queued + 1, queued_ns + run_ns
            if jobs < self.batch_jobs:  # more will come
                jobs = min(int(self.batch_jobs), config.batch_max_jobs)
                batch_ns += (jobs - 1 - queued) * self.mean_ns
            batch_ns *= self.gains.scale(jobs)
        # Where all batches were too small to tell, as under a light load, the next ones may be
        # larger: the load may have risen.
        explore_s = config.batch_probe_interval_s if best else config.probe_interval_s
        return make_estimate(
            alone.samples,
            run_ns / 1e3,
            run_ns * alone.p95_factor / 1e3,
            best,
            batch_ns / 1e3,
            self.probes(now_ns) > 0,
            self._batches
            and best < config.batch_min_gain
            and (self._explored < EXPLORED or now_ns - self._explored_ns > explore_s * 1e9),
            self.may_inline(now_ns),
        )

    def may_inline(self, now_ns: float) -> bool:
        """Tell whether a job may run on the event loop, if it seems short enough."""
        known = self.declares_time or self.alone.samples >= self._costs.config.cold_samples
        return known and self.guard.allows(now_ns)

    def probes(self, now_ns: float) -> int:
        """Return how many jobs may run now although they seem infeasible.

        Of a known kind one each interval in which none ran. Of a cold one, once a job was refused,
        as many at once as it needs to be known, so that it soon is, and one until the first has
        shown how long they take; jobs of it that run anyway count. One that has ended makes room,
        however it ended; and so does one that hasn't within an interval. If they are long, one an
        interval.
        """
        if not self._costs.learns:
            return 0
        interval_ns = self._costs.config.probe_interval_s * 1e9
        since_ns = now_ns - self._probed_ns
        if not self.is_cold:
            return int(now_ns - self.fresh_ns > interval_ns and since_ns > interval_ns)
        if not self._refused:
            return 0
        if self._latest_ns > LONG_PROBE_NS:
            return int(since_ns > interval_ns)
        most = self.to_learn if self._latest_ns else 1
        if self._lessons:
            states = [
                (lesson, lesson[1]())
                for lesson in self._lessons
                if now_ns - lesson[0] <= interval_ns
            ]
            self._lessons = [lesson for lesson, state in states if state is not False]
            most -= sum(state is True for _, state in states)
        return max(0, most)

    def note_refusal(self) -> None:
        """Note that a job was dropped for the time that others take."""
        self._refused = True

    def note_probe(self, now_ns: int) -> None:
        """Note that a job runs although it seemed infeasible; it will be timed."""
        self._probed_ns = now_ns
        self._skip = 0

    def note_lesson(self, now_ns: int, state: Callable[[], bool | None]) -> None:
        """Note that a job of a cold kind is on its way, from which something will be learnt.

        Parameters
        ----------
        state
            Tells whether it runs, or will for certain: False once it has ended, None while it may
            still be dropped.
        """
        if self.is_cold and len(self._lessons) < MOST_LESSONS:
            self._lessons.append((now_ns, state))

    def watch(
        self, work: float, predicted_ns: float, wall_ns: float, cpu_ns: float, now_ns: int
    ) -> None:
        """Let the guard take in a run in a thread, before it is learnt from.

        Parameters
        ----------
        predicted_ns
            What it was believed to take when it came; what is believed now counts if that is more.
        """
        if not self.is_cold:
            predicted_ns = max(predicted_ns, self.alone.predict_ns(work))
        elif not self.declares_time:
            return
        self.guard.note_elsewhere(predicted_ns, wall_ns, cpu_ns, now_ns)
        if self.guard.is_barred:
            self._skip = 0

    def watch_batch(self, jobs: int, work: float, cpu_ns: float, now_ns: int) -> None:
        """Let the guard take in a kernel call for several jobs in a thread, likewise."""
        if not self.is_cold and jobs:
            alone_ns = jobs * self.alone.a_ns + self.alone.b * work
            self.guard.note_batch(jobs, alone_ns, cpu_ns, now_ns)

    def note_overrun(self, work: float, taken_ns: float, now_ns: int) -> None:
        """Learn from a run on the event loop that was far too long; the next ones are timed."""
        self.learn(work, taken_ns, now_ns)
        self._skip = 0

    def note_batch_probe(self, now_ns: int) -> None:
        """Note that a job is batched although that didn't seem to pay."""
        if self._explored >= EXPLORED:
            self._explored = 0
        self._explored += 1
        self._explored_ns = now_ns

    def learn(self, work: float, taken_ns: float, now_ns: int) -> None:
        """Take in what one job took alone."""
        alone = self.alone
        alone.learn(work, taken_ns, now_ns, self._costs.config.sample_half_life)
        self._skip = STRIDE - 1 if alone.is_settled and not self.guard.is_barred else 0
        self.fresh_ns = now_ns
        self._latest_ns = taken_ns
        if self._lessons and not self.is_cold:
            self._lessons.clear()
        self.mean_ns += (taken_ns - self.mean_ns) / 32 if self.mean_ns else taken_ns

    def learn_batch(self, jobs: int, work: float, taken_ns: float, now_ns: int) -> None:
        """Take in what one kernel call took for several jobs.

        Parameters
        ----------
        work
            Of all of them.
        """
        self.fresh_ns = now_ns
        if self.is_cold or not self._costs.learns:  # a share of nobody knows what
            return
        alone_ns = jobs * self.alone.a_ns + self.alone.b * work
        self.gains.learn(jobs, alone_ns, taken_ns)
        self.batch_jobs += (jobs - self.batch_jobs) / 4
        self.mean_ns += (alone_ns / jobs - self.mean_ns) / 8


class CostModel:
    """What is known of all kinds: of kernels for good, of callables of the latest.

    Attributes
    ----------
    config
        How to learn; the router's.
    learns
        Whether anything is learnt at all.
    """

    def __init__(self, config: RouterConfig, *, learns: bool = True) -> None:
        self.config = config
        self.learns = learns
        self._barred_until_ns = -math.inf
        self._kernels: dict[str, KindModel] = {}
        self._callables: OrderedDict[Hashable, KindModel] = OrderedDict()

    def of_kernel(
        self, name: str, *, batches: bool = True, declares_time: bool = False
    ) -> KindModel:
        """Return the model of a kernel's jobs.

        Parameters
        ----------
        batches, declares_time
            Of a kernel that is new: whether it has a form for batches, and see `Kernel`.
        """
        model = self._kernels.get(name)
        if model is None:
            model = KindModel(self, batches=batches, declares_time=declares_time)
            self._kernels[name] = model
        return model

    def forget(self, name: str) -> None:
        """Forget what is known of a kernel's jobs; those that have the model keep it."""
        del self._kernels[name]

    def of_callable(self, key: Hashable) -> KindModel:
        """Return the model of a callable, by the kind it was given or itself.

        One that is forgotten may come back as new. So none that is new may run on the event loop
        for as long as one that was forgotten is barred for certain.
        """
        model = self._callables.get(key)
        if model is None:
            model = self._callables[key] = KindModel(self, batches=False)
            if self._barred_until_ns > -math.inf:
                model.guard.bar_until(self._barred_until_ns)
            if len(self._callables) > MOST_KINDS:
                _, oldest = self._callables.popitem(last=False)
                self._barred_until_ns = max(self._barred_until_ns, oldest.guard.until_ns)
        else:
            self._callables.move_to_end(key)
        return model
