"""What helixnb raises. Wrong input is a `ValueError` too, wrong use a `RuntimeError`."""

from __future__ import annotations

from helixnb_kernels._values import one_line


class HelixError(Exception):
    """Base of all errors of this package, except `KernelError`."""


class _InputError(HelixError, ValueError):
    """Whatever its message is made of, it is one line of at most 200 characters."""

    def __init__(self, message: object) -> None:
        super().__init__(one_line(message))


class ConfigError(_InputError):
    """A configuration that can't be: names the field, the value and what is allowed."""


class JobError(_InputError):
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


class JobFailed(HelixError):
    """What a job raised in another process, where the error itself couldn't travel from there.

    Its text is that of the error, after the name of its class.
    """


class JobCancelled(HelixError):
    """The answer of a job that was cancelled through its ticket; see `Outcome.value`."""
