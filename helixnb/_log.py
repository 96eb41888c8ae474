"""Logging that can't fail: what observes a job never decides its fate."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Mapping
from typing import Any


class SafeLogger:
    """The logger of a name, whose handlers, filters and record factories may raise.

    The standard handlers keep what goes wrong from who logs; an application's own may not. It is
    written to the standard error stream then, once, as `logging` does by itself.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        self._complained = False

    def is_debugged(self) -> bool:
        """Tell whether anybody listens to the lowest level."""
        try:
            return self._logger.isEnabledFor(logging.DEBUG)
        except Exception as error:  # a logger class of the application's own
            self._complain(error)
            return False

    def log(
        self,
        level: int,
        message: str,
        *args: Any,
        exc_info: BaseException | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Log as `logging.Logger.log` does; without `extra` where its names are taken."""
        try:
            try:
                self._logger.log(level, message, *args, exc_info=exc_info, extra=extra)
            except KeyError:  # the application's own record factory sets one of the names
                if extra is None:
                    raise
                self._logger.log(level, message, *args, exc_info=exc_info)
        except (KeyboardInterrupt, SystemExit):  # for the program, not for the router
            raise
        except BaseException as error:
            self._complain(error)

    def warning(self, message: str, *args: Any) -> None:
        """Log a warning."""
        self.log(logging.WARNING, message, *args)

    def error(self, message: str, *args: Any, exc_info: BaseException | None = None) -> None:
        """Log an error."""
        self.log(logging.ERROR, message, *args, exc_info=exc_info)

    def _complain(self, error: BaseException) -> None:
        if self._complained or not logging.raiseExceptions or sys.stderr is None:
            return
        self._complained = True
        try:
            print(f"--- Logging error of {self._logger.name} ---", file=sys.stderr)  # noqa: T201
            traceback.print_exception(error, file=sys.stderr)
        except Exception:  # noqa: S110  # nor may this
            pass
