"""The application behind a real server, beside a router that works."""

from __future__ import annotations

import os
import resource
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import anyio
import anyio.lowlevel
import httpx
import pytest
from support import check_balanced, job, router

from helixnb import Router
from helixnb.web._serve import MOST_CONNECTIONS, listen, serve

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]


def client(url: str) -> httpx.AsyncClient:
    """Make a client for plain HTTP: reading the certificates of authorities takes 0.1 s."""
    return httpx.AsyncClient(base_url=url, timeout=20, verify=False)


@asynccontextmanager
async def served(r: Router) -> AsyncIterator[str]:
    """Serve a router while it runs one job after the other, until Ctrl-C at the end."""
    urls: list[str] = []
    listening = anyio.Event()

    def note(url: str) -> None:
        urls.append(url)
        listening.set()

    async def work() -> None:
        while True:
            await r.submit(job())
            await anyio.lowlevel.checkpoint()

    async def run() -> None:
        with listen("127.0.0.1", 0) as listener:
            await serve(r, listener, "127.0.0.1", work, allow_reconfigure=False, on_listening=note)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await listening.wait()
            yield urls[0]
            signal.raise_signal(signal.SIGINT)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def address_of(url: str) -> tuple[str, int]:
    found = httpx.URL(url)
    assert found.port is not None
    return found.host, found.port


@pytest.mark.parametrize(
    "said", [b"", b"GET / HT", b"GET /api/decisions HTTP/1.1\r\nHost: localhost\r\n\r\n"]
)
async def test_a_thousand_connections(said: bytes) -> None:
    """Idle, half asked or never read: the router goes on, and there is room for who asks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        async with router() as r, served(r) as url:
            files = open_files()
            with ExitStack() as stack:

                def hoard() -> None:
                    for _ in range(1_000):
                        held = stack.enter_context(socket.create_connection(address_of(url)))
                        held.sendall(said)

                await anyio.to_thread.run_sync(hoard)
                before = r.stats().submitted
                async with client(url) as web:
                    assert (await web.get("/health")).json() == {"state": "open"}
                    stats = (await web.get("/api/stats")).json()
                assert stats["completed"] > 0
                assert r.stats().submitted > before
                assert open_files() - files <= 1_000 + MOST_CONNECTIONS + 10
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    check_balanced(r.stats())


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:1234", 200),
        ("127.0.0.1", 200),
        ("[::1]:8000", 200),
        ("evil.example", 400),
        ("localhost.evil.example", 400),
        ("127.0.0.1.evil.example:8000", 400),
        ("evil@localhost", 400),
        ("", 400),
    ],
)
async def test_names_that_lead_here(host: str, status: int) -> None:
    """On loopback only its own names are served: another one is bent by somebody."""
    async with router() as r, served(r) as url, client(url) as web:
        for path in ("/", "/api/stats", "/metrics"):
            assert (await web.get(path, headers={"host": host})).status_code == status
