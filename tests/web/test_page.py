"""The live page in a browser, over a router that runs."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import anyio
import pytest
import uvicorn
from anyio.from_thread import start_blocking_portal
from fastapi import FastAPI
from playwright.sync_api import Browser, Page, expect, sync_playwright
from starlette.applications import Starlette
from starlette.routing import Mount
from support import LARGE, PICKY, job, submit_all

from helixnb import Router, RouterConfig, StaticPolicy, Strategy
from helixnb.web import create_app
from helixnb_kernels import BUILT_IN, Kernel

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None and "HELIXNB_TEST_BROWSER" not in os.environ,
        reason="Chromium isn't installed (HELIXNB_TEST_BROWSER makes that an error)",
    ),
]

HOSTILE = "<img src=x onerror=\"document.title='hurt'\">"
PATIENCE_MS = 20_000


class Live:
    """A router with its page, in an event loop of a thread."""

    def __init__(self, stack: ExitStack, **given: Any) -> None:
        self._stack = stack
        self.portal = stack.enter_context(start_blocking_portal())
        self.router = Router(
            RouterConfig(cpu_parallelism=2, heed_other_cpu_use=False),
            kernels=(*BUILT_IN, PICKY, Kernel(name=HOSTILE, solo=lambda *_: 1)),
            policy=StaticPolicy(),
            shadow=StaticPolicy(),
        )
        stack.enter_context(self.portal.wrap_async_context_manager(self.router))
        self.app: Any = create_app(self.router, **given)
        self.port = 0
        self.serve()

    def serve(self) -> None:
        """Serve the page, at the port that it had."""
        config = uvicorn.Config(self.app, port=self.port, log_level="warning", lifespan="off")
        self.server = uvicorn.Server(config)
        sock = config.bind_socket()
        self.port = sock.getsockname()[1]
        self._stack.enter_context(closing(sock))
        self.serving = self.portal.start_task_soon(self.server.serve, [sock])
        self._stack.callback(self.stop)

    def stop(self) -> None:
        """Stop serving it; the router goes on."""
        self.server.should_exit = self.server.force_exit = True
        self.serving.result(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in the event loop."""
        return self.portal.call(function, *args)

    def load(self) -> None:
        """Let some jobs of every strategy and outcome come, and end."""

        async def run() -> None:
            await submit_all(self.router, [job(i, compute_cost=100) for i in range(50)])
            for i in range(10):
                await self.router.submit(job(i, compute_cost=40_000))
            many = [job(i, "Picky", compute_cost=LARGE) for i in range(40)]
            await submit_all(self.router, many)
            await self.router.submit(job(2**64 - 1, HOSTILE, latency_budget_ms=0.0))
            await self.router.submit_many([job(i, compute_cost=LARGE) for i in range(1_000)])

        self.run(run)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def live() -> Iterator[Live]:
    with ExitStack() as stack:
        yield Live(stack)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Give a page on which nothing may go wrong, and which asks nobody else."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: asked.add(request.url.split("/")[2]))
    asked: set[str] = set()
    yield page
    context.close()
    expected = ("net::ERR_", "status of 422")  # where the server was stopped, and of wrong settings
    assert [fault for fault in faults if not any(each in fault for each in expected)] == []
    assert len(asked) == 1


def numbers(page: Page) -> dict[str, Any]:
    """Return all numbers of the page, by their names in the stats, exactly as they came."""
    found: dict[str, Any] = {}
    for element in page.locator("[data-stat]").all():
        name = element.get_attribute("data-stat")
        value = json.loads(element.get_attribute("data-value") or "")
        assert found.setdefault(name or "", value) == value
    return found


def looked_up(stats: dict[str, Any], name: str) -> Any:
    value: Any = stats
    for part in name.split("."):
        value = value[part]
    return value


def test_the_numbers_are_those_of_the_stats(live: Live, page: Page) -> None:
    """All of them, while nothing moves; and what stands there is what they are."""
    page.goto(live.url)
    live.load()
    submitted = f"{live.router.stats().submitted:,}"
    expect(page.locator("[data-stat=submitted]")).to_have_text(submitted)
    expect(page.locator("[data-stat=in_flight]")).to_have_text("0")
    with page.expect_response("**/api/stats") as caught:
        pass
    stats = caught.value.json()
    page.wait_for_function("at => samples.at(-1).at_s >= at", arg=stats["time_s"])
    shown = numbers(page)
    assert len(shown) > 30
    moving = {"loop_lag_ms", "cpu_left"}
    for name, value in shown.items():
        if name not in moving:
            assert value == looked_up(stats, name), name
    for name in ("completed", "failed", "dropped", "batches", "by_strategy.inline.latency.count"):
        text = page.locator(f"[data-stat='{name}']").first.inner_text()
        assert int(text.replace(",", "")) == looked_up(stats, name)
        assert looked_up(stats, name) > 0
    for strategy, each in stats["by_strategy"].items():
        if strategy != "drop" and each["latency"]["p95_ms"] is not None:
            cell = page.locator(f"[data-stat='by_strategy.{strategy}.latency.p95_ms']")
            number, unit = cell.inner_text().replace(",", "").split()
            shown_ms = float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]
            assert shown_ms == pytest.approx(each["latency"]["p95_ms"], rel=5e-3)
    reasons = {
        element.get_attribute("data-reason"): int(element.inner_text().replace(",", ""))
        for element in page.locator("[data-reason]").all()
    }
    assert reasons == stats["dropped_by_reason"]


def test_rates_and_the_chart_follow_the_load(live: Live, page: Page) -> None:
    page.goto(live.url)
    page.wait_for_function("() => samples.length >= 2")
    assert page.locator("[data-rate=inline]").inner_text() == "0"
    live.run(submit_all, live.router, [job(i, compute_cost=100) for i in range(200)])
    page.wait_for_function("() => samples.at(-1).routed[0] === 200")
    page.wait_for_function("() => samples.at(-1).routed[0] === samples.at(-2).routed[0]")
    counted = page.evaluate(
        "samples.slice(1).reduce((sum, s, i) =>"
        " sum + ratesAt(i + 1)[0] * (s.at_s - samples[i].at_s), 0)"
    )
    assert counted == pytest.approx(200)
    assert page.locator("#chart path").count() == len(Strategy)
    colours = page.locator("#chart path").evaluate_all(
        "paths => paths.map(path => getComputedStyle(path).fill)"
    )
    keys = page.locator("#legend .key").evaluate_all(
        "keys => keys.map(key => getComputedStyle(key).backgroundColor)"
    )
    assert colours == keys
    assert len(set(colours)) == len(Strategy)


def test_a_router_that_was_started_anew(live: Live, page: Page) -> None:
    """Counters that have gone back are no negative rates."""
    page.goto(live.url)
    page.wait_for_function("() => samples.length >= 1")
    page.evaluate(
        "samples = [{at_s: samples[0].at_s - 1, routed: [9, 9, 9, 9, 9]}]",
    )
    page.wait_for_function("() => samples.length >= 2")
    assert page.evaluate("samples.every((s, i) => (ratesAt(i) ?? [0]).every(rate => rate >= 0))")


def test_the_latest_decisions(live: Live, page: Page) -> None:
    """With what the user's own code has named shown as text, whatever it says."""
    page.goto(live.url)
    expect(page.locator("#shown")).to_have_text("no jobs yet")
    while not live.router._ledger._observers:  # until it follows
        page.wait_for_timeout(20)
    live.load()
    newest = page.locator("#records tr").first
    expect(newest).to_contain_text("in_columns")
    expect(newest).to_contain_text("jobs")
    live.run(live.router.submit, job(2**64 - 1, HOSTILE, latency_budget_ms=500.0))
    cells = page.locator("#records tr").first.locator("td")
    expect(cells.nth(1)).to_have_text(str(2**64 - 1))
    expect(cells.nth(2)).to_have_text(HOSTILE)
    expect(cells.nth(5)).to_have_text("completed")
    expect(cells.nth(7)).to_have_text("500 ms")
    assert page.locator("#records img").count() == 0
    assert page.title() == "helixnb"
    assert page.locator("#records tr").count() <= 30
    page.locator("#pause").click()
    live.run(live.router.submit, job(7, compute_cost=100))
    page.wait_for_function("() => records[0].job_id === '7'")
    expect(cells.nth(1)).to_have_text(str(2**64 - 1))
    page.locator("#pause").click()
    live.run(live.router.submit, job(8, compute_cost=100))
    expect(cells.nth(1)).to_have_text("8")


def test_records_that_came_too_fast_are_counted(live: Live, page: Page) -> None:
    page.goto(live.url)
    while not live.router._ledger._observers:
        page.wait_for_timeout(20)
    live.run(live.router.submit, job(1, compute_cost=100))
    expect(page.locator("#shown")).to_have_text("the latest 1")
    live.run(submit_all, live.router, [job(i, compute_cost=100) for i in range(500)])
    page.wait_for_function("() => received > 1")
    page.wait_for_function(
        """() => {
            const missed = byId("shown").textContent.match(/([\\d,]+) more/);
            return missed && Number(missed[1].replace(",", "")) + received === 501;
        }"""
    )


def test_a_connection_that_is_lost_and_comes_back(live: Live, page: Page) -> None:
    page.goto(live.url)
    state = page.locator("#state")
    expect(state).to_have_text("open")
    live.load()
    live.stop()
    expect(state).to_contain_text("no answer since")
    expect(page.locator("body")).to_have_class("stale")
    live.serve()
    expect(state).to_have_text("open")
    expect(page.locator("body")).not_to_have_class("stale")
    expect(page.locator("[data-stat=failed]")).to_have_text(str(live.router.stats().failed))


def test_a_router_that_closes(live: Live, page: Page) -> None:
    page.goto(live.url)
    expect(page.locator("#state")).to_have_text("open")
    live.run(live.router.close)
    expect(page.locator("#state")).to_have_text("closed")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_that_can_be_read(live: Live, page: Page, scheme: Any) -> None:
    """Text has at least the contrast that WCAG 2.1 asks for (1.4.3: 4.5 to 1)."""
    page.emulate_media(color_scheme=scheme)
    page.goto(live.url)
    expect(page.locator("#state")).to_have_text("open")
    contrasts = page.evaluate(
        """() => {
            const channels = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
            const linear = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
            const luminance = (colour) => {
                const [r, g, b] = channels(colour).map(linear);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const back = (element) => {
                for (let e = element; e; e = e.parentElement) {
                    const colour = getComputedStyle(e).backgroundColor;
                    if (!/, 0\\)$/.test(colour)) return colour;
                }
            };
            return [...document.querySelectorAll("h1, h2, h3, dt, dd, p, th, td, summary, button")]
                .filter((e) => e.checkVisibility())
                .map((e) => {
                    const pair = [luminance(getComputedStyle(e).color), luminance(back(e))].sort();
                    return [(Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05), e.textContent];
                });
        }"""
    )
    assert len(contrasts) > 40
    assert [text for contrast, text in contrasts if contrast < 4.5] == []
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark == (scheme == "dark")
    assert (sum(map(int, back[4:-1].split(","))) < 200) == dark


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_wider_than_the_window(live: Live, page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    page.goto(live.url)
    page.locator("summary").click()
    while not live.router._ledger._observers:
        page.wait_for_timeout(20)
    live.load()
    live.run(live.router.submit, job(2**64 - 1, HOSTILE, latency_budget_ms=500.0))
    expect(page.locator("#records tr").first).to_contain_text(HOSTILE)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_settings_that_can_only_be_read(live: Live, page: Page) -> None:
    page.goto(live.url)
    page.locator("summary").click()
    expect(page.locator("[data-setting=queue_capacity]")).to_have_text("512")
    expect(page.locator("[data-setting=hop_us]")).to_have_text("none")
    assert page.locator("#settings [name]").count() == 0
    expect(page.locator("#change")).to_be_hidden()


def test_settings_that_can_be_changed(browser: Browser, page: Page) -> None:
    with ExitStack() as stack:
        live = Live(stack, allow_reconfigure=True)
        page.goto(live.url)
        page.locator("summary").click()
        field = page.get_by_label("queue_capacity")
        field.fill("0")
        page.locator("#change").click()
        answer = page.locator("#answer")
        expect(answer).to_have_text("queue_capacity must be at least 1 and below 2**64, got 0")
        field.fill("many")
        page.locator("#change").click()
        expect(answer).to_have_text("queue_capacity must be an integer, got 'many'")
        field.fill("99")
        page.get_by_label("trace_jobs").select_option("true")
        page.get_by_label("hop_us").fill("50.5")
        page.get_by_label("backpressure_busy_threshold").fill("2")
        with page.expect_request("**/api/config") as sent:
            page.locator("#change").click()
        assert sent.value.post_data_json == {
            "queue_capacity": 99,
            "trace_jobs": True,
            "hop_us": 50.5,
            "backpressure_busy_threshold": 2,
        }
        expect(answer).to_contain_text("changed ")
        assert live.router.config.queue_capacity == 99
        assert live.router.config.trace_jobs
        expect(page.locator("[data-stat=queue_capacity]")).to_have_text("99")
        page.get_by_label("hop_us").fill("")
        page.locator("#change").click()
        expect(answer).to_have_text("changed hop_us")
        assert live.router.config.hop_us is None
        page.locator("#change").click()
        expect(answer).to_have_text("nothing was changed")


@pytest.mark.parametrize("framework", ["starlette", "fastapi"])
def test_mounted_below_a_prefix(live: Live, page: Page, framework: str) -> None:
    """Also where the address lacks the slash at its end."""
    inner = live.app
    live.stop()
    if framework == "fastapi":
        live.app = FastAPI()
        live.app.mount("/ops/router", inner)
    else:
        live.app = Starlette(routes=[Mount("/ops/router", inner)])
    live.serve()
    page.goto(f"{live.url}ops/router")
    assert page.url == f"{live.url}ops/router/"
    expect(page.locator("#state")).to_have_text("open")
    live.load()
    expect(page.locator("[data-stat=failed]")).to_have_text(str(live.router.stats().failed))


def test_the_router_is_unharmed_by_pages(live: Live, browser: Browser) -> None:
    """Several watch while jobs come, and the books balance."""
    context = browser.new_context()
    for _ in range(4):
        context.new_page().goto(live.url)
    done = threading.Event()

    async def load() -> None:
        while not done.is_set():
            await submit_all(live.router, [job(i, compute_cost=100) for i in range(100)])
            await anyio.sleep(0.01)

    loading = live.portal.start_task_soon(load)
    for page in context.pages:
        page.wait_for_function("() => samples.length >= 3 && received > 30")
    done.set()
    loading.result(10)
    context.close()
    stats = live.router.stats()
    assert stats.submitted == stats.completed + stats.dropped > 100
