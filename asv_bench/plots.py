"""Draw the documentation's pictures of what was measured earlier.

``python plots.py overload overload.json`` draws what ``overload.py --json overload.json`` has
written, ``python plots.py history`` the results that asv keeps; into docs/images by default.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = Path(__file__).parent / "results" / "reference"

INK = "#7a7a7a"  # as far from white as from a dark page
OURS, THEIRS = "#0072b2", "#9b9b9b"
LINES = {
    "AdaptivePolicy": ("AdaptivePolicy", OURS, "o-"),
    "StaticPolicy": ("StaticPolicy", "#56b4e9", "s-"),
    "asyncio.to_thread": ("asyncio.to_thread", "#d55e00", "^--"),
    "executor": ("executor", "#e69f00", "v--"),
    "all inline": ("on the event loop", "#cc79a7", "x--"),
}
BUDGETS_MS = {"heavy": (40.0, 400.0), "light": (5.0, 80.0)}

HISTORY: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "submit over a bare task, 1,000 at once": (
        "router.Submit.track_over_bare_task",
        {
            "inline": ("'asyncio'", "'inline'", "1000"),
            "cpu_pool": ("'asyncio'", "'cpu_pool'", "1000"),
            "batch": ("'asyncio'", "'batch'", "1000"),
        },
    ),
    "a decision over a bare call": (
        "policy.Decide.track_over_bare_call",
        {
            "StaticPolicy": ("'StaticPolicy'", "'large'"),
            "AdaptivePolicy": ("'AdaptivePolicy'", "'large'"),
        },
    ),
    "a batch of 1,024 over a straight loop": (
        "kernels.BatchKernel.track_over_straight_loop",
        {
            "HashMix": ("'HashMix'", "1024"),
            "MonteCarlo": ("'MonteCarlo'", "1024"),
            "PrimeCount": ("'PrimeCount'", "1024"),
        },
    ),
    "import helixnb over import numba": ("imports.Import.track_import_over_numba", {"import": ()}),
}
"""Panels: what asv tracks, and which of its parameters are drawn under which name."""


@contextmanager
def panels(file: Path, rows: int, columns: int) -> Iterator[list[Axes]]:
    """Give some axes to draw in, row by row, and write them."""
    with rc_context(fname=DOCS / "plots.mplstyle"):
        drawing = Figure(figsize=(9, 3.4 if rows == 1 else 2.5 * rows), layout="constrained")
        yield list(drawing.subplots(rows, columns, squeeze=False).flat)
        file.parent.mkdir(exist_ok=True)
        drawing.savefig(file, metadata={"Date": None})


def draw_overload(results: list[dict[str, Any]], directory: Path) -> None:
    """Draw answers within budget and the p99 of each mix, by what was offered."""
    for result in results:
        mix = result["mix"]
        with panels(directory / f"overload-{mix}.svg", 1, 2) as (goodput, tail):
            for name, (label, colour, form) in LINES.items():
                rows = [
                    row
                    for row in result["rows"]
                    if row["dispatcher"] == name and "bursts" not in row["offer"]
                ]
                offered = [row["offered"] for row in rows]
                goodput.plot(
                    offered, [row["in_budget"] for row in rows], form, color=colour, label=label
                )
                p99 = [math.nan if row["p99_ms"] is None else row["p99_ms"] for row in rows]
                tail.plot(offered, p99, form, color=colour, label=label)
            most = max(row["in_budget"] for row in result["rows"]) * 1.15
            goodput.plot([0, most], [0, most], ":", color=INK, linewidth=1)
            goodput.annotate(
                "all that is offered", (most, most), ha="right", va="bottom", fontsize=8
            )
            goodput.set_title(f"{mix} mix: answers within budget, a second; more is better")
            tail.set_title("99th percentile of the latency, ms; less is better")
            tail.set_yscale("log")
            tail.yaxis.set_major_formatter("{x:,g}")
            tail.axhspan(*BUDGETS_MS[mix], color=INK, alpha=0.12, linewidth=0)
            tail.annotate(
                "budgets",
                (0.98, BUDGETS_MS[mix][0]),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                fontsize=8,
            )
            for axes in (goodput, tail):
                axes.set_xlabel("offered, jobs a second")
                axes.xaxis.set_major_formatter("{x:,.0f}")
                axes.grid(visible=True)
            goodput.yaxis.set_major_formatter("{x:,.0f}")
            drawing = goodput.get_figure()
            assert drawing is not None
            drawing.legend(
                *goodput.get_legend_handles_labels(), ncols=5, loc="outside lower center"
            )


def results_of(name: str, parameters: tuple[str, ...]) -> Iterator[tuple[int, float]]:
    """Give when each commit was made, and what asv has of it, for one set of parameters."""
    for file in RESULTS.glob("*-py3.11.json"):
        kept = json.loads(file.read_text(encoding="utf-8"))
        if name not in kept["results"]:
            continue
        row = dict(zip(kept["result_columns"], kept["results"][name], strict=False))
        combinations = list(itertools.product(*row["params"]))
        if row["result"] is None or parameters not in combinations:
            continue
        value = row["result"][combinations.index(parameters)]
        if value is not None and not math.isnan(value):
            yield kept["date"], value


def draw_history(directory: Path) -> None:
    """Draw what asv keeps, commit by commit."""
    with panels(directory / "history.svg", 2, 2) as grid:
        for axes, (title, (name, lines)) in zip(grid, HISTORY.items(), strict=True):
            seen = {label: sorted(results_of(name, each)) for label, each in lines.items()}
            commits = sorted({date for points in seen.values() for date, _ in points})
            for label, points in seen.items():
                axes.plot(
                    [commits.index(date) for date, _ in points],
                    [value for _, value in points],
                    "o-",
                    label=label,
                )
            axes.set_title(f"{title}; less is better")
            axes.set_xticks([])
            axes.set_xlabel("commits, the latest last")
            axes.set_ylim(0, 1.15 * max(value for points in seen.values() for _, value in points))
            axes.grid(visible=True, axis="y")
            if len(lines) > 1:
                axes.legend(fontsize=8, ncols=3)


def main() -> None:
    """Draw one of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("overload", "history"))
    parser.add_argument("file", type=Path, nargs="?", help="what overload.py has written")
    parser.add_argument("--write", type=Path, default=DOCS / "images", metavar="DIRECTORY")
    options = parser.parse_args()
    if options.what == "history":
        draw_history(options.write)
    elif options.file is None:
        parser.error("overload needs the file that overload.py --json has written")
    else:
        draw_overload(json.loads(options.file.read_text(encoding="utf-8")), options.write)


if __name__ == "__main__":
    main()
