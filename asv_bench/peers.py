"""Run the same jobs through helixnb and what one would pick instead: docs/performance/peers.md.

All jobs are there at the start, in one process, on one event loop. Each peer is opened, warmed up
and closed around every run; what is timed is the jobs alone. The rounds are interleaved, so that
what else goes on in the machine meets all peers alike, and every answer is compared with that of a
solo run.
"""

from __future__ import annotations

import argparse
import math
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from statistics import median

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from peer_runs import (
    BATCH_DELAY_MS,
    BATCH_JOBS,
    CORES,
    LOOPS,
    PARALLEL_PAYS_NS,
    PEERS,
    WARM_UP_JOBS,
    Results,
    measure_all,
)
from plots import DOCS, INK, OURS, THEIRS

from helixnb import Job
from helixnb_kernels import threading_layer

ROUNDS = 5


def three_figures(value: float) -> str:
    """Format a positive number with three significant figures."""
    places = 2 - math.floor(math.log10(value))
    return f"{round(value, places):,.{max(0, places)}f}"


def milliseconds(values: Iterable[float | None]) -> str:
    """Format the median of some seconds, or of nothing."""
    seconds = [value for value in values if value is not None]
    return three_figures(max(median(seconds) * 1e3, 0.01)) if seconds else "-"


def table(results: Results, loop: str, mix: str, jobs: int) -> list[str]:
    """Return the lines of one table."""
    lines = [
        "| | jobs/s | wall | p50 | p99 | loop lag p99 |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for peer in PEERS:
        runs = results[loop, mix, peer.name]
        cells = [
            peer.name,
            three_figures(jobs / median(run.wall_s for run in runs)),
            milliseconds(run.wall_s for run in runs),
            milliseconds(run.p50_s for run in runs),
            milliseconds(run.p99_s for run in runs),
            milliseconds(run.lag_p99_s for run in runs),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def versions() -> str:
    """Name what was measured, and on what."""
    names = ("helixnb", "numba", "numpy", "anyio", "uvloop", "joblib", "aiodataloader", "batched")
    named = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    return (
        f"{CORES} cores ({platform.machine()}), Python {platform.python_version()}, {named}; "
        f"threading layer {threading_layer()}"
    )


HEAD = """\
# Beside its peers

<!-- Written by `make peers`; changes made here are lost. -->

The same jobs through helixnb and through what one would pick instead. All jobs of a mix are there
at the start. *jobs/s* and *wall* are from the start to the last answer. *p50* and *p99* are from
the start to a job's own answer: how soon answers come while all of the work is being done, not how
long a lone job takes; a peer that gives all answers at once has none. *Loop lag* is how much too
late a task wakes that sleeps for 5 ms over and over: what every other request of the service would
feel. Of a run that is over in half a second, its p99 is the worst beat; and where each job has a
task, starting all of them is one turn of the loop, and a lag by itself. Times are milliseconds,
medians of {rounds} interleaved rounds in one process; the thin lines in the plot go from the least
to the most of them. Compare the rows, not the machines. Every answer was compared with that of a
solo run, and none was missing. `make peers` runs all of this and writes this page.

![Throughput and loop lag of each peer on asyncio](../images/peers.svg)
"""

ROWS = """\
## What each row does

{rows}

Solo calls have no batch form to gain from. That is most of the distance between the first five rows
and the others in the heavy mix: HashMix batches fill vector lanes with jobs, and so gain most.
aiodataloader and batched call the batch form as helixnb does: at most {jobs} jobs, on all cores
from {pays_us:.0f} us of predicted work on, and for batched after {delay_ms:g} ms at the latest. Of
the packages on PyPI that make batches of concurrent calls, these are pure Python and bring little
with them: aiodataloader is the most used, and batched has a queue, a delay and threads of its own.

Every peer starts from the same `Job` objects and makes arrays of their inputs itself. Opening isn't
timed: routers and pools are open, and have run {warm_up} jobs, before the start.

helixnb has its default configuration, `StaticPolicy`, and a `queue_capacity` of as many jobs as
there are. Jobs have no budget, and all declare `scaling_potential=1.0`, since this policy drops
what doesn't scale while slots are busy. So nothing is dropped, which each run checks. The light mix
is `helixnb.workload.light_mix`, whose jobs take a few microseconds solo (see
[the kernels](index.md#the-kernels)); the heavy mix is HashMix jobs of about 1 ms.

{versions}.
"""


def page(results: Results, mixes: dict[str, list[Job]], rounds: int) -> str:
    """Return the page as Markdown."""
    parts = [HEAD.format(rounds=rounds)]
    for loop in LOOPS:
        parts.append(f"## On {loop}\n")
        for mix, jobs in mixes.items():
            parts += [f"### {mix}, {loop}\n", *table(results, loop, mix, len(jobs)), ""]
    rows = "\n".join(f"- *{peer.name}*: {' '.join(peer.what.split())}" for peer in PEERS)
    parts.append(
        ROWS.format(
            rows=rows,
            jobs=BATCH_JOBS,
            delay_ms=BATCH_DELAY_MS,
            warm_up=WARM_UP_JOBS,
            pays_us=PARALLEL_PAYS_NS / 1e3,
            versions=versions(),
        )
    )
    return "\n".join(parts)


LEAST_LAG_MS, MOST_LAG_MS = 0.1, 20_000  # where the logarithmic bars begin, and could end


def plot(results: Results, mixes: dict[str, list[Job]], file: Path, loop: str = "asyncio") -> None:
    """Draw throughput and loop lag, one line of panels a mix."""
    with rc_context(fname=DOCS / "plots.mplstyle"):
        figure = Figure(figsize=(9, 2.6 * len(mixes)), layout="constrained")
        grid = figure.subplots(len(mixes), 2, sharey=True, squeeze=False)
        for (rates, lags), (mix, jobs) in zip(grid, mixes.items(), strict=True):
            runs = {peer.name: results[loop, mix, peer.name] for peer in PEERS}
            rates.set_title(f"{mix}: jobs/s, more is better", fontsize=9)
            bars(rates, {name: [len(jobs) / r.wall_s for r in runs[name]] for name in runs})
            rates.xaxis.set_major_locator(MaxNLocator(5))
            rates.xaxis.set_major_formatter("{x:,.0f}")
            lags.set_title(f"{mix}: loop lag p99, ms, less is better", fontsize=9)
            lags.set_xscale("log")
            bars(lags, {name: [r.lag_p99_s * 1e3 for r in runs[name]] for name in runs})
            lags.set_xlim(LEAST_LAG_MS, MOST_LAG_MS)
            lags.xaxis.set_major_formatter("{x:,g}")
            lags.minorticks_off()
        grid[0][0].invert_yaxis()
        file.parent.mkdir(exist_ok=True)
        figure.savefig(file, transparent=True, metadata={"Date": None})


def bars(axes: Axes, values: dict[str, list[float]]) -> None:
    """Draw a bar to each median, with a thin line from the least to the most."""
    names = list(values)
    colours = [OURS if name.startswith("helixnb") else THEIRS for name in names]
    axes.barh(names, [median(each) for each in values.values()], color=colours, height=0.7)
    least, most = ([pick(each) for each in values.values()] for pick in (min, max))
    axes.hlines(names, least, most, INK, linewidth=1)
    for at, each in enumerate(values.values()):
        axes.annotate(
            three_figures(median(each)),
            (most[at], at),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.margins(x=0.18)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Measure, and print the page or write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="at least 1; default %(default)s"
    )
    parser.add_argument("--write", type=Path, metavar="DOCS", help="write into this directory")
    options = parser.parse_args()
    results, mixes = measure_all(options.rounds)
    text = page(results, mixes, options.rounds)
    if options.write is None:
        print(text)
    else:
        (options.write / "performance" / "peers.md").write_text(text, encoding="utf-8")
        plot(results, mixes, options.write / "images" / "peers.svg")


if __name__ == "__main__":
    main()
