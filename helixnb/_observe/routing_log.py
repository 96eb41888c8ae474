"""The routing log: one line a job at DEBUG on the logger ``helixnb.route``."""

from __future__ import annotations

import logging
from collections.abc import Callable

from helixnb._core.lifecycle import Entry
from helixnb._core.rows import Rows
from helixnb._records import Job, Load, Strategy

logger = logging.getLogger("helixnb.route")


def log_route(entry: Entry, load: Load) -> None:
    """Log how a job is routed, if anybody listens; each field is also one of the record's.

    ``strategy`` is what was decided; ``executed`` stands in the line too where it differs.
    """
    if logger.isEnabledFor(logging.DEBUG):
        _log(entry.job, entry.decision.strategy, entry.strategy, entry.reason, load)


def log_rows(rows: Rows, job: Callable[[int], Job], load: Load) -> None:
    """Log how jobs in columns are routed, as `log_route` does; `job` gives each by its position."""
    if logger.isEnabledFor(logging.DEBUG):
        strategies = tuple(Strategy)
        for at in range(len(rows.status)):
            decided, executed = strategies[rows.decided[at]], strategies[rows.strategy[at]]
            _log(job(at), decided, executed, rows.reasons[rows.reason[at]], load)


def _log(job: Job, decided: Strategy, executed: Strategy, reason: str, load: Load) -> None:
    fields = {
        "job_id": job.id,
        "kind": job.kind,
        "cost": job.compute_cost,
        "scaling": job.scaling_potential,
        "latency_budget_ms": job.latency_budget_ms,
        "strategy": decided.value,
        "cpu_busy": load.cpu_busy,
    }
    if executed is not decided:
        fields["executed"] = executed.value
    fields["reason"] = reason
    line = " ".join(f"{name}={value}" for name, value in fields.items())
    try:
        logger.debug("route %s", line, extra=fields)
    except KeyError:  # the application's own record factory sets one of the names
        logger.debug("route %s", line)
