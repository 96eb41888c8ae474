"""Serves a router's page by uvicorn, beside what the router does in the same event loop."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator

import anyio
import uvicorn
from starlette.middleware.trustedhost import TrustedHostMiddleware
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import HANDLED_SIGNALS

from helixnb._router import Router
from helixnb.web._app import create_app

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
"""What a browser calls this machine. Another name that leads here is one that somebody else has
bent (DNS rebinding), to have their page read this one's."""

MOST_CONNECTIONS = 200
"""How many there may be. Without a bound, some process may take all file descriptors; from then on
asyncio tries to accept, and logs that it can't, so often that nothing else gets a turn."""

ACCEPTED_AT_ONCE = 32
"""How many connections are accepted in a turn of the event loop."""

WAITING = 1_024
"""How many may wait until they are accepted."""

STUCK_S = 60.0
"""After so long without a sign of life a response is stuck: events end sooner, others are short."""

GRACE_S = 1
"""How long open connections may take to end."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on the first address of `host`; port 0 is any that is free.

    Raises
    ------
    OSError, UnicodeError
        There is no such host, or the port is taken.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, *_, address = found[0]
    return socket.create_server(address, family=family)


async def serve(
    router: Router,
    listener: socket.socket,
    host: str,
    work: Callable[[], Awaitable[object]],
    *,
    allow_reconfigure: bool,
    on_listening: Callable[[str], object],
) -> None:
    """Serve the page of an open router while `work` goes on, until Ctrl-C or SIGTERM.

    Closes the router then. Must run on asyncio, in the main thread.
    """
    app = create_app(router, allow_reconfigure=allow_reconfigure)
    address, port = listener.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    if ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, name])
    config = uvicorn.Config(
        app,
        access_log=False,
        backlog=ACCEPTED_AT_ONCE,
        http=_Connection,
        lifespan="off",
        log_level="error",  # what is below is about what clients send, as often as they like
        timeout_graceful_shutdown=GRACE_S,
        ws="none",
    )
    scope = anyio.CancelScope()

    async def go_on() -> None:
        with scope:
            await work()

    async def end() -> None:
        scope.cancel()
        await router.close()

    server = _Server(config, lambda: on_listening(f"http://{name}:{port}/"), end)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(go_on)
        await server.serve(sockets=[listener])


class _Connection(H11Protocol):
    """A connection that makes room for itself: where there are too many, an idle one has to go."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.used_s = self.loop.time()
        if len(self.connections) > MOST_CONNECTIONS:
            others = (each for each in self.connections if isinstance(each, _Connection))
            idle = (each for each in others if each.may_go())  # it may itself
            idlest = min(idle, key=lambda each: each.used_s)
            self.connections.discard(idlest)  # it hears of its end later
            idlest.transport.abort()

    def data_received(self, data: bytes) -> None:
        self.used_s = self.loop.time()
        super().data_received(data)

    def on_response_complete(self) -> None:
        self.used_s = self.loop.time()
        super().on_response_complete()

    def may_go(self) -> bool:
        """Tell whether nobody misses it: it is idle, or stuck."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete or self.transport.is_closing():
            return True
        return self.loop.time() - self.used_s > STUCK_S


class _Server(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        on_listening: Callable[[], object],
        close: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(config)
        self._on_listening = on_listening
        self._close = close

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(WAITING)  # the server has set that to what it accepts at once
        self._on_listening()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._close()  # with the router end the streams of its decisions
        # The streams that have to be cut, since nobody reads them, would be logged as errors.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Heed signals, but don't raise them again at the end, as the base does."""
        before = {each: signal.signal(each, self.handle_exit) for each in HANDLED_SIGNALS}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
