"""An HTTP service: two endpoints with budgets, under a router, with its live page at ``/router``.

``python service.py`` serves on loopback until Ctrl-C or SIGTERM. ``--naive`` serves the same
without a router, by `asyncio.to_thread`; ``--check`` asks each endpoint once and ends. `app` is for
servers that are started by their own command, as ``uvicorn service:app``. It needs
``pip install 'helixnb[web]'``.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import logging
import math
import random
import signal
import time
from contextlib import asynccontextmanager

import numpy as np
import uvicorn
from option_pricing import european_call
from scoring import FEATURES, score
from starlette.applications import Starlette
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from helixnb import Router, Status
from helixnb.web import create_app
from helixnb_kernels import warm_up

logger = logging.getLogger("uvicorn.error")  # which uvicorn has set up

KERNELS = (european_call, score)
PRICE_BUDGET_MS = 50.0
SCORE_BUDGET_MS = 10.0
HTTP_MS = 4.0
"""What of a client's budget goes on the way to the router and back: the job gets the rest."""

MOST_BYTES = 131_072
"""The largest body: to parse JSON holds up the event loop, 2 ms for this much."""

JITTER_S = 3
"""By up to how many seconds clients are told to come back later than they could."""

NOTICE_S = 1.0
"""How long a load balancer has to find out, after SIGTERM, that nothing should be sent here."""

SLOW_CLIENT_S = 5
"""How long clients may take then to read their answers."""

score.bind(weights=np.linspace(-1.0, 1.0, FEATURES), intercept=[0.1])  # stands for a trained model


# -- What comes in -------------------------------------------------------------------------------

OPTION = {
    "spot": (0.01, 1e6),
    "strike": (0.01, 1e6),
    "rate": (-0.5, 0.5),
    "volatility": (0.001, 5.0),
    "maturity": (0.001, 50.0),
}
WHOLE = {"pairs": (1, 10_000_000), "seed": (0, 2**32 - 1)}


async def bytes_of(request):
    """Return the body that was sent, and take in no more of it than may be."""
    too_large = HTTPException(
        413, f"the body must have at most {MOST_BYTES:,} bytes", {"Connection": "close"}
    )
    length = request.headers.get("Content-Length", "0")
    if not length.isdecimal() or int(length[:20]) > MOST_BYTES:
        raise too_large
    body = bytearray()  # what is sent in chunks has no length
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES:
                raise too_large
    except ClientDisconnect:
        raise HTTPException(400, "the client has gone") from None
    return bytes(body)


async def body_of(request, names):
    """Return the JSON object that was sent; it must have these names, and no others."""
    try:
        body = json.loads(await bytes_of(request))
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict) or body.keys() != set(names):
        raise HTTPException(422, f"the body must be a JSON object of {', '.join(names)}")
    return body


def check(name, value, low, high, types=(int, float)):
    """Return a number, or refuse what isn't one or lies out of range."""
    # True is an int to Python. The comparison is false for NaN, which Python's JSON has.
    if type(value) in types and low <= value <= high:
        return value
    what = "a whole number" if types == (int,) else "a number"
    raise HTTPException(422, f"{name} must be {what} in {low:,} .. {high:,}")


async def price_job(request):
    """Make a job of an option, with the number of pairs of paths and the seed."""
    body = await body_of(request, (*OPTION, *WHOLE))
    option = [check(name, body[name], *limits) for name, limits in OPTION.items()]
    pairs, seed = (check(name, body[name], *limits, (int,)) for name, limits in WHOLE.items())
    return european_call.job(
        option, id=seed, compute_cost=pairs, latency_budget_ms=PRICE_BUDGET_MS - HTTP_MS
    )


async def score_job(request):
    """Make a job of a row of features."""
    row = (await body_of(request, ("features",)))["features"]
    if not isinstance(row, list) or len(row) != FEATURES:
        raise HTTPException(422, f"features must be a list of {FEATURES} numbers")
    row = [check(f"features[{i}]", value, -1e6, 1e6) for i, value in enumerate(row)]
    return score.job(row, latency_budget_ms=SCORE_BUDGET_MS - HTTP_MS)


# -- What runs it --------------------------------------------------------------------------------


async def run_routed(router, job):
    """Return the value of a job, or raise what a client should be told."""
    outcome = await router.submit(job)
    if outcome.status is Status.COMPLETED:
        return outcome.value
    if outcome.status is Status.DROPPED:
        raise HTTPException(503, f"dropped: {outcome.reason}", retry_headers(outcome.retry_after_s))
    logger.error("job %d of kind %s failed", job.id, job.kind, exc_info=outcome.error)
    raise HTTPException(500, "the job failed")


def retry_headers(wait_s):
    """Return the header that says when to come back, or none where waiting would not help."""
    if wait_s is None or math.isinf(wait_s):
        return {}
    # Whoever was dropped in the same moment would come back in the same one too.
    return {"Retry-After": str(max(1, math.ceil(wait_s)) + random.randint(0, JITTER_S))}  # noqa: S311


async def run_in_thread(job):
    """Do the same without a router: every job is let in, and waits for as long as it takes."""
    kernel = next(each for each in KERNELS if each.name == job.kind)
    return await asyncio.to_thread(
        kernel, job.inputs, id=job.id, compute_cost=job.compute_cost, **job.params
    )


# -- The application -----------------------------------------------------------------------------


def new_router():
    """Return what an application runs its jobs on, each time that it starts."""
    return Router(kernels=KERNELS)


def create_service(router=None):
    """Return the ASGI application: on a router that has `KERNELS`, or on threads.

    `router` is one, or makes one for each start: a router opens once, and not before a fork.
    """
    state = State({"leaving": False, "router": None, "page": None})

    async def run(job):
        if router is None:
            return await run_in_thread(job)
        return await run_routed(state.router, job)

    def reply(content, status=200, headers=None):
        # Who keeps a connection would send the next request into it while it is being closed.
        close = {"Connection": "close"} if state.leaving else {}
        return JSONResponse(content, status, {**(headers or {}), **close})

    async def price(request):
        mean, error = await run(await price_job(request))
        return reply({"price": float(mean), "standard_error": float(error)})

    async def probability(request):
        return reply({"score": await run(await score_job(request))})

    async def health(_request):
        ready = not state.leaving and (router is None or state.router.is_open)
        return reply({"ready": ready}, 200 if ready else 503)

    async def refuse(_request, error):
        return reply({"error": error.detail}, error.status_code, error.headers)

    async def page(scope, receive, send):
        await state.page(scope, receive, send)

    @asynccontextmanager
    async def lifespan(_app):
        if router is None:
            warm_up(KERNELS)
            yield
            return
        state.router = router() if callable(router) else router
        state.page = create_app(state.router)
        async with state.router:  # compiles the kernels: the server listens when that is done
            yield

    routes = [
        Route("/price", price, methods=["POST"]),
        Route("/score", probability, methods=["POST"]),
        Route("/health", health),
    ]
    if router is not None:
        routes.append(Mount("/router", page))
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: refuse})
    app.state = state
    return app


app = create_service(new_router)
"""For ``uvicorn service:app``. Nothing is opened or compiled before it starts."""


# -- The server ----------------------------------------------------------------------------------


class Server(uvicorn.Server):
    """A server that tells before it leaves, and leaves no request without its answer."""

    def __init__(self, router, *, port, notice_s=NOTICE_S):
        self.app = create_service(router)
        self.router = router
        self.notice_s = notice_s
        config = uvicorn.Config(
            self.app, port=port, access_log=False, timeout_graceful_shutdown=SLOW_CLIENT_S
        )
        super().__init__(config)

    def handle_exit(self, sig, frame):
        """Begin to leave: /health says so from now on, and all else goes on."""
        self.app.state.leaving = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets=None):
        """Wait until nobody sends any more, end what is in flight, then close."""
        until = time.monotonic() + self.notice_s
        # A second Ctrl-C is in a hurry.
        while time.monotonic() < until and not self.force_exit:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        if self.router is not None:
            # Before the connections: the page's streams end with the router.
            await self.router.close()
        await super().shutdown(sockets)


def ask(port, path, body):
    """Send one request, and return the answer's status and text."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        method, data = ("GET", None) if body is None else ("POST", json.dumps(body))
        connection.request(method, path, data)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


async def ask_once(server):
    """Start, ask each endpoint once, print the answers, and end."""
    serving = asyncio.ensure_future(server.serve())
    while not (server.started or serving.done()):  # noqa: ASYNC110  # it says so in no other way
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    option = {"spot": 100, "strike": 105, "rate": 0.02, "volatility": 0.25, "maturity": 0.5}
    for path, body in (
        ("/price", {**option, "pairs": 100_000, "seed": 1}),
        ("/score", {"features": [0.5] * FEATURES}),
        ("/health", None),
    ):
        print(path, await asyncio.to_thread(ask, port, path, body))
    server.should_exit = True
    await serving


def main():
    """Serve, or ask once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--naive", action="store_true", help="on asyncio.to_thread, no router")
    parser.add_argument("--notice", type=float, default=NOTICE_S, help="seconds (%(default)s)")
    parser.add_argument("--check", action="store_true", help="ask each endpoint once, and end")
    options = parser.parse_args()
    router = None if options.naive else new_router()
    if options.check:
        asyncio.run(ask_once(Server(router, port=0, notice_s=0.0)))
        return
    # When it has shut down, uvicorn raises the signal again for whoever handled it before, by
    # default to end the process by it: a clean end would look like a kill.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    Server(router, port=options.port, notice_s=options.notice).run()


if __name__ == "__main__":
    main()
