"""Photograph the live page over a router under a load that shows something of everything."""

from __future__ import annotations

import argparse
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import anyio
import uvicorn
from playwright.async_api import Browser, ViewportSize, async_playwright

from helixnb import Router
from helixnb.web import create_app
from helixnb.workload import (
    asian_call,
    bursty,
    calibrate,
    heavy_mix,
    light_mix,
    open_loop,
)
from helixnb_kernels import BUILT_IN

SHOTS: dict[str, tuple[ViewportSize, Literal["light", "dark"]]] = {
    "page-light": ({"width": 1280, "height": 1000}, "light"),
    "page-dark": ({"width": 1280, "height": 1000}, "dark"),
    "page-phone": ({"width": 390, "height": 1500}, "light"),
}
"""How large the window is, and what the user prefers."""

LIGHT, HEAVY = 400, 60
"""Jobs a second of each mix: the heavy one comes in bursts of four times as many."""


async def load(router: Router, seconds: float) -> None:
    """Let both mixes come."""
    heavy = heavy_mix(int(HEAVY * seconds), 1, calibrate())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(
            functools.partial(
                open_loop, router, light_mix(int(LIGHT * seconds), 1), rate=LIGHT, seed=1
            )
        )
        tasks.start_soon(
            functools.partial(open_loop, router, heavy, arrivals=bursty(HEAVY, 1, period_s=15.0))
        )


@asynccontextmanager
async def served(router: Router, port: int) -> AsyncIterator[str]:
    """Serve a router's page; yields its address."""
    config = uvicorn.Config(create_app(router), port=port, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve)
        while not server.started:  # noqa: ASYNC110  # it sets no event
            await anyio.sleep(0.05)
        yield f"http://127.0.0.1:{port}/"
        server.should_exit = server.force_exit = True


async def photograph(browser: Browser, url: str, seconds: float, directory: Path) -> None:
    """Let the page gather history, and save how it looks."""
    page = await browser.new_page()
    await page.goto(url)
    await anyio.sleep(seconds)
    for name, (size, scheme) in SHOTS.items():
        await page.set_viewport_size(size)
        await page.emulate_media(color_scheme=scheme)
        await anyio.sleep(2)
        await page.screenshot(path=directory / f"{name}.png")


async def run(options: argparse.Namespace) -> None:
    """Do all of it."""
    async with (
        Router(kernels=(*BUILT_IN, asian_call)) as router,
        served(router, options.port) as url,
        async_playwright() as playwright,
        anyio.create_task_group() as tasks,
    ):
        browser = await playwright.chromium.launch(
            executable_path=options.chromium, args=["--no-sandbox"]
        )
        tasks.start_soon(load, router, options.seconds + 60)
        await photograph(browser, url, options.seconds, options.directory)
        await browser.close()
        tasks.cancel_scope.cancel()


def main() -> None:
    """Read the options, and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=100, help="of history (%(default)g)")
    parser.add_argument("--directory", type=Path, default=Path("../docs/images"))
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="(%(default)s)")
    parser.add_argument("--port", type=int, default=8765, help="(%(default)s)")
    anyio.run(run, parser.parse_args())


if __name__ == "__main__":
    main()
