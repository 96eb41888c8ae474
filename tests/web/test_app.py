"""The application: what it answers, whatever the router's state and the client's aims."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from fractions import Fraction
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.routing import Mount
from support import Gate, check_balanced, debian, job, router

from helixnb import METRICS, Router, RouterConfig, Watch
from helixnb.web import _app, _feed, create_app

pytestmark = pytest.mark.anyio

JSON = {"content-type": "application/json"}


def client(app: Any, **options: Any) -> httpx.AsyncClient:
    """Return a client of an application, without a server between."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=True)
    return httpx.AsyncClient(transport=transport, base_url="http://test", **options)


async def patch(app: Any, body: Any, headers: dict[str, str] = JSON) -> httpx.Response:
    """Send a change of settings, as it is if it is bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with client(app) as web:
        return await web.patch("/api/config", content=content, headers=headers)


class Reader:
    """Reads a stream of decisions straight from the application, until told to leave."""

    def __init__(self, app: Any, *, stuck: bool = False, **headers: str) -> None:
        self._app = app
        self._stuck = stuck
        self._headers = [
            (name.replace("_", "-").encode(), value.encode("latin-1"))
            for name, value in headers.items()
        ]
        self._left = anyio.Event()
        self.begun = anyio.Event()
        self.ended = anyio.Event()
        self._news = anyio.Event()
        self.status = 0
        self.chunks: list[bytes] = []

    async def run(self) -> None:
        scope = {
            "type": "http",
            "asgi": {"spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "path": "/api/decisions",
            "query_string": b"",
            "headers": self._headers,
        }
        await self._app(scope, self._receive, self._send)
        self.ended.set()

    async def _receive(self) -> dict[str, Any]:
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.status = message.get("status", self.status)
        self.chunks.append(message.get("body", b""))
        if len(self.chunks) == 2:
            self.begun.set()
        self._news.set()
        self._news = anyio.Event()
        if self._stuck and len(self.chunks) > 1:
            await anyio.sleep_forever()

    def leave(self) -> None:
        self._left.set()

    def events(self) -> list[dict[str, Any]]:
        """Return the data of all events so far."""
        lines = b"".join(self.chunks).decode().splitlines()
        return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]

    async def event(self, seen: int = 1) -> dict[str, Any]:
        """Wait until an event tells of so many records, and return it."""
        events: list[dict[str, Any]] = self.events()
        while not events or events[-1]["seen"] < seen:
            await self._news.wait()
            events = self.events()
        return events[-1]


@asynccontextmanager
async def reading(*readers: Reader) -> AsyncIterator[None]:
    """Let readers read until the context ends, or their streams do."""
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            for each in readers:
                tasks.start_soon(each.run)
            for each in readers:
                await each.begun.wait()
            yield
            for each in readers:
                each.leave()


def watches(r: Router) -> list[Watch]:
    owners = (getattr(each, "__self__", None) for each in r._ledger._observers)
    return [owner for owner in owners if isinstance(owner, Watch)]


def observers(r: Router) -> int:
    return len(watches(r))


# -- Each endpoint --------------------------------------------------------------------------------


async def test_every_endpoint() -> None:
    """Each answers with its type, and with headers that browsers heed."""
    async with router() as r, client(create_app(r)) as web:
        await r.submit(job())
        for path, media_type in {
            "/": "text/html",
            "/page.css": "text/css",
            "/page.js": "text/javascript",
            "/api/stats": "application/json",
            "/api/config": "application/json",
            "/metrics": "text/plain",
            "/health": "application/json",
        }.items():
            for method in ("GET", "HEAD"):
                answer = await web.request(method, path)
                assert answer.status_code == 200, path
                assert answer.headers["content-type"].startswith(media_type)
                assert answer.headers["cache-control"] == "no-store"
                assert answer.headers["x-content-type-options"] == "nosniff"
                assert "default-src 'self'" in answer.headers["content-security-policy"]
        stats = (await web.get("/api/stats")).json()
        assert stats.pop("time_s") > 0
        assert stats.keys() == r.stats().as_dict().keys()
        assert stats["completed"] == 1
        config = (await web.get("/api/config")).json()
        assert config == {"config": dataclasses.asdict(r.config), "allow_reconfigure": False}
        assert (await web.get("/health")).json() == {"state": "open"}
        assert (await web.head("/api/decisions")).status_code == 200


async def test_errors_are_json() -> None:
    """What isn't there and what may not be done has a reason, in JSON."""
    async with client(create_app(router())) as web:
        for method, path, status in (
            ("GET", "/nothing", 404),
            ("GET", "//api/stats", 404),
            ("POST", "/api/stats", 405),
            ("PUT", "/api/config", 405),
            ("PATCH", "/api/config", 403),
        ):
            answer = await web.request(method, path)
            assert answer.status_code == status
            assert answer.json()["error"]
            assert "default-src" in answer.headers["content-security-policy"]


async def test_mounted_under_a_prefix() -> None:
    """In Starlette and in FastAPI it works below a prefix, and the prefix alone leads there."""
    async with router() as r:
        fast = FastAPI()
        fast.mount("/watch/router", create_app(r))
        for app in (Starlette(routes=[Mount("/watch/router", create_app(r))]), fast):
            async with client(app) as web:
                answer = await web.get("/watch/router")
                assert answer.is_redirect
                assert answer.headers["location"].endswith("/watch/router/")
                page = await web.get("/watch/router/")
                assert page.status_code == 200
                assert 'src="/' not in page.text
                assert 'href="/' not in page.text
                assert (await web.get("/watch/router/api/stats")).status_code == 200
                assert (await web.get("/watch/router/nothing")).json() == {"error": "Not Found"}


async def test_a_router_that_is_made_later() -> None:
    """The application may be made before its router, and show another one later."""
    made: list[Router] = []
    app = create_app(lambda: made[-1])
    reader = Reader(app)
    async with router() as first:
        made.append(first)
        async with reading(reader):
            await first.submit(job(1))
            assert (await reader.event())["records"][0]["job_id"] == "1"
            async with router() as second:
                made.append(second)
                other = Reader(app)
                async with reading(other):
                    await second.submit(job(2))
                    assert (await other.event())["records"][0]["job_id"] == "2"
                    assert (observers(first), observers(second)) == (1, 1)
            assert observers(second) == 0
        assert observers(first) == 0


# -- The router's states --------------------------------------------------------------------------


async def test_a_router_that_has_not_opened() -> None:
    """There is something to see of it: nothing has happened, and it takes no jobs."""
    r = router()
    app = create_app(r, allow_reconfigure=True)
    async with client(app) as web:
        assert (await web.get("/api/stats")).json()["state"] == "new"
        health = await web.get("/health")
        assert (health.status_code, health.json()) == (503, {"state": "new"})
        assert (await web.get("/metrics")).status_code == 200
        assert (await web.get("/api/decisions")).text == "retry: 500\n\n"
    assert (await patch(app, {"cpu_parallelism": 3})).status_code == 200
    async with r:
        assert r.stats().cpu_parallelism == 3


async def test_settings_that_change_while_it_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set while a router opens is in force once it is open."""
    r = router(cpu_parallelism=1)
    app = create_app(r, allow_reconfigure=True)

    async def measure() -> float:
        assert (await patch(app, {"cpu_parallelism": 2})).status_code == 200
        return 50.0

    monkeypatch.setattr("helixnb._router.measure_hop_us", measure)
    async with r:
        assert r._slots.total == 2


async def test_a_router_that_closes() -> None:
    """While it drains and afterwards it isn't healthy, and the streams come to their end."""
    gate = Gate()
    app = None
    async with router(gate.kernel) as r, anyio.create_task_group() as tasks:
        app = create_app(r)
        reader = Reader(app)
        r.submit_soon(job(1, "Gate", compute_cost=50_000))
        await gate.begun()
        async with client(app) as web, reading(reader):
            tasks.start_soon(r.close)
            await anyio.wait_all_tasks_blocked()
            health = await web.get("/health")
            assert (health.status_code, health.json()) == (503, {"state": "closing"})
            await reader.ended.wait()
            gate.open()
    async with client(app) as web:
        assert (await web.get("/health")).json() == {"state": "closed"}
        assert (await web.get("/api/stats")).json()["state"] == "closed"
        assert (await web.get("/api/decisions")).text.startswith("retry:")
    assert observers(r) == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_router_that_has_crashed() -> None:
    """It says so, and everything can still be read."""
    with pytest.raises(Exception, match="the router crashed"):
        async with router() as r:
            app = create_app(r)
            reader = Reader(app)
            async with reading(reader):

                async def fail() -> None:
                    raise ValueError("a fault")

                r._lifetime.tasks.start(fail)
                await reader.ended.wait()
            async with client(app) as web:
                health = await web.get("/health")
                assert (health.status_code, health.json()) == (503, {"state": "crashed"})
                for path in ("/api/stats", "/api/config", "/metrics"):
                    assert (await web.get(path)).status_code == 200


async def test_from_another_thread() -> None:
    """Everything can be read from another thread than the router's, but nothing changed."""
    async with router() as r:
        app = create_app(r, allow_reconfigure=True)

        def elsewhere() -> list[int]:
            async def ask() -> list[int]:
                async with client(app) as web:
                    paths = ("/", "/api/stats", "/api/config", "/metrics", "/health")
                    answers = [await web.get(path) for path in paths]
                answers.append(await patch(app, {"cpu_parallelism": 1}))
                return [answer.status_code for answer in answers]

            return anyio.run(ask)

        assert await anyio.to_thread.run_sync(elsewhere) == [200] * 5 + [409]
        assert r.config.cpu_parallelism == 2


# -- Settings -------------------------------------------------------------------------------------


async def test_settings_change_together_or_not_at_all() -> None:
    """Good settings are in force at once; one bad one among them, and nothing has changed."""
    async with router() as r:
        app = create_app(r, allow_reconfigure=True)
        answer = await patch(app, {"cpu_parallelism": 1, "queue_capacity": 7, "hop_us": None})
        assert answer.status_code == 200
        assert answer.json()["config"] == dataclasses.asdict(r.config)
        assert (r.stats().cpu_parallelism, r.stats().queue_capacity) == (1, 7)
        before = r.config
        answer = await patch(app, {"queue_capacity": 9, "cpu_parallelism": 0})
        assert answer.status_code == 422
        assert "cpu_parallelism must be at least 1" in answer.json()["error"]
        assert r.config is before
        assert (await patch(app, {})).status_code == 200


async def test_settings_are_the_applications_to_open() -> None:
    """Without leave nothing changes, whatever is sent."""
    async with router() as r:
        before = r.config
        answer = await patch(create_app(r), {"cpu_parallelism": 1})
        assert answer.status_code == 403
        assert r.config is before


FIELDS = [each.name for each in dataclasses.fields(RouterConfig)]
WRONG = ["text", "", True, [], {}, [1], {"a": 1}, -1, 10**400, -(10**4000), 1e308]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("name", FIELDS)
async def test_wrong_types_of_each_setting(name: str) -> None:
    """A setting of a wrong type or size gets an answer that names it, never an error of ours."""
    r = router()
    app = create_app(r, allow_reconfigure=True)
    for value in WRONG:
        if name in ("heed_other_cpu_use", "trace_jobs") and value is True:
            continue
        before = r.config
        answer = await patch(app, {name: value})
        assert answer.status_code == 422, (value, answer.text)
        assert name in answer.json()["error"]
        assert r.config is before


@pytest.mark.parametrize(
    "name",
    [
        "self",
        "cls",
        "changes",
        "__class__",
        "__dict__",
        "__post_init__",
        "_config",
        "",
        "nope",
        "busy_threshold",
        "original",
        "\ud800",
        "a\x00b",
        pytest.param("x" * 60_000, id="long"),
    ],
)
async def test_names_that_are_no_settings(name: str) -> None:
    """None of them reaches anything but the check of names."""
    async with router() as r:
        before = r.config
        answer = await patch(create_app(r, allow_reconfigure=True), {name: 1})
        assert answer.status_code == 422
        assert "no setting is named" in answer.json()["error"]
        assert r.config is before


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        (b"", 400, "must be JSON"),
        (b"{", 400, "must be JSON"),
        (b"\xff\xfe{", 400, "must be JSON"),
        (b'{"cpu_parallelism": 1} x', 400, "must be JSON"),
        (b"{'cpu_parallelism': 1}", 400, "must be JSON"),
        (b'{"hop_us": NaN}', 400, "NaN isn't a number"),
        (b'{"hop_us": Infinity}', 400, "Infinity isn't"),
        (b'{"hop_us": -Infinity}', 400, "-Infinity isn't"),
        (b'{"hop_us": 1e999}', 422, "hop_us must lie in"),
        (b'{"queue_capacity": 1e2}', 422, "queue_capacity must be an integer"),
        (b'{"queue_capacity": 8, "queue_capacity": 9}', 400, "a name stands twice"),
        (b'{"queue_capacity": {"a": 1, "a": 2}}', 400, "a name stands twice"),
        (b'{"queue_capacity": ' + b"9" * 5_000 + b"}", 400, "must be JSON"),
        (b"[" * 60_000, 400, "must be JSON"),
        (b'{"a":' * 10_000, 400, "must be JSON"),
        (b"[]", 422, "must be an object"),
        (b"null", 422, "must be an object"),
        (b'"cpu_parallelism"', 422, "must be an object"),
    ],
)
async def test_bodies_that_are_no_settings(body: bytes, status: int, why: str) -> None:
    """Each is refused with a reason."""
    answer = await patch(create_app(router(), allow_reconfigure=True), body)
    assert answer.status_code == status
    assert why in answer.json()["error"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_no_depth_of_nesting_breaks_it() -> None:
    """Some depths can be read, but not written in a message any more."""
    app = create_app(router(), allow_reconfigure=True)
    for depth in range(600, 1_000):
        answer = await patch(app, b'{"hop_us":' + b"[" * depth + b"]" * depth + b"}")
        assert answer.status_code in (400, 422)


@pytest.mark.parametrize(
    "media_type",
    ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "json"],
)
async def test_what_a_form_of_another_site_can_send(media_type: str) -> None:
    """Types that a browser sends without asking first are refused."""
    app = create_app(router(), allow_reconfigure=True)
    answer = await patch(app, {}, {"content-type": media_type})
    assert answer.status_code == 415
    assert "must be application/json" in answer.json()["error"]
    charset = {"content-type": "Application/JSON; charset=utf-8"}
    assert (await patch(app, {}, charset)).status_code == 200


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # httpx leaves bodies lying about on trio
async def test_a_body_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body in pieces is cut off at the same size, and one that doesn't come by time."""
    monkeypatch.setattr(_app, "PATIENCE_S", 0.05)
    app = create_app(router(), allow_reconfigure=True)
    sent = 0

    async def large() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b" " * 1_000

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await anyio.sleep_forever()

    async with client(app) as web:
        answer = await web.patch("/api/config", content=large(), headers=JSON)
        assert answer.status_code == 413
        assert sent < 100
        answer = await web.patch("/api/config", content=slow(), headers=JSON)
        assert answer.status_code == 408
    answer = await patch(app, b" " * 65_537)
    assert answer.status_code == 413
    assert "must not be larger than 65536 bytes" in answer.json()["error"]


async def test_a_client_that_goes_midway() -> None:
    """Half a body changes nothing."""
    async with router() as r:
        before = r.config
        messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": b'{"queue_capacity": 9}', "more_body": True},
            {"type": "http.disconnect"},
        ]
        status = []

        async def receive() -> dict[str, Any]:
            return messages.pop(0)

        async def send(message: Any) -> None:
            status.append(message.get("status"))

        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "PATCH",
            "path": "/api/config",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        await create_app(r, allow_reconfigure=True)(scope, receive, send)
        assert status[0] == 400
        assert r.config is before


# -- Decisions ------------------------------------------------------------------------------------


async def test_decisions() -> None:
    """Each record says what became of a job, and ids are text, since they may be large."""
    async with router() as r:
        reader = Reader(create_app(r))
        budget = Fraction(1_000_001, 2)
        async with reading(reader):
            await r.submit(job(2**64 - 1, latency_budget_ms=budget))  # type: ignore[arg-type]
            event = await reader.event()
    (record,) = event["records"]
    assert event["seen"] == 1
    assert record.pop("at_ns") > 0
    assert record.pop("latency_ms") > 0
    record.pop("queue_ms")
    assert record == {
        "number": 0,
        "job_id": str(2**64 - 1),
        "kind": "HashMix",
        "decided": "inline",
        "strategy": "inline",
        "status": "completed",
        "reason": "small",
        "jobs": 1,
        "latency_budget_ms": 500_000.5,
    }
    assert b"\nid: 1\n" in b"\n".join(b"".join(reader.chunks).split(b"\n\n"))


async def test_a_reader_that_never_reads() -> None:
    """It harms neither the router nor other readers, and holds no more than the watch does."""
    async with router() as r:
        app = create_app(r)
        stuck, other = Reader(app, stuck=True), Reader(app)
        async with reading(stuck, other):
            for number in range(3_000):
                await r.submit(job(number))
            await other.event(3_000)
            (watch,) = watches(r)
            assert (watch.seen, len(watch._latest)) == (3_000, _feed.NEWEST)
            assert all(len(event["records"]) <= _feed.NEWEST for event in other.events())
            newest = other.events()[-1]["records"][-1]
            assert (newest["number"], newest["job_id"]) == (2_999, "2999")
            assert len(stuck.chunks) == 2
        assert observers(r) == 0
    check_balanced(r.stats())


async def test_a_stuck_reader_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes nothing loses its place, although it never leaves."""
    monkeypatch.setattr(_feed, "LONGEST_S", 0.05)
    async with router() as r:
        stuck = Reader(create_app(r), stuck=True)
        async with reading(stuck):
            await stuck.ended.wait()
            assert observers(r) == 0


async def test_no_more_readers_than_there_are_places() -> None:
    """Those beyond are told when to come again; who leaves makes room, also of a burst at once."""
    async with router() as r:
        app = create_app(r)
        readers = [Reader(app) for _ in range(_app.MOST_READERS + 20)]
        async with reading(*readers):
            statuses = [reader.status for reader in readers]
            assert statuses.count(200) == _app.MOST_READERS
            assert statuses.count(503) == 20
            async with client(app) as web:
                answer = await web.get("/api/decisions")
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
                assert (await web.get("/health")).status_code == 200
        assert observers(r) == 0
        again = Reader(app)
        async with reading(again):
            assert again.status == 200


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_a_reader_says_it_has_seen() -> None:
    """Whatever that is, it gets what comes."""
    lasts = ["", "x", "-1", "1e3", "0x1", " 1", "9" * 19, "9" * 400, "\u00b2", "1\u00b9", "NaN"]
    async with router() as r:
        app = create_app(r)
        readers = {last: Reader(app, last_event_id=last) for last in lasts}
        async with reading(*readers.values()):
            await r.submit(job(1))
            for last, reader in readers.items():
                assert (await reader.event())["records"][-1]["job_id"] == "1", last


async def test_a_reader_that_comes_back() -> None:
    """It doesn't get what it has had."""
    async with router() as r:
        app = create_app(r)
        first = Reader(app)
        async with reading(first):
            await r.submit(job(1))
            await first.event()
        second = Reader(app, last_event_id="1")
        async with reading(second):
            await r.submit(job(2))
            assert [each["job_id"] for each in (await second.event())["records"]] == ["2"]


# -- Metrics --------------------------------------------------------------------------------------

HOSTILE = [
    'quote"',
    "new\nline",
    "back\\slash",
    '{a="b"} 1',
    "#",
    "\u00e9\U0001f600",
    "\x00\r\t",
    "",
]


async def jobs_of_hostile_kinds(r: Router) -> None:
    for kind in (*HOSTILE, "half \ud800"):
        await r.run(len, "", compute_cost=1, kind=kind)


@pytest.mark.parametrize(
    ("accept", "parse"),
    [
        ("", text_string_to_metric_families),
        ("text/plain;version=1.0.0", text_string_to_metric_families),
        ("application/openmetrics-text", openmetrics.text_string_to_metric_families),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain",
            openmetrics.text_string_to_metric_families,
        ),
    ],
)
async def test_metrics_are_what_the_router_counts(accept: str, parse: Callable[[str], Any]) -> None:
    """Both formats parse, add up to the stats, and kinds come out as they were named."""
    async with router() as r:
        for number in range(20):
            await r.submit(job(number, compute_cost=1_000 * number, latency_budget_ms=0.0))
        await jobs_of_hostile_kinds(r)
        await r.drain()
        async with client(create_app(r)) as web:
            answer = await web.get("/metrics", headers={"accept": accept})
        stats = r.stats()
    families = {family.name: family for family in parse(answer.text)}
    samples = families["helixnb_jobs"].samples
    ended = stats.completed + stats.dropped + stats.failed + stats.cancelled
    assert sum(each.value for each in samples) == ended == stats.submitted
    assert {each.labels["kind"] for each in samples} == {*HOSTILE, "half \\ud800", "HashMix"}
    for name in ("completed", "dropped", "failed", "cancelled"):
        outcomes = [each.value for each in samples if each.labels["outcome"] == name]
        assert sum(outcomes) == getattr(stats, name)
    durations = families["helixnb_job_duration_seconds"].samples
    for suffix in ("_count", "_bucket"):
        counts = [
            each.value
            for each in durations
            if each.name.endswith(suffix) and each.labels.get("le", "+Inf") == "+Inf"
        ]
        assert sum(counts) == ended
    assert families["helixnb_backlog_limit"].samples[0].value == stats.queue_capacity
    assert len(families) == len(METRICS)


async def test_metrics_are_kept_for_the_formats_that_there_are() -> None:
    """No header makes further copies of them."""
    async with router() as r:
        app = create_app(r)
        (view,) = {
            route.endpoint.__self__  # type: ignore[attr-defined]
            for route in app.routes
            if getattr(route, "path", "") == "/metrics"
        }
        async with client(app) as web:
            for number in range(20):
                for kind in ("application/openmetrics-text", "text/plain"):
                    accept = f"{kind}; version=1.0.{number}; escaping=values-{number}"
                    answer = await web.get("/metrics", headers={"accept": accept})
                    assert answer.status_code == 200
        assert len(view._expositions) == 2


async def test_promtool_accepts_the_metrics() -> None:
    """Prometheus's own linter has no objection."""
    promtool = debian("promtool", "prometheus")
    async with router() as r:
        await r.submit(job())
        await jobs_of_hostile_kinds(r)
        async with client(create_app(r)) as web:
            text = (await web.get("/metrics")).content
    done = await anyio.run_process([promtool, "check", "metrics"], input=text, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


async def test_watchers_in_other_threads_see_whole_counts() -> None:
    """Stats and metrics that are read while jobs run neither fail nor run backwards."""
    async with router() as r:
        app = create_app(r)
        over = threading.Event()
        seen: list[float] = []

        def watch() -> None:
            async def ask() -> None:
                async with client(app) as web:
                    while not over.is_set():
                        seen.append((await web.get("/api/stats")).json()["submitted"])
                        assert (await web.get("/metrics")).status_code == 200

            anyio.run(ask)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, watch)
            for number in range(2_000):
                await r.run(len, "", compute_cost=1, kind=f"kind {number}")
            over.set()
        assert seen == sorted(seen)
    check_balanced(r.stats())
