"""``python -m helixnb``, as a user starts it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support import python

from helixnb import Strategy
from helixnb.__main__ import main

pytestmark = pytest.mark.slow


def test_the_summary_adds_up() -> None:
    """The light mix uses every strategy, and the printed counts add up."""
    done = python("-P", "-m", "helixnb", "--jobs", "20000")
    assert done.returncode == 0, done.stderr
    line = re.search(
        r"([\d,]+) submitted = ([\d,]+) completed \+ ([\d,]+) dropped \+ ([\d,]+) failed"
        r" \+ ([\d,]+) cancelled",
        done.stdout,
    )
    assert line is not None, done.stdout
    submitted, *ended = (int(count.replace(",", "")) for count in line.groups())
    assert submitted == sum(ended) == 20_000
    rows = {
        cells[0]: int(cells[2].replace(",", ""))
        for row in done.stdout.splitlines()
        if len(cells := [cell.strip() for cell in row.strip("│┃ ").split("│")]) == 9
    }
    assert set(rows) == {strategy.value for strategy in Strategy}
    assert sum(rows.values()) == 20_000
    assert min(rows.values()) > 0


def test_json() -> None:
    """--json prints one object, the stats, and nothing else."""
    done = python("-P", "-m", "helixnb", "--jobs", "300", "--rate", "5000", "--json")
    assert done.returncode == 0, done.stderr
    stats = json.loads(done.stdout)
    assert stats["submitted"] == 300
    ended = [stats[status] for status in ("completed", "dropped", "failed", "cancelled")]
    assert sum(ended) == 300
    assert done.stderr == ""


def test_a_file_of_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--file runs the jobs of a file; a wrong one ends with status 2 and says why."""
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"id": 1, "kind": "PrimeCount", "compute_cost": 5000}\n' * 3)
    assert main(["--file", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["completed"] == 3
    path.write_text('{"id": 1}')
    assert main(["--file", str(path)]) == 2
    assert "line 1: a job needs the field" in capsys.readouterr().err
    assert main(["--file", str(tmp_path / "none")]) == 2
    assert "No such file" in capsys.readouterr().err
    path.write_text('{"id": 1, "kind": "Nope", "compute_cost": 1}')
    assert main(["--file", str(path), "--json"]) == 2
    assert "kind must be one of HashMix" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jobs", "-1"], "must be 0 or more, got -1"),
        (["--rate", "0"], "must be more than 0, got 0"),
        (["--rate", "nan"], "must be more than 0, got nan"),
        (["--jobs", "many"], "invalid _whole value: 'many'"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What can't be is refused with the value and what is allowed."""
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


def test_without_rich() -> None:
    """Where rich isn't installed, the demo says how to get it, and --json works."""
    program = """
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "rich" else find_spec(name, *rest)
sys.modules["rich"] = None
from helixnb.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
    done = python("-P", "-c", program, "--jobs", "1")
    assert done.returncode == 2
    assert "pip install 'helixnb[demo]'" in done.stderr
    assert python("-P", "-c", program, "--jobs", "1", "--json").returncode == 0


def test_no_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    """A run of no jobs has a summary too."""
    assert main(["--jobs", "0"]) == 0
    assert "0 submitted = 0 completed" in capsys.readouterr().out
