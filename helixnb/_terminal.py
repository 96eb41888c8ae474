"""What the demo draws, by rich: bars, a table that lives while it runs, and the report."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import anyio
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from helixnb._observe.stats import Stats
from helixnb._router import Router

PERIOD_S = 0.3
"""How often it is drawn: in a thread, since a terminal that is paused takes nothing."""

UNTIL_TABLE_S = 1.0
"""For how long a run goes on before it gets a table."""


class Display(Progress):
    """Draws on stderr how far a run is, and what the router does; a context.

    Parameters
    ----------
    jobs
        How many will run; None for no end.
    """

    def __init__(self, jobs: int | None) -> None:
        self._live: Sequence[RenderableType] = ()
        super().__init__(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            auto_refresh=False,
        )
        self._compiling = self.add_task("compiling kernels", total=None)
        self._running = (
            None if jobs is None else self.add_task("running jobs", total=jobs, start=False)
        )

    def get_renderables(self) -> Iterator[RenderableType]:
        """Yield the bars, and below them the table."""
        yield from super().get_renderables()
        yield from self._live

    def compiled(self, done: int, total: int, name: str) -> None:
        """Note how far the kernels are; the router's `progress`."""
        what = f"compiling {name}" if name else "kernels ready"
        self.update(self._compiling, completed=done, total=total, description=what)

    def say(self, text: str) -> None:
        """Print a line above what is drawn."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def showing(self, router: Router) -> Iterator[None]:
        """Draw while the context is entered, and leave the bars as they are at its end."""
        with self:
            try:
                yield
            finally:
                self._live = ()
                self._advance(router.stats())
                self.refresh()

    async def follow(self, router: Router) -> None:
        """Draw a router again and again; never ends."""
        one = anyio.CapacityLimiter(1)
        began_s = math.inf
        then_s, before = time.monotonic(), 0
        while True:
            await anyio.sleep(PERIOD_S)
            now_s, stats = time.monotonic(), router.stats()
            ended = self._advance(stats)
            if stats.submitted:
                began_s = min(began_s, now_s)
            if self.console.is_terminal and now_s - began_s > UNTIL_TABLE_S:
                rate = (ended - before) / (now_s - then_s)
                self._live = (routing_table(stats), Text(load_line(stats, rate)))
            then_s, before = now_s, ended
            await anyio.to_thread.run_sync(self.refresh, abandon_on_cancel=True, limiter=one)

    def _advance(self, stats: Stats) -> int:
        """Move the bar of the jobs, and return how many have ended."""
        ended = stats.submitted - stats.in_flight
        if self._running is not None and (ended or stats.state == "open"):
            self.start_task(self._running)
            self.update(self._running, completed=ended)
        return ended


def load_line(stats: Stats, rate: float) -> str:
    """Return the pressure on a router, and at how many jobs a second it goes, in a line."""
    return (
        f"{stats.waiting:,} of {stats.queue_capacity:,} waiting; "
        f"{stats.cpu_busy} of {stats.cpu_parallelism} slots busy; "
        f"loop lag {stats.loop_lag_ms:.1f} ms; {rate:,.0f} jobs/s"
    )


def routing_table(stats: Stats) -> Table:
    """Return what became of jobs, by strategy."""
    routing = Table(
        title="Routing, and latency of the jobs that are done, in ms",
        title_justify="left",
        padding=(0, 1 if stats.submitted < 1_000_000 else 0),  # for terminals of 80 columns
    )
    routing.add_column("strategy", no_wrap=True)
    for heading in ("decided", "ran", "share", "done", "avg", "p50", "p95", "p99"):
        routing.add_column(heading, justify="right")
    for name, strategy in stats.by_strategy.items():
        latency = strategy.latency
        share = strategy.routed / stats.submitted if stats.submitted else 0.0
        routing.add_row(
            name,
            f"{strategy.decided:,}",
            f"{strategy.routed:,}",
            f"{share:.1%}",
            f"{latency.count:,}",
            *(
                "-" if ms is None else f"{ms:,.3f}"
                for ms in (latency.avg_ms, latency.p50_ms, latency.p95_ms, latency.p99_ms)
            ),
        )
    return routing


def report(stats: Stats, elapsed_s: float, latencies_s: list[float], workload: str) -> None:
    """Print what became of all jobs.

    Parameters
    ----------
    stats
        The router's, at the end.
    elapsed_s
        How long the run took, in seconds.
    latencies_s
        Seconds from when each job was due, if they came at a rate and that was measured.
    workload
        What was run, in words.
    """
    drops = Table(title="Drops by reason", title_justify="left")
    drops.add_column("reason")
    drops.add_column("jobs", justify="right")
    for reason, count in sorted(stats.dropped_by_reason.items()):
        drops.add_row(reason, f"{count:,}")
    if not stats.dropped_by_reason:
        drops.add_row("none", "0")

    console = Console()
    console.print(routing_table(stats))
    console.print(drops)
    if latencies_s:
        ordered_ms = [latency_s * 1e3 for latency_s in sorted(latencies_s)]
        p50, p95, p99 = (
            ordered_ms[math.ceil(share * len(ordered_ms)) - 1] for share in (0.5, 0.95, 0.99)
        )
        console.print(
            f"from when a job was due to its outcome: p50 {p50:,.3f}, p95 {p95:,.3f}, "
            f"p99 {p99:,.3f} ms",
            highlight=False,
        )
    console.print(
        f"{stats.submitted:,} submitted = {stats.completed:,} completed + {stats.dropped:,} dropped"
        f" + {stats.failed:,} failed + {stats.cancelled:,} cancelled\n"
        f"{stats.within_budget:,} within budget; {stats.submitted / max(elapsed_s, 1e-9):,.0f}"
        f" jobs/s over {elapsed_s:.2f} s ({workload})\n"
        f"{stats.cpu_parallelism} slots; {stats.batches:,} batches of {stats.batched_jobs:,} jobs,"
        f" {stats.parallel_launches:,} on several threads ({stats.threading_layer})",
        highlight=False,
    )
