"""What it costs a router to be watched: jobs a second and p99, beside those of nobody watching.

``python watchers.py``. Router and server share an event loop; who watches is another process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import uvicorn
from tables import markdown

from helixnb import Router
from helixnb.web import create_app
from helixnb.workload import closed_loop, light_mix

WATCHERS = ("nobody", "1 page", "50 pages", "1 that never reads", "1,000 idle connections")
CLIENTS = 32
REQUEST = "GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def read_answer(reader: asyncio.StreamReader) -> None:
    """Read one answer of known length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
    )
    await reader.readexactly(int(length.split(b":")[1]))


async def page(port: int) -> None:
    """Do what the page does: follow the decisions, and ask for stats every second."""

    async def follow() -> None:
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(REQUEST.format("/api/decisions").encode())
            while await reader.read(65_536):
                pass

    async def ask() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while True:
            writer.write(REQUEST.format("/api/stats").encode())
            await read_answer(reader)
            await asyncio.sleep(1.0)

    await asyncio.gather(follow(), ask())


async def never_read(port: int) -> None:
    """Ask for the decisions, and take none."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
    writer.write(REQUEST.format("/api/decisions").encode())
    await asyncio.sleep(3_600)


async def idle(port: int) -> None:
    """Connect, and say nothing."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    await asyncio.sleep(3_600)
    writer.close()


WATCH: dict[str, tuple[int, Callable[[int], Awaitable[None]]]] = {
    "1 page": (1, page),
    "50 pages": (50, page),
    "1 that never reads": (1, never_read),
    "1,000 idle connections": (1_000, idle),
}


async def watch(kind: str, port: int) -> None:
    """Watch a server from this process, until it is killed."""
    count, one = WATCH[kind]
    watching = [asyncio.ensure_future(one(port)) for _ in range(count)]
    await asyncio.sleep(0.5)
    print("watching", flush=True)
    await asyncio.gather(*watching)


@contextlib.asynccontextmanager
async def watched(kind: str, port: int) -> AsyncIterator[None]:
    """Let another process watch meanwhile."""
    if kind not in WATCH:
        yield
        return
    process = await anyio.open_process(
        [sys.executable, __file__, "--watch", kind, "--port", str(port)], stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    try:
        await process.stdout.receive()
        yield
    finally:
        process.kill()
        await process.aclose()


async def measure(kind: str, jobs: int) -> tuple[float, float]:
    """Return jobs a second and p99 in milliseconds of one run."""
    latencies_ms: list[float] = []
    note = latencies_ms.append
    async with Router() as router:
        config = uvicorn.Config(
            create_app(router), port=0, log_level="error", access_log=False, lifespan="off"
        )
        server = uvicorn.Server(config)
        serving = asyncio.ensure_future(server._serve())  # noqa: SLF001  # leaves signals alone
        while not server.started:  # noqa: ASYNC110  # it says so in no other way
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with watched(kind, port):
            mix = light_mix(jobs, 1)
            began = time.perf_counter()
            await closed_loop(
                router, mix, clients=CLIENTS, on_outcome=lambda each: note(each.latency_ms)
            )
            taken = time.perf_counter() - began
        server.should_exit = server.force_exit = True
        await serving
    return jobs / taken, statistics.quantiles(latencies_ms, n=100)[98]


def main() -> None:
    """Measure all kinds of watchers in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=100_000, help="jobs of a run")
    parser.add_argument("--watch", choices=WATCH, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.watch:
        asyncio.run(watch(arguments.watch, arguments.port))
        return
    runs: dict[str, list[tuple[float, float]]] = {kind: [] for kind in WATCHERS}
    for _ in range(arguments.rounds):
        for kind in WATCHERS:
            runs[kind].append(asyncio.run(measure(kind, arguments.jobs)))
    rows = []
    for kind in WATCHERS:
        rate, p99_ms = (statistics.median(figures) for figures in zip(*runs[kind], strict=True))
        ratio, p99_ratio = (
            statistics.median(mine / theirs for mine, theirs in zip(*pair, strict=True))
            for pair in zip(
                zip(*runs[kind], strict=True), zip(*runs["nobody"], strict=True), strict=True
            )
        )
        rows.append((kind, f"{rate:,.0f}", f"{ratio:.3f}", f"{p99_ms:.2f}", f"{p99_ratio:.2f}"))
    print(markdown(("watched by", "jobs/s", "to nobody", "p99, ms", "to nobody"), rows))


if __name__ == "__main__":
    main()
