"""What the documentation says of the code, where the code can say it too."""

from __future__ import annotations

import re
from pathlib import Path

import helixnb
from helixnb import METRICS, Strategy
from helixnb._core.rules import DECISIONS

DOCS = Path(__file__).parents[1] / "docs"
SOURCES = Path(helixnb.__file__).parent


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


def test_the_table_of_reasons() -> None:
    """All that the policies give, and all that the router changes a decision for."""
    text = (DOCS / "reasons.md").read_text(encoding="utf-8")
    documented = {
        reason: set(strategies.split(", "))
        for reason, strategies in re.findall(r"^\| `(\w+)` \| ([\w, ]+) \|", text, re.MULTILINE)
    }
    decided: dict[str, set[str]] = {}
    for decision in DECISIONS:
        decided.setdefault(decision.reason, set()).add(decision.strategy.value)
    changed = set()
    for path in SOURCES.rglob("*.py"):
        code = path.read_text(encoding="utf-8")
        changed |= set(re.findall(r'reroute\([^"()]*(?:\([^()]*\))?[^"()]*"(\w+)"', code))
    assert {"expired", "in_columns", "spawn_saturated", "queue_full"} <= changed
    assert set(documented) == decided.keys() | changed
    for reason, strategies in decided.items():
        assert documented[reason] == strategies
    assert all(each in set(Strategy) for strategies in documented.values() for each in strategies)
