"""What the documentation says of the code, where the code can say it too."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from pathlib import Path

import pytest
from support import debian

import helixnb
from helixnb import METRICS, ConfigError, RouterConfig, Strategy
from helixnb._core.rules import DECISIONS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("**/*.md"))]
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
    text = (DOCS / "reference" / "metrics.md").read_text(encoding="utf-8")
    assert f"-->\n{metrics_table()}\n<!-- end -->" in text


def test_the_table_of_reasons() -> None:
    """All that the policies give, and all that the router changes a decision for."""
    text = (DOCS / "reference" / "reasons.md").read_text(encoding="utf-8")
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


def settings() -> list[tuple[str, str, str]]:
    """Return what the table of settings says: names, defaults, and allowed numbers."""
    text = (DOCS / "reference" / "settings.md").read_text(encoding="utf-8")
    table = text.partition("-->\n")[2].partition("<!-- end -->")[0]
    return re.findall(r"^\| `(\w+)` \| `(.+?)` \| ([\d. e]*)\| ", table, re.MULTILINE)


def test_the_table_of_settings() -> None:
    """Every setting is in it, in order, with its default."""
    defaults = []
    for field in dataclasses.fields(RouterConfig):
        if field.default_factory is not dataclasses.MISSING:
            defaults.append((field.name, f"{field.default_factory.__name__}()"))  # type: ignore[attr-defined]
        else:
            defaults.append((field.name, repr(field.default)))
    assert [(name, default) for name, default, _ in settings()] == defaults


@pytest.mark.parametrize(("name", "default", "allowed"), [each for each in settings() if each[2]])
def test_what_settings_allow(name: str, default: str, allowed: str) -> None:
    """The ends of each range are allowed, and nothing beyond them is."""
    least, _, most = allowed.partition("..")
    number = int if "." not in default and default != "None" else float
    config = RouterConfig(cpu_parallelism=2, inline_max_cost=0)
    if name == "backpressure_busy_threshold":
        number = int
    low = number(float(least))
    assert getattr(config.replace(**{name: low}), name) == low
    with pytest.raises(ConfigError, match=name):
        config.replace(**{name: low - 1 if number is int else low - 1e-4})
    if most.strip():
        high = number(float(most))
        assert getattr(config.replace(**{name: high}), name) == high
        with pytest.raises(ConfigError, match=name):
            config.replace(**{name: high * 1.001})


def test_what_is_for_prometheus(tmp_path: Path) -> None:
    """Its own tool accepts the settings and the queries for a dashboard."""
    promtool = debian("promtool", "prometheus")
    text = (DOCS / "guide" / "observability.md").read_text(encoding="utf-8")
    (settings,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "prometheus.yml").write_text(settings)
    queries = re.findall(r"^\| [\w ,]+ \| `([^`]*helixnb_[^`]*)` \|$", text, re.MULTILINE)
    assert len(queries) == 8
    rules = [{"record": f"query:{i}", "expr": query} for i, query in enumerate(queries)]
    groups = {"groups": [{"name": "queries", "rules": rules}]}  # JSON is YAML
    (tmp_path / "rules.yml").write_text(json.dumps(groups))
    for what, file in (("config", "prometheus.yml"), ("rules", "rules.yml")):
        done = subprocess.run(
            [promtool, "check", what, file],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_commands_that_are_named_exist() -> None:
    """Each `make` of the documentation is a target of the Makefile."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        name
        for page in PAGES
        for name in re.findall(r"(?:`|\$ )make ([a-z-]+)", page.read_text(encoding="utf-8"))
    }
    assert {"demo", "test", "docs"} <= named
    assert named <= targets


def test_links_of_the_readme_lead_somewhere() -> None:
    """The site's own links are looked at where it is built."""
    links = re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(links) > 10
    assert not [link for link in links if not (ROOT / link).is_file()]


def test_the_picture_of_the_decision() -> None:
    """Its boxes are decisions of the adaptive policy."""
    picture = (DOCS / "images" / "decision.svg").read_text(encoding="utf-8")
    boxes = re.findall(r">(\w+)</text>\n<text [^>]*monospace[^>]*>(\w+)</text>", picture)
    assert len(boxes) == 8
    assert set(boxes) <= {(each.strategy.value, each.reason) for each in DECISIONS}
