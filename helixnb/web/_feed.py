"""What becomes of jobs, as server-sent events: lossy towards slow readers, never the router."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import AsyncGenerator
from typing import Any

import anyio
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from helixnb._observe.watch import JobRecord
from helixnb._router import Router

TICK_S = 0.5
"""How often an event is sent, if there is news."""

NEWEST = 50
"""How many records an event has at most: the newest of its tick."""

QUIET_S = 5.0
"""After so long without news a comment is sent, by which both sides see whether the other lives."""

LIFE_S = 20.0
"""When a stream ends. A server that shuts down waits for its responses; and a browser's EventSource
comes back by itself, and says what it has seen."""

LONGEST_S = 30.0
"""When a reader is given up whose connection takes nothing, so that it never comes to its end."""


class Feed:
    """Makes the events of one router, each once for all readers.

    Attributes
    ----------
    router
        Whose jobs they are of.
    readers
        How many follow: who reads must `enter` first, and `leave` at the end.
    """

    def __init__(self, router: Router) -> None:
        self.router = router
        self.readers = 0
        self._watch = router.watch(NEWEST)
        self._event = b""
        self._seen = 0
        self._made_s = 0.0

    def enter(self) -> None:
        """Count a reader in; the first one lets records be kept."""
        if self.readers == 0:
            self._watch.__enter__()
        self.readers += 1

    def leave(self) -> None:
        """Count a reader out."""
        self.readers -= 1
        if self.readers == 0:
            self._watch.__exit__(None, None, None)

    async def events(self, since: int) -> AsyncGenerator[bytes]:
        """Yield events for one reader, who has seen the records before number `since`.

        A reader that takes nothing while others do finds out by the records' numbers.
        """
        began_s = spoke_s = time.monotonic()
        yield b"retry: 500\n\n"
        if since > self._watch.seen:  # of another router, or of this one before a restart
            since = 0
        while (now_s := time.monotonic()) - began_s < LIFE_S:
            event, seen = self._latest(now_s)
            if seen > since:
                since, spoke_s = seen, now_s
                yield event
            elif now_s - spoke_s > QUIET_S:
                spoke_s = now_s
                yield b":\n\n"
            if not self.router.is_open:
                return
            await anyio.sleep(TICK_S)

    def _latest(self, now_s: float) -> tuple[bytes, int]:
        """Return the event of this tick, and how many records there were up to it."""
        if now_s - self._made_s > 0.9 * TICK_S and self._watch.seen > self._seen:
            records = self._watch.latest(self._seen)
            self._seen = records[-1].number + 1
            self._event = _encoded(self._seen, records)
            self._made_s = now_s
        return self._event, self._seen


class EventStream(StreamingResponse):
    """The events for one reader, who is counted from when this is made until it has been sent."""

    def __init__(self, feed: Feed, since: int, headers: dict[str, str]) -> None:
        self._events = feed.events(since)
        super().__init__(self._events, headers=headers, media_type="text/event-stream")
        self._feed = feed
        feed.enter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with anyio.move_on_after(LONGEST_S):
                await super().__call__(scope, receive, send)
        finally:
            self._feed.leave()
            await self._events.aclose()  # stands at a yield, where the reader took no more


def _encoded(seen: int, records: list[JobRecord]) -> bytes:
    content = {"seen": seen, "records": [_as_dict(record) for record in records]}
    data = json.dumps(content, separators=(",", ":"))
    return f"id: {seen}\ndata: {data}\n\n".encode()


def _as_dict(record: JobRecord) -> dict[str, Any]:
    """Return a record as JSON has it.

    An id may be beyond what JavaScript's numbers hold, and a budget any real number of Python's.
    """
    job_id, budget_ms = record.job_id, record.latency_budget_ms
    return dataclasses.asdict(record) | {
        "job_id": None if job_id is None else str(job_id),
        "latency_budget_ms": None if budget_ms is None else float(budget_ms),
    }
