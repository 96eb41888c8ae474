"""``python -m helixnb``, as a user starts it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
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
        (["--jobs", "5", "--web"], "--jobs and --web don't go together"),
        (["--jobs", "5", "--file", "x"], "--jobs and --file don't go together"),
        (["--port", "8000"], "--port is an option of --web"),
        (["--port", "0"], "--port is an option of --web"),
        (["--host", "localhost"], "--host is an option of --web"),
        (["--allow-reconfigure"], "--allow-reconfigure is an option of --web"),
        (["--web", "--port", "65536"], "must lie in 0 .. 65535, got 65536"),
        (["--web", "--port", "-1"], "must lie in 0 .. 65535, got -1"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What can't be is refused with the value and what is allowed."""
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


def without(module: str, *runs: str) -> tuple[list[int], list[str]]:
    """Run the demo where a module isn't installed; return its statuses, and what it said."""
    program = f"""
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == {module!r} else find(name, *rest)
sys.modules[{module!r}] = None
from helixnb.__main__ import main
print(*[main(run.split()) for run in sys.argv[1:]], sep="\\n")
"""
    done = python("-P", "-c", program, *runs)
    assert done.returncode == 0, done.stderr
    count = len(runs)
    return [int(line) for line in done.stdout.splitlines()[-count:]], done.stderr.splitlines()


def test_without_rich() -> None:
    """Where rich isn't installed, the demo says how to get it, and --json works."""
    statuses, said = without("rich", "--jobs 1", "--jobs 1 --json", "--web")
    assert statuses == [2, 0, 2]
    assert len(said) == 2
    assert "pip install 'helixnb[demo]'" in said[0]
    assert "pip install 'helixnb[web,demo]'" in said[1]


@pytest.mark.parametrize("module", ["uvicorn", "starlette", "prometheus_client"])
def test_without_what_serves(module: str) -> None:
    """Where a module of the extra isn't installed, --web says how to get it; the rest works."""
    statuses, said = without(module, "--web --json", "--jobs 1 --json")
    assert statuses == [2, 0]
    assert len(said) == 1
    assert "pip install 'helixnb[web,demo]'" in said[0]


@contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the demo with --web, and give it and its URL."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-P", "-m", "helixnb", "--web", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        try:
            assert demo.stderr is not None
            line = demo.stderr.readline()
            found = re.fullmatch(r"helixnb: (http://\S+:\d+/) \(Ctrl-C ends it\)\n", line)
            assert found is not None, line + demo.stderr.read()
            yield demo, found.group(1)
        finally:
            demo.kill()


def test_web() -> None:
    """The page is served while jobs go on; Ctrl-C ends it with the report, and streams with it."""
    with running() as (demo, url):
        with (
            httpx.Client(base_url=url, timeout=20) as web,
            web.stream("GET", "api/decisions") as stream,
        ):
            lines = (line for line in stream.iter_lines() if line.startswith("data: "))
            first, second = (json.loads(next(lines)[6:]) for _ in range(2))
            assert second["seen"] > first["seen"] > 0
            assert web.get("").headers["content-type"].startswith("text/html")
            assert web.get("api/stats").json()["state"] == "open"
            assert web.patch("api/config", json={"queue_capacity": 9}).status_code == 403
            demo.send_signal(signal.SIGINT)
            for _ in lines:
                pass
        out, err = demo.communicate(timeout=20)
    assert demo.returncode == 0, err
    assert "open loop, 2000 jobs/s" in " ".join(out.split())
    assert " completed + " in out
    assert "Traceback" not in err


def test_web_in_json(tmp_path: Path) -> None:
    """--file runs again and again, SIGTERM ends it as well, and --json has stdout for itself."""
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"id": 1, "kind": "PrimeCount", "compute_cost": 5000}\n')
    with (
        running("--json", "--file", str(path), "--allow-reconfigure") as (demo, url),
        httpx.Client(base_url=url, timeout=20) as web,
    ):
        while web.get("api/stats").json()["completed"] < 2:
            pass
        answer = web.patch("api/config", json={"queue_capacity": 9})
        assert answer.json()["config"]["queue_capacity"] == 9
        # A reader that never reads, and one that has only come.
        address = (httpx.URL(url).host, httpx.URL(url).port or 0)
        with socket.create_connection(address) as stuck, socket.create_connection(address):
            stuck.sendall(b"GET /api/decisions HTTP/1.1\r\nHost: localhost\r\n\r\n")
            demo.send_signal(signal.SIGTERM)
            out, err = demo.communicate(timeout=20)
    assert demo.returncode == 0, err
    assert err == ""
    stats = json.loads(out)
    assert stats["state"] == "closed"
    assert stats["submitted"] == stats["completed"] + stats["dropped"]


def test_where_it_cant_listen(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A port that is taken, a host that isn't, a file without jobs: a message, and status 2."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["--web", "--port", port]) == 2
        assert f"can't listen on 127.0.0.1, port {port}: " in capsys.readouterr().err
    for host in ("nowhere.invalid", "203.0.113.1", "a" * 70, "bad host", "1.2.3.4.5", ""):
        assert main(["--web", "--host", host, "--port", "0"]) == 2
        assert f"can't listen on {host}, port 0: " in capsys.readouterr().err
    path = tmp_path / "none.jsonl"
    path.write_text("\n")
    assert main(["--web", "--file", str(path)]) == 2
    assert "has no jobs" in capsys.readouterr().err


def on_a_terminal(jobs: int) -> tuple[str, str]:
    """Run the demo on a terminal of 80 columns; return what it drew there, and its report."""
    import pty
    import termios

    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 80))
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "helixnb", "--jobs", str(jobs), "--rate", "3000"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "NO_COLOR": "1"},
        text=True,
    ) as demo:
        os.close(theirs)
        drawn = b""
        while True:
            try:
                piece = os.read(ours, 65_536)
            except OSError:  # what Linux says at the end
                break
            if not piece:
                break
            drawn += piece
        out, _ = demo.communicate(timeout=20)
    os.close(ours)
    assert demo.returncode == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", drawn.decode())
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "\n", plain), out


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_the_live_table() -> None:
    """On a terminal of 80 columns a table lives below the bars, and the report comes once."""
    for jobs in (6_000, 24_000, 96_000):  # a busy machine may draw one or none in two seconds
        text, out = on_a_terminal(jobs)
        if text.count("┃ strategy ┃") >= 2:
            break
    lines = [line.strip("\r") for line in text.splitlines()]
    assert max(map(len, lines)) <= 80
    found = re.search(
        r"\d+ of 512 waiting; \d of \d+ slots busy; loop lag .* ms; [\d,]+ jobs/s", text
    )
    assert found is not None, text
    assert text.count("┃ strategy ┃") >= 2
    assert out.count("┃ strategy ┃") == 1
    last = text[text.rindex("running jobs") :]
    assert f"{jobs}/{jobs}" in last
    assert "strategy" not in last
    assert "waiting" not in last


def test_no_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    """A run of no jobs has a summary too."""
    assert main(["--jobs", "0"]) == 0
    assert "0 submitted = 0 completed" in capsys.readouterr().out
