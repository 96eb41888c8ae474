"""What becomes of jobs, as server-sent events: lossy towards slow readers, never the router."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio

from helixnb._observe.watch import JobRecord, Watch
from helixnb._router import Router

TICK_S = 0.25
"""How often an event is sent, if there is news."""

NEWEST = 50
"""How many records an event has at most: the newest of its tick."""

QUIET_S = 5.0
"""After so long without news a comment is sent, by which both sides see whether the other lives."""

LIFE_S = 20.0
"""When a stream ends. A server that shuts down waits for its responses; and a browser's EventSource
comes back by itself, and says what it has seen."""


class Feed:
    """Makes the events, each once for all readers.

    Attributes
    ----------
    readers
        How many follow.
    """

    def __init__(self) -> None:
        self.readers = 0
        self._watch: Watch | None = None
        self._router: Router | None = None
        self._event = b""
        self._seen = 0
        self._made_s = 0.0

    async def events(self, router: Router, since: int) -> AsyncIterator[bytes]:
        """Yield events for one reader, who has seen the records before number `since`.

        A reader that takes nothing while others do finds out by the records' numbers.
        """
        watch = self._watch_of(router)
        if self.readers == 0:
            watch.__enter__()
        self.readers += 1
        try:
            began_s = spoke_s = time.monotonic()
            yield b"retry: 500\n\n"
            if since > watch.seen:  # of another router, or of this one before a restart
                since = 0
            while (now_s := time.monotonic()) - began_s < LIFE_S:
                event, seen = self._latest(watch, now_s)
                if seen > since:
                    since, spoke_s = seen, now_s
                    yield event
                elif now_s - spoke_s > QUIET_S:
                    spoke_s = now_s
                    yield b":\n\n"
                if not router.is_open:
                    return
                await anyio.sleep(TICK_S)
        finally:
            self.readers -= 1
            if self.readers == 0:
                watch.__exit__(None, None, None)

    def _watch_of(self, router: Router) -> Watch:
        if self._watch is None or self._router is not router:
            self._router, self._watch = router, router.watch(NEWEST)
            self._event, self._seen = b"", 0
        return self._watch

    def _latest(self, watch: Watch, now_s: float) -> tuple[bytes, int]:
        """Return the event of this tick, and how many records there were up to it."""
        if now_s - self._made_s > 0.9 * TICK_S and watch.seen > self._seen:
            records = watch.latest(self._seen)
            self._seen = watch.seen
            self._event = _encoded(self._seen, records)
            self._made_s = now_s
        return self._event, self._seen


def _encoded(seen: int, records: list[JobRecord]) -> bytes:
    content = {"seen": seen, "records": [_as_dict(record) for record in records]}
    data = json.dumps(content, separators=(",", ":"))
    return f"id: {seen}\ndata: {data}\n\n".encode()


def _as_dict(record: JobRecord) -> dict[str, Any]:
    """Return a record as JSON has it: an id may be beyond what JavaScript's numbers hold."""
    job_id = record.job_id
    return dataclasses.asdict(record) | {"job_id": None if job_id is None else str(job_id)}
