"""The routing log: one line a job at DEBUG on the logger ``helixnb.route``."""

from __future__ import annotations

import logging
from typing import Any

from helixnb._core.lifecycle import Entry
from helixnb._core.rows import Rows
from helixnb._log import SafeLogger
from helixnb._records import Estimate, Job, Load, Strategy

logger = SafeLogger("helixnb.route")


def is_logging() -> bool:
    """Tell whether anybody listens."""
    return logger.is_debugged()


def log_route(entry: Entry, load: Load, estimate: Estimate) -> None:
    """Log how a job is routed, if anybody listens; each field is also one of the record's.

    ``strategy`` is what was decided; ``executed`` stands in the line too where it differs. The rest
    is all that a policy reads, so that a decision can be repeated.
    """
    if is_logging():
        decided = entry.decision
        _log(entry.job, decided.strategy, entry.strategy, entry.reason, load, estimate)


def log_row(rows: Rows, at: int, job: Job, load: Load, estimate: Estimate) -> None:
    """Log how a job in columns is routed, as `log_route` does."""
    strategies = tuple(Strategy)
    decided, executed = strategies[rows.decided[at]], strategies[rows.strategy[at]]
    _log(job, decided, executed, rows.reasons[rows.reason[at]], load, estimate)


def _log(
    job: Job, decided: Strategy, executed: Strategy, reason: str, load: Load, estimate: Estimate
) -> None:
    fields: dict[str, Any] = {
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
    for record in (load, estimate):
        fields |= {name: getattr(record, name) for name in record.__dataclass_fields__}
    line = " ".join(f"{name}={value}" for name, value in fields.items())
    logger.log(logging.DEBUG, "route %s", line, extra=fields)
