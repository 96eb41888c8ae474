"""Backends, a cold kernel cache of the session's own, and hypothesis settings."""

from __future__ import annotations

import atexit
import gc
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from support import debian

settings.register_profile("helixnb", deadline=None, max_examples=50)
settings.load_profile("helixnb")

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share that of the process that starts them
    _cache = tempfile.TemporaryDirectory(prefix="helixnb-test-cache-")
    os.environ["HELIXNB_CACHE_DIR"] = _cache.name
    atexit.register(_cache.cleanup)

_BACKENDS = [
    pytest.param(("asyncio", {}), id="asyncio"),
    pytest.param(("trio", {}), id="trio"),
]
if os.name != "nt":
    _BACKENDS.append(pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"))


@pytest.fixture(params=_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run each async test on every backend."""
    return request.param


def pytest_collection_finish() -> None:
    """Leave what was imported out of later collections: to look through it takes 0.1 s each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Give a Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = debian("chromium", "chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()
