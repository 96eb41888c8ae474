"""The live page in a browser, against live routers."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI
from playwright.sync_api import Browser, Page, Route, expect
from starlette.applications import Starlette
from starlette.routing import Mount
from support import Always, job

from helixnb import (
    Decision,
    Estimate,
    Job,
    Load,
    Router,
    RouterConfig,
    StaticPolicy,
    Strategy,
)
from helixnb.web import create_app
from helixnb.workload import HEAVY_KERNELS, calibrate, heavy_mix, light_mix, open_loop
from helixnb_kernels import BUILT_IN

HOSTILE = "<img src=x onerror='window.hacked = 1'><b>bold</b>"
LONG = "a.module." + "long_name_" * 30
NONE = "\N{EN DASH}"
UNITS = {"µs": 1e-3, "ms": 1.0, "s": 1e3}

pytestmark = pytest.mark.slow

expect.set_options(timeout=20_000)


# -- A browser, and what it may not do ----------------------------------------------------------


@dataclass
class Tab:
    """A page, and what went on in it."""

    page: Page
    requests: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def check(self, address: str) -> None:
        """Check that it asked for nothing outside `address`, and that nothing went wrong."""
        assert self.requests
        assert [url for url in self.requests if not url.startswith(address)] == []
        assert self.faults == []


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[Callable[..., Tab]]:
    """Open pages in contexts of their own: ``open_tab(address, **options)``."""
    contexts = []

    def open_tab(address: str, **options: Any) -> Tab:
        context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        contexts.append(context)
        context.set_default_timeout(20_000)
        tab = Tab(context.new_page())
        tab.page.on("request", lambda request: tab.requests.append(request.url))
        tab.page.on("pageerror", lambda error: tab.faults.append(str(error)))
        tab.page.on(  # where violations of the content security policy are reported too
            "console",
            lambda message: (
                tab.faults.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        tab.page.goto(address)
        return tab

    yield open_tab
    for context in contexts:
        context.close()


# -- A server ------------------------------------------------------------------------------------


class Site:
    """Serves an application in another thread; can be stopped, and started at the same port."""

    def __init__(self, portal: BlockingPortal, app: Any) -> None:
        self._portal = portal
        self._app = app
        self.port = 0
        self.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        listener.listen()
        config = uvicorn.Config(
            self._app, log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=0
        )
        self._server = uvicorn.Server(config)
        self._served: Future[None] = self._portal.start_task_soon(self._server.serve, [listener])

    def stop(self) -> None:
        self._server.should_exit = True
        self._served.result(20)


@contextmanager
def serving(app: Any, *routers: Router) -> Iterator[tuple[Site, BlockingPortal]]:
    """Open routers and serve an application, on one event loop of another thread."""
    with start_blocking_portal("asyncio") as portal:
        contexts = [portal.wrap_async_context_manager(router) for router in routers]
        for context in contexts:
            context.__enter__()
        site = Site(portal, app)
        try:
            yield site, portal
        finally:
            site.stop()
            for context in contexts:
                context.__exit__(None, None, None)


def bare(policy: Any = None) -> Router:
    """Make a router without kernels, for callables."""
    config = RouterConfig(cpu_parallelism=2, hop_us=50.0, drain_timeout_s=5.0)
    return Router(config, kernels=(), policy=policy or Always(Strategy.SPAWN))


def run(portal: BlockingPortal, router: Router, *kinds: str, **options: Any) -> None:
    """Run jobs that do nothing, one after the other."""

    async def run() -> None:
        for kind in kinds:
            await router.run(int, compute_cost=1, kind=kind, **options)

    portal.call(run)


def wait_for_reader(page: Page, router: Router, *, there: bool = True) -> None:
    """Wait until the page follows the router's decisions: it isn't told of those before."""
    until = time.monotonic() + 20
    while bool(router._ledger._observers) != there:
        assert time.monotonic() < until
        page.wait_for_timeout(20)


class Hostile:
    """A policy with a reason that is HTML, and drops every other job."""

    def decide(self, job: Job, load: Load, config: RouterConfig, estimate: Estimate) -> Decision:
        return Decision(Strategy.DROP if job.id % 2 else Strategy.INLINE, HOSTILE)


# -- Reading the page ----------------------------------------------------------------------------


def state(page: Page) -> Any:
    return page.locator("#state")


def stat(page: Page, name: str) -> Any:
    return page.locator(f"[data-stat={name}]")


def rows(page: Page) -> list[list[str]]:
    """Return the texts of the latest decisions' cells, newest first."""
    read = "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.trim()))"
    found: list[list[str]] = page.locator("#decisions tr").evaluate_all(read)
    return found


READ_STATS = """() => ({
    time: document.body.dataset.timeS,
    rate: document.querySelector("[data-derived=rate]").textContent,
    size: document.querySelector("[data-derived=batch_size]").textContent,
    legend: [...document.querySelectorAll("#legend li")].map(
        (item) => [item.dataset.strategy, item.querySelector("b").textContent]),
    stats: [...document.querySelectorAll("[data-stat]")].map(
        ({dataset, textContent}) => ({...dataset, text: textContent})),
})"""


def leaves(part: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Return all numbers and strings of a nested dict, by where they stand."""
    if not isinstance(part, dict):
        return {path: part}
    found: dict[tuple[str, ...], Any] = {}
    for name, each in part.items():
        found |= leaves(each, (*path, name))
    return found


def check_text(text: str, value: Any, form: str) -> None:
    """Check that a text says a number, to the digits that it has."""
    if value is None:
        assert text == NONE
    elif form == "text":
        assert text == value
    elif form == "count":
        assert text == f"{value:,}"
    elif form == "number":
        assert float(text) == pytest.approx(value, abs=0.0051)
    else:
        number, unit = text.split()
        value_ms = value / 1e3 if form == "us" else value
        assert float(number) * UNITS[unit] == pytest.approx(value_ms, rel=0.0051)


def check_rate(text: str, rate: float) -> None:
    """Check that a text says a rate, with one decimal if it is small."""
    assert float(text.replace(",", "")) == pytest.approx(rate, abs=0.051 if rate < 9.9 else 0.51)


# -- Tests -----------------------------------------------------------------------------------------


@pytest.mark.timeout(180)  # the kernels may have to be compiled first
def test_every_number_is_that_of_the_stats(open_tab: Callable[..., Tab]) -> None:
    """Under load with drops and batches, the page has all of a reading, to the last digit."""
    kernels = {each.name: each for each in (*BUILT_IN, *HEAVY_KERNELS)}.values()
    config = RouterConfig(cpu_parallelism=2, parallel_kernels="never", heed_other_cpu_use=False)
    router = Router(config, kernels=kernels, shadow=StaticPolicy())
    answers: list[dict[str, Any]] = []

    def note(route: Route) -> None:
        answer = route.fetch()
        answers.append(json.loads(answer.text()))
        route.fulfill(response=answer)

    with serving(create_app(router), router) as (site, portal):
        tab = open_tab("about:blank")
        tab.requests.clear()
        tab.page.route("**/api/stats", note)
        tab.page.goto(site.address)
        heavy, light = heavy_mix(2_000, 1, calibrate()), light_mix(1_000, 2)
        loads: list[Future[Any]] = [
            portal.start_task_soon(lambda: open_loop(router, heavy, rate=1_000)),
            portal.start_task_soon(lambda: open_loop(router, light, rate=500)),
            portal.start_task_soon(router.submit_many, light_mix(2_000, 3)),
        ]
        expect(stat(tab.page, "dropped")).not_to_have_text(re.compile(f"^[0{NONE}]$"))
        compared: set[int] = set()
        while not all(load.done() for load in loads) or len(compared) < 3:
            read = tab.page.evaluate(READ_STATS)
            times = [answer["time_s"] for answer in answers]
            position = times.index(float(read["time"]))
            if position in compared:
                tab.page.wait_for_timeout(50)
                continue
            compared.add(position)
            _compare(read, answers[position], answers[position - 1] if position else None)
        for load in loads:
            load.result(20)
        expect(state(tab.page)).to_have_text("open")
        tab.check(site.address)
    assert answers[-1]["completed"]


def _compare(read: dict[str, Any], answer: dict[str, Any], before: dict[str, Any] | None) -> None:
    places = leaves({name: answer[name] for name in answer.keys() - {"state", "time_s"}})
    for shown in read["stats"]:
        place = tuple(shown["stat"].split("."))
        if "reason" in shown:
            place = (*place, shown["reason"])
        value = places.pop(place)
        assert json.loads(shown["value"]) == value
        check_text(shown["text"], value, shown.get("format", "count"))
    assert places == {}, "the page doesn't show these"
    if answer["batches"]:
        size = answer["batched_jobs"] / answer["batches"]
        assert float(read["size"]) == pytest.approx(size, abs=0.051)
    else:
        assert read["size"] == NONE
    if before is not None:
        span_s = answer["time_s"] - before["time_s"]
        rates = {
            name: (each["routed"] - before["by_strategy"][name]["routed"]) / span_s
            for name, each in answer["by_strategy"].items()
        }
        assert [name for name, _ in read["legend"]] == list(rates)
        for name, text in read["legend"]:
            check_rate(text, rates[name])
        check_rate(read["rate"], sum(rates.values()))


def test_idle(open_tab: Callable[..., Tab]) -> None:
    """Before the first job all is zero, and what isn't known is a dash."""
    router = bare()
    with serving(create_app(router), router) as (site, _):
        tab = open_tab(site.address)
        expect(state(tab.page)).to_have_text("open")
        expect(stat(tab.page, "submitted")).to_have_text("0")
        expect(tab.page.locator("[data-derived=rate]")).to_have_text("0")
        expect(tab.page.locator("#strategies .none")).to_have_count(20)
        expect(tab.page.get_by_text("No job was dropped.")).to_be_visible()
        expect(tab.page.get_by_text("No job has ended")).to_be_visible()
        expect(tab.page.get_by_role("meter", name="backlog")).to_have_attribute(
            "aria-valuetext", "0 of 512"
        )
        tab.check(site.address)


def test_decisions(open_tab: Callable[..., Tab]) -> None:
    """A row for each record, newest first; a pause holds them; those never shown are counted."""
    router = Router(
        RouterConfig(cpu_parallelism=2, parallel_kernels="never"), policy=Always(Strategy.INLINE)
    )
    with serving(create_app(router), router) as (site, portal):
        tab = open_tab(site.address)
        page = tab.page
        wait_for_reader(page, router)
        portal.call(router.submit, job(2**64 - 1, latency_budget_ms=60_000))
        expect(page.locator("#decisions tr")).to_have_count(1)
        [[_, number, kind, ways, reason, status, latency, budget, _]] = rows(page)
        assert (number, kind, ways) == (str(2**64 - 1), "HashMix", "inline")
        assert (reason, status, budget) == ("test", "completed", "60000 ms")
        assert re.fullmatch(r"[\d.]+ (µs|ms|s)", latency)

        router._policy.strategy = Strategy.BATCH  # type: ignore[attr-defined]
        run(portal, router, "callable", latency_budget_ms=0.0)
        expect(page.locator("#decisions tr")).to_have_count(2)
        _, _, kind, ways, reason, status, *_ = rows(page)[0]
        assert (kind, ways.split(), status) == (
            "callable",
            ["batch", "cpu_pool"],
            "completed, late",
        )

        router._policy.strategy = Strategy.DROP  # type: ignore[attr-defined]
        portal.call(router.submit_many, [job(i) for i in range(1_234)])
        expect(page.locator("#decisions")).to_contain_text("1,234 jobs")

        page.get_by_role("button", name="Pause").press("Enter")
        before = rows(page)
        run(portal, router, *["paused"] * 7)
        expect(page.locator("#decisions-note")).to_have_text("7 new")
        assert rows(page) == before
        page.get_by_role("button", name="Resume").click()
        expect(page.locator("#decisions tr")).to_have_count(10)
        kinds = [kind for _, _, kind, *_ in rows(page)]
        assert kinds == ["paused"] * 7 + ["HashMix", "callable", "HashMix"]

        run(portal, router, *(f"kind {i}" for i in range(500)))
        expect(page.locator("#decisions tr").first).to_contain_text("kind 499")
        expect(page.locator("#decisions tr")).to_have_count(30)
        note = page.locator("#decisions-note").inner_text()
        assert 1 <= int(note.removesuffix(" not shown")) <= 470
        tab.check(site.address)


def test_a_hidden_page_follows_nothing(open_tab: Callable[..., Tab]) -> None:
    """The router makes records only while somebody looks at them."""
    router = bare()
    with serving(create_app(router), router) as (site, _):
        tab = open_tab(site.address)
        for hidden in (False, True, False):
            tab.page.evaluate(
                """hidden => {
                    Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
                    document.dispatchEvent(new Event("visibilitychange"));
                }""",
                hidden,
            )
            wait_for_reader(tab.page, router, there=not hidden)
        tab.check(site.address)


def test_streams_overlap(open_tab: Callable[..., Tab]) -> None:
    """The page begins another stream before the server ends the one, and takes each job once."""
    router = bare()
    with serving(create_app(router), router) as (site, portal):
        tab = open_tab("about:blank")
        tab.requests.clear()
        tab.page.clock.install()
        tab.page.goto(site.address)
        wait_for_reader(tab.page, router)
        run(portal, router, "first")
        expect(tab.page.locator("#decisions tr")).to_have_count(1)
        with tab.page.expect_response("**/api/decisions"):
            tab.page.clock.fast_forward("00:16")
        run(portal, router, "second")
        expect(tab.page.locator("#decisions tr")).to_have_count(2)
        assert [kind for _, _, kind, *_ in rows(tab.page)] == ["second", "first"]
        expect(tab.page.locator("#decisions-note")).to_have_text("")
        tab.check(site.address)


def test_strings_are_only_text(open_tab: Callable[..., Tab]) -> None:
    """Kinds and reasons are shown as they are, and make no page wider than its window."""
    router = bare(Hostile())
    with serving(create_app(router, allow_reconfigure=True), router) as (site, portal):
        tab = open_tab(site.address)
        page = tab.page
        wait_for_reader(page, router)
        run(portal, router, HOSTILE, LONG, HOSTILE, LONG)
        expect(page.locator("#decisions tr")).to_have_count(4)
        expect(page.locator("#drops .reason")).to_have_text(HOSTILE)
        expect(stat(page, "dropped_by_reason")).to_have_text("2")
        assert {(kind, reason) for _, _, kind, _, reason, *_ in rows(page)} == {
            (HOSTILE, HOSTILE),
            (LONG, HOSTILE),
        }
        page.locator("summary").click()
        expect(page.locator("#setting-queue_capacity")).to_be_visible()
        assert page.locator("img, main b b").count() == 0
        assert page.evaluate("window.hacked") is None
        for width in (1280, 768, 390):
            page.set_viewport_size({"width": width, "height": 844})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        tab.check(site.address)


@pytest.mark.parametrize("framework", [Starlette, FastAPI])
def test_mounted_under_a_prefix(open_tab: Callable[..., Tab], framework: type[Any]) -> None:
    """All addresses are relative, so that any prefix will do."""
    router = bare()
    app = create_app(router)
    if framework is FastAPI:
        outer: Any = FastAPI()
        outer.mount("/ops/helix", app)
    else:
        outer = Starlette(routes=[Mount("/ops/helix", app)])
    with serving(outer, router) as (site, portal):
        tab = open_tab(f"{site.address}ops/helix")
        wait_for_reader(tab.page, router)
        expect(state(tab.page)).to_have_text("open")
        run(portal, router, "mounted")
        expect(tab.page.locator("#decisions")).to_contain_text("mounted")
        expect(stat(tab.page, "completed")).to_have_text("1")
        tab.page.locator("summary").click()
        expect(tab.page.locator("#setting-queue_capacity")).to_have_text("512")
        tab.check(f"{site.address}ops/helix")


def test_light_and_dark(open_tab: Callable[..., Tab]) -> None:
    """The colours follow the system's, and have enough contrast."""
    router = bare()
    with serving(create_app(router), router) as (site, _):
        tab = open_tab(site.address)
        expect(state(tab.page)).to_have_text("open")
        for dark in (False, True):
            tab.page.emulate_media(color_scheme="dark" if dark else "light")
            ground, ink, muted = (
                _luminance(
                    tab.page.locator(selector).first.evaluate(
                        f"each => getComputedStyle(each).{style}"
                    )
                )
                for selector, style in (
                    (".panel", "backgroundColor"),
                    ("h2", "color"),
                    (".panel .aside", "color"),
                )
            )
            assert (ground < ink) == dark
            assert _contrast(ground, ink) > 7
            assert _contrast(ground, muted) > 4.5
        tab.check(site.address)


def _luminance(colour: str) -> float:
    """Return the relative luminance of ``rgb(r, g, b)``, as WCAG 2 defines it."""
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def test_a_lost_connection_comes_back(open_tab: Callable[..., Tab]) -> None:
    """The page says so and keeps its numbers, then goes on by itself, decisions included."""
    router = bare()
    with serving(create_app(router), router) as (site, portal):
        page = open_tab(site.address).page
        run(portal, router, "before")
        expect(stat(page, "completed")).to_have_text("1")
        site.stop()
        expect(state(page)).to_contain_text("connection lost; trying again every second.")
        expect(state(page)).to_have_attribute("data-state", "unreachable")
        expect(stat(page, "completed")).to_have_text("1")
        site.start()
        expect(state(page)).to_have_text("open")
        until = time.monotonic() + 20
        while "after" not in page.locator("#decisions").inner_text():
            assert time.monotonic() < until
            run(portal, router, "after")
            page.wait_for_timeout(300)


def test_another_router_and_a_closed_one(open_tab: Callable[..., Tab]) -> None:
    """Counters that begin again make no rates below zero; a closed router is said to be."""
    first, second = bare(), bare()
    current = [first]
    with serving(create_app(lambda: current[0]), first, second) as (site, portal):
        tab = open_tab(site.address)
        page = tab.page
        run(portal, first, *["first"] * 50)
        expect(stat(page, "completed")).to_have_text("50")
        expect(page.locator("[data-derived=rate]")).to_have_text("0")
        run(portal, second, "second")
        current[0] = second
        expect(stat(page, "completed")).to_have_text("1")
        expect(page.locator("[data-derived=rate]")).to_have_text(re.compile(f"^[0{NONE}]$"))
        paths = page.locator("#chart path").evaluate_all("all => all.map(p => p.getAttribute('d'))")
        assert not re.search("NaN|Infinity", "".join(paths))
        heights = [float(y) for path in paths for y in re.findall(r",([-\d.]+)", path)]
        base = float(page.locator("#chart .base").last.get_attribute("y1") or "nan")
        assert max(heights) <= base
        page.locator("#chart").press("ArrowLeft")
        expect(page.locator("#rates-when")).to_have_text(re.compile(r"^\d+ s ago$"))
        expect(page.locator("#chart .cursor")).to_have_count(1)
        page.locator("#chart").press("Escape")
        expect(page.locator("#chart .cursor")).to_have_count(0)
        portal.call(second.close)
        expect(state(page)).to_contain_text("closed")
        expect(state(page)).to_contain_text("takes no jobs")
        tab.check(site.address)


def test_other_answers(open_tab: Callable[..., Tab]) -> None:
    """What a proxy answers instead is said too, and is over when it is over."""
    router = bare()
    with serving(create_app(router), router) as (site, _):
        page = open_tab(site.address).page
        expect(state(page)).to_have_text("open")
        for status, words in (
            (502, "the server answers HTTP 502"),
            (200, "something else answers"),
        ):
            page.unroute("**/api/stats")
            page.route("**/api/stats", _answer(status))
            expect(state(page)).to_contain_text(words)
        page.unroute("**/api/stats")
        expect(state(page)).to_have_text("open")


def _answer(status: int) -> Callable[[Route], None]:
    return lambda route: route.fulfill(status=status, body="<h1>Sorry</h1>")


def test_settings_are_read_only(open_tab: Callable[..., Tab]) -> None:
    """Unless changes are allowed, there are all settings, and nothing to change them with."""
    router = bare()
    with serving(create_app(router), router) as (site, _):
        tab = open_tab(site.address)
        tab.page.locator("summary").press("Enter")
        expect(tab.page.locator("output[data-setting]")).to_have_count(
            len(RouterConfig.__dataclass_fields__)
        )
        expect(tab.page.locator("#setting-hop_us")).to_have_text("50.0")
        expect(tab.page.locator("#setting-backpressure_busy_threshold")).to_have_text("null")
        assert tab.page.locator("input, select, form button:visible").count() == 0
        tab.check(site.address)


def test_settings_can_be_changed(open_tab: Callable[..., Tab]) -> None:
    """Only what was changed is sent, with its type; where that can't be, the page says why."""
    router = bare()
    bodies: list[str | None] = []
    with serving(create_app(router, allow_reconfigure=True), router) as (site, _):
        tab = open_tab(site.address)
        page = tab.page
        page.on(
            "request",
            lambda each: bodies.append(each.post_data) if each.method == "PATCH" else None,
        )

        def setting(name: str) -> Any:
            return page.locator(f"#setting-{name}")

        page.locator("summary").click()
        submit = page.get_by_role("button", name="Change")
        expect(submit).to_be_disabled()
        setting("queue_capacity").fill("64")
        setting("spawn_max_cost").fill(str(2**64 - 1))
        setting("hop_us").fill("")
        setting("heed_other_cpu_use").select_option("false")
        setting("parallel_kernels").select_option(label="never")
        setting("max_backlog_ms").fill("99.5")
        submit.click()
        expect(page.get_by_text("Changed queue_capacity, ")).to_be_visible()
        assert json.loads(bodies[0] or "") == {
            "queue_capacity": 64,
            "spawn_max_cost": 2**64 - 1,
            "max_backlog_ms": 99.5,
            "heed_other_cpu_use": False,
            "hop_us": None,
            "parallel_kernels": "never",
        }
        assert router.config.spawn_max_cost == 2**64 - 1
        assert (router.config.queue_capacity, router.config.hop_us) == (64, None)
        assert (router.config.parallel_kernels, router.config.max_backlog_ms) == ("never", 99.5)
        expect(setting("spawn_max_cost")).to_have_value(str(2**64 - 1))
        expect(stat(page, "queue_capacity")).to_have_text("64")
        expect(submit).to_be_disabled()
        tab.check(site.address)

        for entered, sent in (("0", 0), ("many", "many"), ("", None)):
            setting("queue_capacity").fill(entered)
            setting("queue_capacity").press("Enter")
            expect(page.get_by_role("alert")).to_contain_text("queue_capacity must be")
            expect(setting("queue_capacity")).to_have_attribute("aria-invalid", "true")
            assert json.loads(bodies[-1] or "") == {"queue_capacity": sent}
        assert router.config.queue_capacity == 64
        page.get_by_role("button", name="Undo").click()
        expect(setting("queue_capacity")).to_have_value("64")
        expect(page.get_by_role("alert")).to_have_text("")
        assert all("422" in fault for fault in tab.faults), "as browsers say of any such answer"
