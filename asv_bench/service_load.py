"""What becomes of HTTP requests to docs/examples/service.py, with a router and without one.

``python service_load.py``. The service is a process of its own; the load comes from this one, each
request when it is due, whatever has become of those before (an open loop). Clients give up after a
second, and don't come back.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import gc
import http.client
import json
import math
import random
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from tables import markdown

from helixnb.workload import bursty, poisson
from helixnb_kernels import Kernel, warm_up

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
SERVICES = {"router": (), "naive": ("--naive",)}
FACTORS = (0.5, 1.0, 2.0, 4.0)
PEAK = 4.0
BURSTS = f"1x, bursts of {PEAK:g}x"
BUDGET_S = {"/price": 0.050, "/score": 0.010}
PRICES = 2 / 3
"""The share of requests that go to /price."""

PAIRS = (200_000, 600_000)
"""How many pairs of paths a price takes: from and to, all alike often."""

PATIENCE_S = 1.0
WARM_UP_S = 2.0
CLIENTS = 4
"""How many clients measure the capacity, each with one request under way: two a CPU here, since
a router would drop prices for more."""

QUESTIONS = 64
"""How many different requests there are to an endpoint: their answers are known."""

HEADINGS = (
    *("offered", "service", "endpoint", "offered/s", "in budget/s", "p50 ms", "p95 ms", "p99 ms"),
    *("503/s", "with Retry-After", "503 p99 ms", "given up/s", "errors"),
)


@dataclass(frozen=True, slots=True)
class Question:
    """A request, and the answer to it."""

    endpoint: str
    sent: bytes
    expected: dict[str, float]


@dataclass(slots=True)
class Answer:
    """What became of a request.

    Attributes
    ----------
    endpoint
        Where it went.
    due_s
        When it was to be sent.
    sent_s, ended_s
        When it was, and when its answer was there or nobody waited for it any more.
    status
        The answer's; 0 if there was none in time, -1 if the connection broke, -2 if it was wrong.
    retry_after
        Whether it said when to come back.
    """

    endpoint: str
    due_s: float
    sent_s: float = math.inf
    ended_s: float = math.inf
    status: int = 0
    retry_after: bool = False

    @property
    def latency_s(self) -> float:
        """From when it was due; infinite if there was no answer."""
        return self.ended_s - self.due_s if self.status > 0 else math.inf


@dataclass(slots=True)
class Run:
    """The requests that were due in the measured time, and the CPUs taken in it."""

    seconds: float
    answers: list[Answer] = field(default_factory=list)
    load_cpu: float = 0.0
    service_cpu: float = 0.0
    all_cpu: float = 0.0


def questions(seed: int) -> dict[str, list[Question]]:
    """Make the requests, and work their answers out."""
    sys.path.insert(0, str(EXAMPLES))
    from service import FEATURES, KERNELS  # type: ignore[import-not-found]

    price, score = KERNELS
    warm_up(KERNELS)
    draw = random.Random(seed)
    made: dict[str, list[Question]] = {"/price": [], "/score": []}
    for i in range(QUESTIONS):
        option = {
            "spot": 100.0,
            "strike": draw.uniform(80.0, 120.0),
            "rate": 0.02,
            "volatility": draw.uniform(0.1, 0.4),
            "maturity": draw.uniform(0.1, 2.0),
        }
        pairs = PAIRS[0] + (PAIRS[1] - PAIRS[0]) * i // (QUESTIONS - 1)
        mean, error = _run(price, [*option.values()], pairs, i)
        made["/price"].append(
            _question(
                "/price",
                {**option, "pairs": pairs, "seed": i},
                {"price": float(mean), "standard_error": float(error)},
            )
        )
        row = [draw.gauss(0.0, 1.0) for _ in range(FEATURES)]
        made["/score"].append(
            _question("/score", {"features": row}, {"score": _run(score, row, FEATURES, 0)})
        )
    return made


def _run(kernel: Kernel, inputs: Sequence[float], cost: int, seed: int) -> Any:
    return kernel.solo_call(kernel.as_inputs(inputs), cost, seed)()


def _question(endpoint: str, body: dict[str, Any], expected: dict[str, float]) -> Question:
    content = json.dumps(body).encode()
    head = (
        f"POST {endpoint} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return Question(endpoint, head.encode() + content, expected)


class Clients:
    """Connections that are kept: who asks takes one that is idle, or makes one more."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, question: Question, answer: Answer) -> None:
        """Send a request and note what becomes of it."""
        writer = None
        try:
            async with asyncio.timeout_at(answer.due_s + PATIENCE_S):
                while self._idle:
                    reader, writer = self._idle.pop()
                    if not reader.at_eof():  # the service closes what is idle for long
                        break
                    writer.close()
                else:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.write(question.sent)
                answer.sent_s = time.monotonic()
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].partition(b"\r")[0])
                content = await reader.readexactly(length)
        except TimeoutError:
            answer.status = 0
        except (OSError, asyncio.IncompleteReadError):
            answer.status = -1
        else:
            answer.ended_s = time.monotonic()
            answer.status = int(head[9:12])
            answer.retry_after = b"\r\nretry-after:" in head
            if answer.status == 200 and json.loads(content) != question.expected:
                answer.status = -2
            self._idle.append((reader, writer))
            return
        answer.ended_s = time.monotonic()
        if writer is not None:
            writer.transport.abort()

    def close(self) -> None:
        """Close all connections."""
        for _, writer in self._idle:
            writer.transport.abort()


def draws(asked: dict[str, list[Question]], seed: int) -> Iterator[Question]:
    """Give requests without end, the same for the same seed."""
    draw = random.Random(seed)
    while True:
        endpoint = "/price" if draw.random() < PRICES else "/score"
        yield draw.choice(asked[endpoint])


async def find_capacity(port: int, asked: dict[str, list[Question]], seconds: float) -> float:
    """Return how many requests a second are answered to clients that wait for each answer.

    By the prices alone: were some dropped, all that is answered would be another mix.
    """
    clients = Clients(port)
    chosen = draws(asked, 1)
    begun_s = time.monotonic() + WARM_UP_S
    answered = 0

    async def client() -> None:
        nonlocal answered
        while (now_s := time.monotonic()) < begun_s + seconds:
            question = next(chosen)
            answer = Answer(question.endpoint, now_s)
            await clients.ask(question, answer)
            if begun_s <= answer.ended_s < begun_s + seconds and question.endpoint == "/price":
                answered += answer.status == 200

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    clients.close()
    return answered / PRICES / seconds


async def offer(
    port: int,
    service: psutil.Process,
    asked: dict[str, list[Question]],
    arrivals: Iterator[float],
    seconds: float,
    seed: int,
) -> Run:
    """Send requests when they are due, and note what becomes of them."""
    clients = Clients(port)
    chosen = draws(asked, seed)
    run = Run(seconds)
    tasks = set()
    start_s = time.monotonic() + 0.1
    begun_s = start_s + WARM_UP_S
    cpu_s: list[tuple[float, float, float]] = []
    for arrival_s in arrivals:
        due_s = start_s + arrival_s
        if due_s >= begun_s + seconds:
            break
        if (wait_s := due_s - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)
        question = next(chosen)
        answer = Answer(question.endpoint, due_s)
        if due_s >= begun_s:
            if not cpu_s:
                cpu_s.append(_cpu_s(service))
            run.answers.append(answer)
        task = asyncio.create_task(clients.ask(question, answer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    cpu_s.append(_cpu_s(service))
    run.load_cpu, run.service_cpu, run.all_cpu = (
        (after - before) / seconds for before, after in zip(*cpu_s, strict=True)
    )
    await asyncio.gather(*tasks)
    clients.close()
    return run


def _cpu_s(service: psutil.Process) -> tuple[float, float, float]:
    used = service.cpu_times()
    of_all = psutil.cpu_times()
    return time.process_time(), used.user + used.system, of_all.user + of_all.nice + of_all.system


@contextlib.contextmanager
def served(name: str) -> Iterator[tuple[int, psutil.Process]]:
    """Run a service meanwhile; one with a router must end cleanly."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    command = [sys.executable, str(EXAMPLES / "service.py"), f"--port={port}", *SERVICES[name]]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            for _ in range(600):
                if process.poll() is not None or _is_ready(port):
                    break
                time.sleep(0.1)
            yield port, psutil.Process(process.pid)
        finally:
            process.terminate()
            try:
                _, said = process.communicate(timeout=20)
            except subprocess.TimeoutExpired:  # threads end what is queued for them
                process.kill()
                _, said = process.communicate()
        if name == "router" and process.returncode:
            raise SystemExit(f"the service ended with {process.returncode}:\n{said}")


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def quantile(latencies_s: Iterable[float], share: float) -> str:
    """Write a quantile in milliseconds; of who gave up it is only known that it is more."""
    ordered = sorted(latencies_s)
    if not ordered:
        return "-"
    found = ordered[math.ceil(share * len(ordered)) - 1]
    return f"{found * 1e3:,.1f}" if math.isfinite(found) else f"> {PATIENCE_S * 1e3:,.0f}"


def cells(offered: str, name: str, endpoint: str, run: Run) -> tuple[str, ...]:
    """Return the cells of a row."""
    mine = [each for each in run.answers if each.endpoint == endpoint]
    by_status = Counter(each.status for each in mine)
    in_budget = sum(each.status == 200 and each.latency_s <= BUDGET_S[endpoint] for each in mine)
    waited = [each.latency_s for each in mine if each.status != 503]
    refused = [each for each in mine if each.status == 503]
    told = sum(each.retry_after for each in refused)
    errors = len(mine) - by_status[200] - by_status[503] - by_status[0]

    def rate(count: int) -> str:
        return f"{count / run.seconds:,.1f}"

    return (
        *(offered, name, endpoint, rate(len(mine)), rate(in_budget)),
        *(quantile(waited, share) for share in (0.50, 0.95, 0.99)),
        *(rate(len(refused)), f"{told / len(refused):.0%}" if refused else "-"),
        *(quantile((each.latency_s for each in refused), 0.99), rate(by_status[0]), str(errors)),
    )


def say(text: str) -> None:
    """Say how far it is, beside what is printed."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="measured time (%(default)s)")
    parser.add_argument("--factors", nargs="+", type=float, default=FACTORS, help="%(default)s")
    parser.add_argument("--no-bursts", action="store_true", help="leave the last row out")
    parser.add_argument("--capacity", type=float, help="what 1x is; by default it is measured")
    parser.add_argument("--seed", type=int, default=1, help="of requests and times (%(default)s)")
    parser.add_argument("--json", type=Path, help="write all answers to a file too")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # the services inherit it
    asked = questions(options.seed)
    gc.collect()
    gc.freeze()
    capacity = options.capacity
    found = {}
    if capacity is None:
        for name in SERVICES:
            with served(name) as (port, _):
                found[name] = asyncio.run(find_capacity(port, asked, options.seconds))
            say(f"capacity, {name}: {found[name]:,.1f}/s")
        capacity = max(found.values())
    loads = {f"{factor:g}x": partial(poisson, factor * capacity) for factor in options.factors}
    if not options.no_bursts:
        loads[BURSTS] = partial(bursty, capacity, peak=PEAK)
    runs: dict[tuple[str, str], Run] = {}
    for i, (load, arrivals) in enumerate(loads.items()):
        for name in list(SERVICES)[:: -1 if i % 2 else 1]:
            with served(name) as (port, process):
                due = arrivals(options.seed)
                runs[load, name] = asyncio.run(
                    offer(port, process, asked, due, options.seconds, options.seed)
                )
            say(f"{load}, {name}: done")
    rows = [
        cells(load, name, endpoint, runs[load, name])
        for load in loads
        for name in SERVICES
        for endpoint in BUDGET_S
    ]
    print(markdown(HEADINGS, rows, (0, 1, 2)))
    of_both = ", ".join(f"{name} {rate:,.0f}" for name, rate in found.items()) or "given"
    print(
        f"\nCapacity: {capacity:,.0f} answers/s ({of_both}), of {CLIENTS} clients that wait for "
        f"each answer. Latencies count from when a request was due, 503s apart; clients give up "
        f"after {PATIENCE_S:g} s. {options.seconds:g} s of arrivals after {WARM_UP_S:g} s that "
        f"don't count. Every answer was compared with the kernel's."
    )
    used = [
        (
            load,
            name,
            f"{run.service_cpu:.2f}",
            f"{run.load_cpu:.2f}",
            f"{max(0.0, run.all_cpu - run.service_cpu - run.load_cpu):.2f}",
            f"{statistics.quantiles(_lateness_ms(run), n=100)[49]:.2f}",
            f"{statistics.quantiles(_lateness_ms(run), n=100)[98]:.2f}",
        )
        for (load, name), run in runs.items()
    ]
    headings = (
        *("offered", "service", "its CPUs", "the load's", "others'", "sent late, p50 ms", "p99 ms"),
    )
    print(f"\n{markdown(headings, used, (0, 1))}")
    if options.json is not None:
        everything = [
            {"offered": load, "service": name, **dataclasses.asdict(run)}
            for (load, name), run in runs.items()
        ]
        options.json.write_text(json.dumps(everything))


def _lateness_ms(run: Run) -> list[float]:
    """Return by how much requests were sent later than they were due; some weren't at all."""
    late = (each.sent_s - each.due_s for each in run.answers)
    return [min(each, PATIENCE_S) * 1e3 for each in late]


if __name__ == "__main__":
    main()
