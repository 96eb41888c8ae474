"""Backends, a cold kernel cache of the session's own, and hypothesis settings."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("helixnb", deadline=None, max_examples=50)
settings.load_profile("helixnb")

_cache = tempfile.TemporaryDirectory(prefix="helixnb-test-cache-")
os.environ["HELIXNB_CACHE_DIR"] = _cache.name

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


def pytest_unconfigure() -> None:
    _cache.cleanup()
