"""Serves a router's page by uvicorn, beside what the router does in the same event loop."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator

import anyio
import uvicorn
from starlette.middleware.trustedhost import TrustedHostMiddleware
from uvicorn.server import HANDLED_SIGNALS

from helixnb._router import Router
from helixnb.web._app import create_app

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
"""What a browser calls this machine. Another name that leads here is one that somebody else has
bent (DNS rebinding), to have their page read this one's."""

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
    return socket.create_server(address, family=family, backlog=2048)


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
        lifespan="off",
        log_level="warning",
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
