"""``python -m helixnb``: a seeded workload through a live router, and what became of it."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from helixnb._errors import HelixError
from helixnb._observe.stats import Stats
from helixnb._records import Job, Outcome
from helixnb._router import Router
from helixnb.workload import closed_loop, light_mix, open_loop, read_jobs

if TYPE_CHECKING:
    from rich.progress import Progress

CLIENTS = 32


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns the exit status, 1 if a job failed."""
    options = _parser().parse_args(arguments)
    try:
        jobs = (
            light_mix(options.jobs, options.seed)
            if options.file is None
            else read_jobs(options.file)
        )
    except (OSError, HelixError) as error:
        print(f"helixnb: {error}", file=sys.stderr)
        return 2
    if not options.json and importlib.util.find_spec("rich") is None:
        print(
            "helixnb: the demo draws with rich: pip install 'helixnb[demo]' "
            "(--json works without it)",
            file=sys.stderr,
        )
        return 2
    try:
        stats, elapsed_s, latencies_s = anyio.run(
            _drive, jobs, options, None if options.json else _progress()
        )
    except ExceptionGroup as group:  # the clients' tasks; a job of a file that no kernel takes
        errors = group.subgroup(HelixError)
        if errors is None:
            raise
        print(f"helixnb: {_first(errors)}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(stats.as_dict()))
    else:
        _report(stats, elapsed_s, latencies_s, options)
    return 1 if stats.failed else 0


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m helixnb", description=__doc__)
    parser.add_argument(
        "--jobs", type=_whole, default=5_000, help="how many jobs of the light mix (%(default)s)"
    )
    parser.add_argument(
        "--rate",
        type=_positive,
        help="arrivals a second, open loop; without it, "
        f"{CLIENTS} clients submit one job after the other",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the workload (%(default)s)")
    parser.add_argument(
        "--file",
        type=Path,
        help="jobs to run instead, one JSON object a line",
        metavar="JOBS.jsonl",
    )
    parser.add_argument("--json", action="store_true", help="print the stats as one JSON object")
    return parser


def _whole(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text}")
    return number


def _positive(text: str) -> float:
    if not 0 < (number := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be more than 0, got {text}")
    return number


async def _drive(
    jobs: list[Job], options: argparse.Namespace, progress: Progress | None
) -> tuple[Stats, float, list[float]]:
    """Run `jobs` through a router; returns its stats, the seconds it took, and latencies.

    The latencies are in seconds from when each job was due, if they came at a rate.
    """
    if progress is None:
        return await _run(jobs, options, None, None)
    compiling = progress.add_task("compiling kernels", total=None)
    running = progress.add_task("running jobs", total=len(jobs), start=False)

    def compiled(done: int, total: int, name: str) -> None:
        what = f"compiling {name}" if name else "kernels ready"
        progress.update(compiling, completed=done, total=total, description=what)
        if done == total:
            progress.start_task(running)

    with progress:
        return await _run(jobs, options, compiled, lambda _: progress.advance(running))


async def _run(
    jobs: list[Job],
    options: argparse.Namespace,
    on_compile: Callable[[int, int, str], None] | None,
    on_outcome: Callable[[Outcome], object] | None,
) -> tuple[Stats, float, list[float]]:
    latencies_s: list[float] = []
    async with Router(progress=on_compile) as router:
        began = time.perf_counter()
        if options.rate is None:
            await closed_loop(router, jobs, clients=CLIENTS, on_outcome=on_outcome)
        else:
            latencies_s = await open_loop(
                router, jobs, rate=options.rate, seed=options.seed, on_outcome=on_outcome
            )
        return router.stats(), time.perf_counter() - began, latencies_s


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )


def _report(
    stats: Stats, elapsed_s: float, latencies_s: list[float], options: argparse.Namespace
) -> None:
    from rich.console import Console
    from rich.table import Table

    routing = Table(
        title="Routing, and latency of the jobs that are done, in ms", title_justify="left"
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

    drops = Table(title="Drops by reason", title_justify="left")
    drops.add_column("reason")
    drops.add_column("jobs", justify="right")
    for reason, count in sorted(stats.dropped_by_reason.items()):
        drops.add_row(reason, f"{count:,}")
    if not stats.dropped_by_reason:
        drops.add_row("none", "0")

    loop = f"{CLIENTS} clients" if options.rate is None else f"open loop, {options.rate:g} jobs/s"
    source = f"light mix, seed {options.seed}" if options.file is None else str(options.file)
    console = Console()
    console.print(routing)
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
        f" jobs/s over {elapsed_s:.2f} s ({source}; {loop})\n"
        f"{stats.cpu_parallelism} slots; {stats.batches:,} batches of {stats.batched_jobs:,} jobs,"
        f" {stats.parallel_launches:,} on several threads ({stats.threading_layer})",
        highlight=False,
    )


if __name__ == "__main__":
    sys.exit(main())
