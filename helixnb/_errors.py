"""What helixnb raises. Wrong input is a `ValueError` too, wrong use a `RuntimeError`."""

from __future__ import annotations


class HelixError(Exception):
    """Base of all errors of this package, except `KernelError`."""


class ConfigError(HelixError, ValueError):
    """A configuration that can't be: names the field, the value and what is allowed."""


class JobError(HelixError, ValueError):
    """A job that can't be: names the field, the value and what is allowed. Nothing ran."""


class UnknownKindError(JobError):
    """A job of a kind that the router has no kernel for."""


class RouterStateError(HelixError, RuntimeError):
    """A router that can't do this now: not open yet, used from another thread, or crashed."""


class JobDropped(HelixError):
    """The answer of a job that was dropped; see `Outcome.value`.

    Attributes
    ----------
    reason : str
        Why, such as ``pool_saturated``, ``queue_full`` or ``router_closed``.
    retry_after_s : float or None
        Seconds after which a new try may succeed, 0 where only that tells; None where waiting
        would not help, or where nothing is known.
    """

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason, retry_after_s)
        self.reason = reason
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        hint = "" if self.retry_after_s is None else f"; retry after {self.retry_after_s:.3g} s"
        return f"job dropped: {self.reason}{hint}"


class JobCancelled(HelixError):
    """The answer of a job that was cancelled through its ticket; see `Outcome.value`."""
