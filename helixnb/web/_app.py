"""The ASGI application."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from importlib import resources
from typing import Any, NoReturn

import anyio
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from helixnb._errors import ConfigError, RouterStateError
from helixnb._router import Router
from helixnb.web._exposition import registry_of
from helixnb.web._feed import EventStream, Feed

STALE_S = 0.1
"""For how long an answer is good for all who ask: fifty readers cost as much as one."""

MOST_BYTES = 65_536
"""The largest body of a request."""

PATIENCE_S = 5.0
"""For how long a body may take to come."""

MOST_READERS = 100
"""How many may follow the decisions at once."""

OPEN_METRICS = "application/openmetrics-text"

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

PAGE = {
    "": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
"""The files of the page, and their types."""

Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(
    router: Router | Callable[[], Router], *, allow_reconfigure: bool = False
) -> Starlette:
    """Return an ASGI application that shows a router, to be mounted or served by itself.

    ======================  =====================================================================
    ``GET /``               the live page
    ``GET /api/stats``      `Stats` as JSON, with ``time_s``, the seconds of a monotonic clock
    ``GET /api/config``     `RouterConfig` as JSON
    ``PATCH /api/config``   changes settings, all of them or none; answers with the new ones
    ``GET /api/decisions``  what becomes of jobs, as server-sent events
    ``GET /metrics``        all metrics, in Prometheus's text format or OpenMetrics
    ``GET /health``         200 while the router takes jobs, or else 503
    ======================  =====================================================================

    It has no authentication and no CORS headers: where strangers can reach it, put your own
    middleware before it. Errors are JSON, as ``{"error": "..."}``.

    Parameters
    ----------
    router
        The router, opened or not yet; or what returns it, if it is made later than this. Until
        it does, and doesn't raise, all answers about it are 503.
    allow_reconfigure
        Whether settings may be changed, which takes the event loop of the router: served by
        another one, the application answers with 409.
    """
    find = router if callable(router) else lambda: router
    view = _View(find, allow_reconfigure=allow_reconfigure)
    routes = [
        *(Route(f"/{path}", _page_endpoint(path)) for path in PAGE),
        Route("/api/stats", view.stats),
        Route("/api/config", view.config, methods=["GET"]),
        Route("/api/config", view.reconfigure, methods=["PATCH"]),
        Route("/api/decisions", view.decisions),
        Route("/metrics", view.metrics),
        Route("/health", view.health),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _as_json})


def _page_endpoint(path: str) -> Endpoint:
    content = resources.files("helixnb.web").joinpath(path or "page.html").read_bytes()

    async def page(request: Request) -> Response:
        return Response(content, media_type=PAGE[path], headers=HEADERS)

    return page


async def _as_json(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = HEADERS | dict(error.headers or {})
    return _json({"error": error.detail}, status=error.status_code, headers=headers)


def _json(content: Any, *, status: int = 200, headers: dict[str, str] = HEADERS) -> Response:
    return Response(_encoded(content), status, headers, media_type="application/json")


def _encoded(content: Any) -> bytes:
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


class _View:
    """Answers requests about one router."""

    def __init__(self, find: Callable[[], Router], *, allow_reconfigure: bool) -> None:
        self._of_user = find
        self._allow_reconfigure = allow_reconfigure
        self._feed: Feed | None = None
        self._stats = _Shared(lambda: _encoded(_stats_of(self._find())))
        self._expositions: dict[str, _Shared] = {}
        self._registry = registry_of(self._find)

    def _find(self) -> Router:
        try:
            return self._of_user()
        except Exception as error:
            _refuse(503, f"there is no router yet: {type(error).__name__}")

    async def stats(self, request: Request) -> Response:
        return Response(self._stats.get(), 200, HEADERS, media_type="application/json")

    async def metrics(self, request: Request) -> Response:
        # One of two: the versions that anybody may ask for would make as many copies.
        accepts_newer = OPEN_METRICS in request.headers.get("accept", "")
        encode, media_type = choose_encoder(OPEN_METRICS if accepts_newer else "")
        shared = self._expositions.setdefault(media_type, _Shared(lambda: encode(self._registry)))
        return Response(shared.get(), 200, HEADERS, media_type=media_type)

    async def health(self, request: Request) -> Response:
        router = self._find()
        return _json({"state": router.state}, status=200 if router.is_open else 503)

    async def config(self, request: Request) -> Response:
        return _json(self._config_of(self._find()))

    def _config_of(self, router: Router) -> dict[str, Any]:
        return {
            "config": dataclasses.asdict(router.config),
            "allow_reconfigure": self._allow_reconfigure,
        }

    async def reconfigure(self, request: Request) -> Response:
        if not self._allow_reconfigure:
            _refuse(403, "settings can't be changed here: the application doesn't allow it")
        changes = await _changes_from(request)
        router = self._find()
        try:
            router.reconfigure(**changes)
        except ConfigError as error:
            _refuse(422, str(error))
        except RouterStateError as error:
            _refuse(409, str(error))
        return _json(self._config_of(router))

    async def decisions(self, request: Request) -> Response:
        if request.method == "HEAD":
            return Response(None, 200, HEADERS, media_type="text/event-stream")
        feed = self._feed_of(self._find())
        if feed.readers >= MOST_READERS:
            _refuse(503, f"{MOST_READERS} readers follow already", {"Retry-After": "10"})
        since = request.headers.get("last-event-id", "")
        known = since.isascii() and since.isdecimal() and len(since) < 20
        return EventStream(feed, int(since) if known else 0, HEADERS)

    def _feed_of(self, router: Router) -> Feed:
        if self._feed is None or self._feed.router is not router:
            self._feed = Feed(router)  # readers of an earlier one hear its end from that one
        return self._feed


class _Shared:
    """What is worked out once for all who ask within a tenth of a second."""

    def __init__(self, make: Callable[[], bytes]) -> None:
        self._make = make
        self._made: bytes = b""
        self._made_s = -math.inf

    def get(self) -> bytes:
        now_s = time.monotonic()
        if now_s - self._made_s > STALE_S:
            self._made = self._make()
            self._made_s = now_s
        return self._made


def _stats_of(router: Router) -> dict[str, Any]:
    return {"time_s": time.monotonic(), **router.stats().as_dict()}


def _refuse(status: int, why: str, headers: dict[str, str] | None = None) -> NoReturn:
    raise HTTPException(status, why, headers) from None


async def _changes_from(request: Request) -> dict[str, Any]:
    """Read the settings that a request would change; their values are the router's to check."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":  # which no form of another site can send
        _refuse(415, f"the body must be application/json, got {media_type or 'no type'!r}")
    body = b""
    try:
        with anyio.fail_after(PATIENCE_S):
            async with aclosing(request.stream()) as pieces:
                async for piece in pieces:
                    body += piece
                    if len(body) > MOST_BYTES:
                        _refuse(413, f"the body must not be larger than {MOST_BYTES} bytes")
    except TimeoutError:
        _refuse(408, f"the body took longer than {PATIENCE_S:g} s")
    except ClientDisconnect:
        _refuse(400, "the client has gone")
    try:
        changes = json.loads(body, parse_constant=_no_number, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        _refuse(400, f"the body must be JSON: {error}")
    if not isinstance(changes, dict):
        _refuse(422, f"the body must be an object of settings, got {type(changes).__name__}")
    for name, value in changes.items():
        if isinstance(value, dict | list):  # which may nest as deep as repr doesn't go
            what = "a number, a string, true, false or null"
            _refuse(422, f"{name} must be {what}, got {type(value).__name__}")
    return changes


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} isn't a number in JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("a name stands twice in an object")
    return names
