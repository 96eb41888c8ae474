"""The handle of a job that was submitted without waiting for it."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from helixnb._core.lifecycle import Entry, Ledger, log_unseen_failure
from helixnb._records import Outcome, Status


async def outcome_of(entry: Entry) -> Outcome:
    """Wait until a job has its outcome; a checkpoint in any case."""
    if entry.outcome is not None:
        await anyio.lowlevel.checkpoint()
        return entry.outcome
    if entry.done is None:
        entry.done = anyio.Event()
    await entry.done.wait()
    assert entry.outcome is not None  # done is set by what sets the outcome
    return entry.outcome


class Ticket:
    """A job on its way; `Router.submit_soon` gives one. The job belongs to the router.

    A ticket may be thrown away. If its job fails then, the failure is logged, since nobody will
    read it from the outcome.
    """

    __slots__ = ("_check_thread", "_entry", "_ledger", "_seen")

    def __init__(self, entry: Entry, ledger: Ledger, check_thread: Callable[[], None]) -> None:
        self._entry = entry
        self._ledger = ledger
        self._check_thread = check_thread
        self._seen = False

    def __repr__(self) -> str:
        outcome = self._entry.outcome
        state = "pending" if outcome is None else outcome.status.value
        return f"<Ticket job_id={self._entry.job.id} kind={self._entry.job.kind} {state}>"

    def __del__(self) -> None:
        outcome = self._entry.outcome
        if outcome is None:
            self._entry.orphaned = not self._seen
        elif outcome.status is Status.FAILED and not self._seen:
            # Without a traceback: to format one parses source text, and a finaliser may run inside
            # another parse, which CPython 3.11 doesn't survive.
            log_unseen_failure(outcome, traceback=False)

    @property
    def done(self) -> bool:
        """Whether the outcome is there."""
        return self._entry.outcome is not None

    @property
    def outcome(self) -> Outcome | None:
        """The outcome, None while there is none."""
        outcome = self._entry.outcome
        self._seen |= outcome is not None
        return outcome

    async def wait(self) -> Outcome:
        """Wait for the outcome. Cancelling this leaves the job as it is.

        Raises
        ------
        RouterStateError
            This isn't the thread of the router's event loop.
        """
        self._check_thread()
        outcome = await outcome_of(self._entry)
        self._seen = True
        return outcome

    def cancel(self) -> bool:
        """Cancel the job; returns whether that was in time.

        A queued job never runs. One that is running ends in its thread, unheard: its outcome is
        ``cancelled`` at once, its slot is free when the thread has ended.

        Raises
        ------
        RouterStateError
            This isn't the thread of the router's event loop.
        """
        self._check_thread()
        return self._ledger.settle(self._entry, Status.CANCELLED)
