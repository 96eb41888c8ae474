"""What the documentation says of the code, where the code can say it too."""

from __future__ import annotations

from pathlib import Path

from helixnb import METRICS

DOCS = Path(__file__).parents[1] / "docs"


def metrics_table() -> str:
    """Return the table of metrics, as it stands in the documentation."""
    rows = ["| name | instrument | unit | attributes | |", "|---|---|---|---|---|"]
    for metric in METRICS:
        attributes = ", ".join(f"`{name}`" for name in metric.attributes)
        instrument = metric.instrument.replace("_", " ").replace("up down", "up-down")
        rows.append(
            f"| `{metric.name}` | {instrument} | `{metric.unit}` | {attributes} "
            f"| {metric.description} |"
        )
    return "\n".join(rows)


def test_the_table_of_metrics() -> None:
    text = (DOCS / "observability.md").read_text(encoding="utf-8")
    assert f"-->\n{metrics_table()}\n<!-- end -->" in text
