"""What keeps a kind of job off the event loop after one of its jobs has held it up.

However jobs behave, at most one job of a kind in any `BARRED_NS` that runs on the event loop takes
more than `LONGEST_NS` of the CPU time of the loop's thread:

- The wall clock raises a suspicion: the run took more than `suspicion_ns`. What the loop does for
  other threads or processes meanwhile, it takes of the wall clock, too.
- The CPU clock of the loop's thread proves it. Who calls gives an upper bound of what the run took.
- From then on the kind is barred: for `BARRED_NS`, and until `CLEAN_RUNS` runs elsewhere have shown
  that it is as short as predicted.
"""

from __future__ import annotations

from helixnb._core.rules import LONGEST_INLINE_NS

LONGEST_NS = 5_000_000
"""What a job may take of the event loop's CPU time without its kind being barred, at most."""

LEAST_NS = 2_000_000
"""What any job may take: a run of a microsecond may meet page faults or a slow CPU."""

TIMES = 10
"""How many times longer than predicted a run must be to be suspected."""

BARRED_NS = 10_000_000_000
"""The least time that a kind is barred."""

CLEAN_RUNS, MOST_CLEAN_RUNS = 1_000, 64_000
"""Runs elsewhere that a barred kind must show, in a row, none of them long; twice as many after
each return that was a mistake, up to a bound. One job in a hundred that is long lets 1,000 runs be
clean with a chance of 1 in 23,000."""

STRIKES = 3
"""Suspicions in a row that bar a kind which isn't compiled: it may sleep, unseen by a CPU clock."""

BATCH_TIMES = 3
"""Times what its jobs should take alone, beyond which a batch is believed to have a long one."""


def suspicion_ns(predicted_ns: float) -> float:
    """Return what a run must exceed to be suspected of being far longer than predicted."""
    return min(max(LEAST_NS, TIMES * predicted_ns), LONGEST_NS)


class Guard:
    """Tells whether jobs of one kind may run on the event loop, by how those before them did.

    It has no clock: who calls gives the time, which never runs backwards. Used from the event loop
    only.

    Attributes
    ----------
    is_barred
        Whether it was barred and, as far as `allows` was asked, still is.
    overruns
        Runs on the event loop that were proven to be too long.
    strikes
        Suspicions in a row that could not be proven, for a kind that isn't compiled.
    until_ns
        When the kind may come back at the earliest; minus infinity if it was never barred.
    """

    __slots__ = ("_clean", "_needed", "is_barred", "overruns", "strikes", "until_ns")

    def __init__(self) -> None:
        self.is_barred = False
        self.overruns = 0
        self.strikes = 0
        self.until_ns = float("-inf")
        self._clean = 0
        self._needed = CLEAN_RUNS

    def allows(self, now_ns: float) -> bool:
        """Tell whether a job may run on the event loop now, as far as runs before it tell."""
        if self.is_barred and now_ns >= self.until_ns and self._clean >= self._needed:
            self.is_barred = False
            self.strikes = 0
        return not self.is_barred

    def note_inline(
        self,
        predicted_ns: float,
        wall_ns: float,
        cpu_ns: float,
        now_ns: float,
        *,
        is_compiled: bool,
    ) -> bool:
        """Take in a run on the event loop; returns whether it has barred the kind.

        A run of `LEAST_NS` of wall time or less need not be told, but for ``strikes = 0``.

        Parameters
        ----------
        cpu_ns
            CPU time of the loop's thread that the run took at most.
        is_compiled
            Whether the job computes all the time, so that its CPU time is what it takes.
        """
        bound_ns = suspicion_ns(predicted_ns)
        if wall_ns <= bound_ns:
            self.strikes = 0
            return False
        if cpu_ns <= bound_ns:
            if is_compiled:
                return False
            self.strikes += 1
            if self.strikes < STRIKES:
                return False
        self.overruns += 1
        if self.overruns > 1:
            self._needed = min(2 * self._needed, MOST_CLEAN_RUNS)
        self._bar(now_ns)
        return True

    def note_elsewhere(
        self, predicted_ns: float, wall_ns: float, cpu_ns: float, now_ns: float
    ) -> None:
        """Take in a run in a thread: a long one bars the kind before the event loop meets one.

        Only runs that were predicted to be short enough for the event loop tell something.
        """
        if not predicted_ns <= LONGEST_INLINE_NS:
            return
        bound_ns = suspicion_ns(predicted_ns)
        if cpu_ns > bound_ns:
            self._bar(now_ns)
        elif wall_ns <= bound_ns:
            self._clean += 1

    def note_batch(self, jobs: int, predicted_ns: float, cpu_ns: float, now_ns: float) -> None:
        """Take in a kernel call for several jobs, as far as it can tell: none took longer than all.

        Parameters
        ----------
        predicted_ns
            What they should take one after the other.
        """
        mean_ns = predicted_ns / jobs
        if not mean_ns <= LONGEST_INLINE_NS:
            return
        bound_ns = suspicion_ns(mean_ns)
        if cpu_ns <= bound_ns:
            self._clean += jobs
        elif cpu_ns > BATCH_TIMES * predicted_ns + bound_ns:
            self._bar(now_ns)

    def bar_until(self, until_ns: float) -> None:
        """Bar the kind for some time, without asking for clean runs afterwards."""
        self.is_barred = True
        self.until_ns = max(self.until_ns, until_ns)
        self._clean = self._needed

    def _bar(self, now_ns: float) -> None:
        self.is_barred = True
        self.strikes = 0
        self.until_ns = max(self.until_ns, now_ns + BARRED_NS)
        self._clean = 0
