"""Print what telemetry costs a job, as a table in Markdown."""

from __future__ import annotations

from benchmarks.telemetry import VARIANTS, costs
from tables import markdown

JOBS, ROUNDS = 1_000, 41


def main() -> None:
    """Measure each strategy; other programs should rest meanwhile."""
    rows = []
    for strategy in ("inline", "cpu_pool", "batch"):
        measured = costs("asyncio", strategy, JOBS, ROUNDS)
        own = measured["removed"]
        rows.append(
            [
                f"`{strategy}`",
                f"{own:.1f} us",
                *(
                    f"{measured[each]:.1f} us ({measured[each] / own:.2f}x)"
                    for each in VARIANTS[1:]
                ),
            ]
        )
    print(markdown(["", "no telemetry", "API only", "SDK", "SDK, and a span a job"], rows))


if __name__ == "__main__":
    main()
