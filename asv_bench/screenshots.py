"""Write the pictures of the live page: a router under a load that has some of everything.

``python screenshots.py [directory]``, by default docs/images; takes about a minute, and the
Chromium that the system has.
"""

from __future__ import annotations

import itertools
import shutil
import socket
import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import uvicorn
from playwright.async_api import Browser, Page, async_playwright

from helixnb import Router
from helixnb.web import create_app
from helixnb.workload import (
    HEAVY_KERNELS,
    bursty,
    calibrate,
    heavy_mix,
    light_mix,
    open_loop,
    poisson,
)
from helixnb_kernels import BUILT_IN

HISTORY_S = 63.0
"""How long the page looks on: four bursts, and half of a fifth one."""

LIGHT_RATE, HEAVY_RATE, CALL_RATE = 700.0, 150.0, 20.0
"""Jobs a second; those of the heavy mix come in bursts, of three times as many."""

BURST_PERIOD_S = 15.0
SIZES = {
    "light": {"viewport": {"width": 1280, "height": 1000}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 1000}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 1500}, "color_scheme": "light"},
}


async def call_loop(router: Router) -> None:
    """Route a callable now and then, one after the other; every twentieth one fails."""
    for number in itertools.count():
        await anyio.sleep(1 / CALL_RATE)
        await router.run(
            partial(divmod, 1, number % 20) if number % 4 == 0 else partial(time.sleep, 0.004),
            compute_cost=20_000,
            latency_budget_ms=30,
            kind="thumbnail",
        )


async def open_page(browser: Browser, address: str, options: dict[str, Any]) -> Page:
    """Open the page in a window of its own."""
    page = await browser.new_page(**options)
    await page.goto(address)
    return page


async def main(directory: Path) -> None:
    """Serve the page, load the router, and take the pictures."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("there is no chromium on the path")
    kernels = {each.name: each for each in (*BUILT_IN, *HEAVY_KERNELS)}.values()
    seconds = 2 * HISTORY_S
    light = light_mix(round(LIGHT_RATE * seconds), 1)
    heavy = heavy_mix(round(HEAVY_RATE * seconds), 2, calibrate())
    light_due: Iterable[float] = poisson(LIGHT_RATE, 3)
    heavy_due: Iterable[float] = bursty(HEAVY_RATE, 4, peak=3.0, period_s=BURST_PERIOD_S)
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    async with (
        Router(kernels=kernels) as router,
        async_playwright() as playwright,
        anyio.create_task_group() as tasks,
    ):
        server = uvicorn.Server(
            uvicorn.Config(create_app(router), log_level="error", lifespan="off")
        )
        tasks.start_soon(server.serve, [listener])
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        pages = {
            name: await open_page(browser, address, options) for name, options in SIZES.items()
        }
        tasks.start_soon(partial(open_loop, router, light, arrivals=light_due))
        tasks.start_soon(partial(open_loop, router, heavy, arrivals=heavy_due))
        tasks.start_soon(call_loop, router)
        await anyio.sleep(HISTORY_S)
        for name, page in pages.items():
            await page.screenshot(path=directory / f"page-{name}.png")
        await browser.close()
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    arguments = sys.argv[1:] or [str(Path(__file__).parents[1] / "docs" / "images")]
    anyio.run(main, Path(arguments[0]))
