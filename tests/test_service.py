"""The example of a service: answers, refusals, drops, and how it ends."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import math
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
from scipy import special
from support import EXAMPLES, Always, Gate, check_balanced, numpy_price

from helixnb import Decision, Kernel, Router, RouterConfig, Strategy

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]

OPTION = {"spot": 100.0, "strike": 105.0, "rate": 0.02, "volatility": 0.25, "maturity": 0.5}
PRICE = {**OPTION, "pairs": 5_000, "seed": 3}
ROW = [0.25] * 16
SCORE = {"features": ROW}


@pytest.fixture(scope="module")
def service() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        for name in ("service", "option_pricing", "scoring"):
            patch.delitem(sys.modules, name, raising=False)
        yield importlib.import_module("service")
        for name in ("service", "option_pricing", "scoring"):
            sys.modules.pop(name)


def router_of(service: Any, policy: Any, **settings: Any) -> Router:
    config = RouterConfig(**{"cpu_parallelism": 2, **settings})
    return Router(config, kernels=service.KERNELS, policy=policy)


@asynccontextmanager
async def client(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Ask an application without a server."""
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://service") as web,
    ):
        yield web


@pytest.mark.parametrize("strategy", [Strategy.INLINE, Strategy.SPAWN, Strategy.BATCH, None])
async def test_answers(service: Any, strategy: Strategy | None) -> None:
    """Both endpoints answer as NumPy and SciPy do, on a router and on threads."""
    router = None if strategy is None else router_of(service, Always(strategy))
    async with client(service.create_service(router)) as web:
        price = await web.post("/price", json=PRICE)
        score = await web.post("/score", json=SCORE)
        assert (await web.get("/health")).json() == {"ready": True}
    assert (price.status_code, score.status_code) == (200, 200)
    found = [price.json()["price"], price.json()["standard_error"]]
    np.testing.assert_allclose(found, numpy_price(tuple(OPTION.values()), 5_000, 3), rtol=1e-9)
    expected = special.expit(np.dot(ROW, np.linspace(-1.0, 1.0, 16)) + 0.1)
    np.testing.assert_allclose(score.json()["score"], expected, rtol=1e-9)
    if router is not None:
        check_balanced(router.stats())


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/price", {**PRICE, "spot": 0}, "spot must be a number in 0.01 .. 1,000,000.0"),
        ("/price", {**PRICE, "rate": "0.1"}, "rate must be a number in -0.5 .. 0.5"),
        ("/price", {**PRICE, "maturity": True}, "maturity must be a number in 0.001 .. 50.0"),
        ("/price", {**PRICE, "spot": None}, "spot must be a number in 0.01 .. 1,000,000.0"),
        ("/price", {**PRICE, "pairs": 1.0}, "pairs must be a whole number in 1 .. 10,000,000"),
        ("/price", {**PRICE, "pairs": 10**400}, "pairs must be a whole number in 1 .. 10,000,000"),
        ("/price", {**PRICE, "seed": -1}, "seed must be a whole number in 0 .. 4,294,967,295"),
        ("/price", OPTION, "the body must be a JSON object of spot, strike, rate, "),
        ("/price", {**PRICE, "pears": 1}, "the body must be a JSON object of spot, "),
        ("/score", {"features": ROW[1:]}, "features must be a list of 16 numbers"),
        ("/score", {"features": 16}, "features must be a list of 16 numbers"),
        ("/score", {"features": [*ROW[1:], []]}, "features[15] must be a number in -1,000,000.0"),
        ("/score", ROW, "the body must be a JSON object of features"),
    ],
)
async def test_wrong_input(service: Any, path: str, body: Any, said: str) -> None:
    """What isn't allowed is refused with what is, before a job is made of it."""
    router = router_of(service, Always(Strategy.INLINE))
    async with client(service.create_service(router)) as web:
        answer = await web.post(path, json=body)
        assert answer.status_code == 422
        assert said in answer.json()["error"]
    assert router.stats().submitted == 0


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"\xff", b"[" * 100_000),
        *(json.dumps({"features": [value] * 16}).encode() for value in (math.nan, math.inf)),
    ],
)
async def test_not_json(service: Any, content: bytes) -> None:
    """Nor does it matter how little of a number or of JSON it is."""
    async with client(service.create_service(router_of(service, Always(Strategy.INLINE)))) as web:
        answer = await web.post("/score", content=content)
        assert answer.status_code == 422
        assert (await web.get("/price")).status_code == 405
        assert (await web.get("/nowhere")).status_code == 404


@pytest.mark.parametrize("path", ["/score", "/price"])
@pytest.mark.parametrize("sized", [True, False])
async def test_large_bodies(service: Any, path: str, sized: bool) -> None:
    """They are refused before they are read: by their length, or as soon as they are too long."""
    sent = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1_000):
            sent += 1
            yield b" " * 1_000

    router = router_of(service, Always(Strategy.INLINE))
    async with client(service.create_service(router)) as web:
        length = {"Content-Length": "1000000"} if sized else {}
        answer = await web.post(path, content=pieces(), headers=length)
        assert answer.status_code == 413
        assert answer.json() == {"error": "the body must have at most 131,072 bytes"}
        assert answer.headers["Connection"] == "close"
        assert sent <= (0 if sized else 132)
        for wrong in ("-1", "1e3", "9" * 5_000):
            answer = await web.post(path, content=b"{}", headers={"Content-Length": wrong})
            assert answer.status_code == 413
    assert router.stats().submitted == 0


async def test_an_application_that_starts_twice(service: Any) -> None:
    """As under a test client: each start has a router of its own."""
    for _ in range(2):
        async with client(service.app) as web:
            assert (await web.get("/health")).json() == {"ready": True}
            assert (await web.post("/score", json=SCORE)).status_code == 200
            assert (await web.get("/router/api/stats")).json()["submitted"] == 1


STARTS = {
    "uvicorn": ["-m", "uvicorn", "service:app", "--port=0"],
    "uvicorn --workers": ["-m", "uvicorn", "service:app", "--port=0", "--workers=2"],
    "gunicorn --preload": [
        *("-m", "gunicorn", "service:app", "--preload", "--workers=2", "--bind=127.0.0.1:0"),
        *("--worker-class=uvicorn_worker.UvicornWorker",),
    ],
}
"""How people start an application."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's, and gunicorn is, too")
@pytest.mark.parametrize("command", STARTS.values(), ids=STARTS.keys())
async def test_started_as_services_are(command: list[str]) -> None:
    """It answers, and what is in flight at SIGTERM is answered, too; nothing is left of it."""
    with subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, *command], cwd=EXAMPLES, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            said, started = "", 0
            wanted = 1 if command is STARTS["uvicorn"] else 2
            address = None
            while address is None or started < wanted:
                line = await anyio.to_thread.run_sync(process.stderr.readline)
                assert line, said
                said += line
                found = re.search(r"(?:running on|Listening at:) (http://[\d.]+:\d+)", said)
                address = found[1] if found else None
                started = said.count("Application startup complete")
            async with httpx.AsyncClient(base_url=address, timeout=20) as web:
                assert (await web.get("/health")).json() == {"ready": True}
                for path, body in (("/price", PRICE), ("/score", SCORE)):
                    answered = False
                    while not answered:  # what a busy machine can't do in time is refused
                        status = (await web.post(path, json=body)).status_code
                        assert status in (200, 503)
                        answered = status == 200
                # Longer than the signal takes, and within its budget on a slow machine, or refused.
                asking = asyncio.ensure_future(web.post("/price", json={**PRICE, "pairs": 200_000}))
                await anyio.sleep(0.01)
                process.send_signal(signal.SIGTERM)
                assert (await asking).status_code in (200, 503)
            rest = await anyio.to_thread.run_sync(process.stderr.read)
            # uvicorn ends by the signal that it was sent, when it has shut down.
            assert process.wait(30) in (0, -signal.SIGTERM), said + rest
            assert "Traceback" not in said + rest
            assert (said + rest).count("Application shutdown complete") == wanted
        finally:
            process.kill()


class Drop:
    """A policy that drops every job."""

    def __init__(self, retry_after_s: float | None) -> None:
        self._decision = Decision(Strategy.DROP, "full", retry_after_s)

    def decide(self, *given: Any) -> Decision:
        return self._decision


@pytest.mark.parametrize(
    ("wait_s", "least"), [(0.0, 1), (0.02, 1), (1.0, 1), (1.01, 2), (2.0, 2), (7.5, 8)]
)
async def test_drops_say_when_to_come_back(service: Any, wait_s: float, least: int) -> None:
    """In whole seconds, not too early, and not all in the same one."""
    async with client(service.create_service(router_of(service, Drop(wait_s)))) as web:
        answers = [await web.post("/score", json=SCORE) for _ in range(40)]
    assert {(each.status_code, each.json()["error"]) for each in answers} == {
        (503, "dropped: full")
    }
    told = [each.headers["Retry-After"] for each in answers]
    assert set(told) <= {str(least + extra) for extra in range(service.JITTER_S + 1)}
    assert len(set(told)) > 1


async def test_drops_that_waiting_would_not_help(service: Any) -> None:
    """They don't invite to come back."""
    async with client(service.create_service(router_of(service, Drop(None)))) as web:
        for path, body in (("/price", PRICE), ("/score", SCORE)):
            answer = await web.post(path, json=body)
            assert answer.status_code == 503
            assert "Retry-After" not in answer.headers


async def test_a_price_that_takes_longer_than_its_budget(service: Any) -> None:
    """The default policy learns what a price takes, and refuses what can't be in time."""
    router = router_of(
        service,
        None,
        heed_other_cpu_use=False,
        max_loop_lag_ms=1e6,
        probe_interval_s=1e6,
    )
    async with client(service.create_service(router)) as web:
        for seed in range(40):
            await web.post("/price", json={**PRICE, "seed": seed})
        answer = await web.post("/price", json={**PRICE, "pairs": 10_000_000})
    assert (answer.status_code, answer.json()) == (503, {"error": "dropped: infeasible"})
    assert "Retry-After" not in answer.headers


def in_place_of(kernel: Kernel, solo: Any) -> Kernel:
    """Return a kernel that answers the jobs of another one."""
    other = Kernel(name=kernel.name, solo=solo, inputs="float64[16]", returns="float64")
    other.earlier_digests = (kernel.digest,)
    return other


def fails(*given: Any) -> float:
    raise RuntimeError("a secret")


async def test_a_job_that_fails(service: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Its error is for the log alone."""
    broken = in_place_of(service.score, fails)
    router = Router(RouterConfig(cpu_parallelism=2), kernels=[broken])
    logger = logging.getLogger("uvicorn.error")
    logger.addHandler(caplog.handler)
    try:
        async with client(service.create_service(router)) as web:
            answer = await web.post("/score", json=SCORE)
    finally:
        logger.removeHandler(caplog.handler)
    assert (answer.status_code, answer.json()) == (500, {"error": "the job failed"})
    assert "Retry-After" not in answer.headers
    assert "RuntimeError: a secret" in caplog.text


async def test_the_page_is_mounted(service: Any) -> None:
    async with client(service.create_service(router_of(service, Always(Strategy.INLINE)))) as web:
        await web.post("/score", json=SCORE)
        assert "text/html" in (await web.get("/router/")).headers["content-type"]
        assert (await web.get("/router/api/stats")).json()["completed"] == 1
        assert (await web.get("/router/health")).json() == {"state": "open"}
    async with client(service.create_service()) as web:
        assert (await web.get("/router/")).status_code == 404


async def test_what_is_in_flight_is_answered_at_the_end(service: Any) -> None:
    """The server waits for it, and says meanwhile that nothing more should come."""
    gate = Gate()
    held = in_place_of(service.score, gate.kernel.solo)
    router = Router(RouterConfig(cpu_parallelism=2), kernels=[held], policy=Always(Strategy.SPAWN))
    server = service.Server(router, port=0, notice_s=0.0)
    serving = asyncio.ensure_future(server._serve())  # leaves signals alone
    with anyio.fail_after(30):
        while not server.started:  # noqa: ASYNC110  # it says so in no other way
            await anyio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as web:
            asking = asyncio.ensure_future(web.post("/score", json=SCORE))
            await gate.begun()
            server.app.state.leaving = True
            server.should_exit = True
            while router.is_open:  # noqa: ASYNC110  # likewise
                await anyio.sleep(0.01)
            health = await web.get("/health")
            assert (health.status_code, health.json()) == (503, {"ready": False})
            late = await web.post("/score", json=SCORE)
            assert (late.status_code, late.json()) == (503, {"error": "dropped: router_closed"})
            assert "Retry-After" not in late.headers
            assert {each.headers["Connection"] for each in (health, late)} == {"close"}
            assert not serving.done()
            gate.open()
            assert (await asking).status_code == 200
        await serving
    assert router.state == "closed"
    check_balanced(router.stats())


@pytest.mark.slow
async def test_sigterm_under_load() -> None:
    """Clients that heed /health lose no request, nobody's page holds it up, and it ends with 0."""
    command = [sys.executable, str(EXAMPLES / "service.py"), "--port=0", "--notice=3"]
    statuses: list[int] = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:  # noqa: ASYNC220
        try:
            assert process.stderr is not None
            said = ""
            while (found := re.search(r"running on (\S+)", said)) is None:
                line = await anyio.to_thread.run_sync(process.stderr.readline)
                assert line, said
                said += line
            async with httpx.AsyncClient(base_url=found[1], timeout=20) as web:
                await load_until_not_ready(web, process, statuses)
            rest = await anyio.to_thread.run_sync(process.stderr.read)
            assert process.wait(30) == 0, said + rest
            assert "graceful shutdown exceeded" not in rest
            assert "Traceback" not in rest
        finally:
            process.kill()
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) > 0


async def load_until_not_ready(
    web: httpx.AsyncClient, process: subprocess.Popen[str], statuses: list[int]
) -> None:
    """Ask as fast as answers come, have the service end, and stop when it isn't ready any more."""
    ready = True

    async def ask(path: str, body: Any) -> None:
        while ready:
            statuses.append((await web.post(path, json=body)).status_code)

    async def follow() -> None:
        async with web.stream("GET", "/router/api/decisions") as stream:
            async for _ in stream.aiter_bytes():
                pass

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        for _ in range(4):
            tasks.start_soon(ask, "/price", {**PRICE, "pairs": 100_000})
            tasks.start_soon(ask, "/score", SCORE)
        while len(statuses) < 50:  # noqa: ASYNC110  # several write there
            await anyio.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        while ready:
            ready = (await web.get("/health")).status_code == 200
