"""The handle of a job that was submitted without waiting for it."""

from __future__ import annotations

from collections.abc import Callable

from helixnb._core.lifecycle import Entry, log_unseen_failure
from helixnb._records import Outcome, Status


class Ticket:
    """A job on its way; `Router.submit_soon` gives one. The job belongs to the router.

    A ticket may be thrown away. If its job fails then, the failure is logged, since nobody will
    read it from the outcome.
    """

    __slots__ = ("_cancel", "_entry", "_seen")

    def __init__(self, entry: Entry, cancel: Callable[[Entry], bool]) -> None:
        self._entry = entry
        self._cancel = cancel
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
            log_unseen_failure(outcome)

    @property
    def done(self) -> bool:
        """Whether the outcome is there."""
        return self._entry.outcome is not None

    async def wait(self) -> Outcome:
        """Wait for the outcome. Cancelling this leaves the job as it is."""
        self._seen = True
        await self._entry.done.wait()
        assert self._entry.outcome is not None  # done is set by what sets the outcome
        return self._entry.outcome

    def cancel(self) -> bool:
        """Cancel the job; returns whether that was in time.

        A queued job never runs. One that is running ends in its thread, unheard: its outcome is
        ``cancelled`` at once, its slot is free when the thread has ended.
        """
        return self._cancel(self._entry)
