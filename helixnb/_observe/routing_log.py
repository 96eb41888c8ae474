"""The routing log: one line a job at DEBUG on the logger ``helixnb.route``."""

from __future__ import annotations

import logging

from helixnb._core.lifecycle import Entry
from helixnb._records import Load

logger = logging.getLogger("helixnb.route")


def log_route(entry: Entry, load: Load) -> None:
    """Log how a job is routed, if anybody listens; each field is also one of the record's.

    ``strategy`` is what was decided; ``executed`` stands in the line too where it differs.
    """
    if not logger.isEnabledFor(logging.DEBUG):
        return
    job = entry.job
    decided = entry.decision.strategy
    fields = {
        "job_id": job.id,
        "kind": job.kind,
        "cost": job.compute_cost,
        "scaling": job.scaling_potential,
        "latency_budget_ms": job.latency_budget_ms,
        "strategy": decided.value,
        "cpu_busy": load.cpu_busy,
    }
    if entry.strategy is not decided:
        fields["executed"] = entry.strategy.value
    fields["reason"] = entry.reason
    line = " ".join(f"{name}={value}" for name, value in fields.items())
    try:
        logger.debug("route %s", line, extra=fields)
    except KeyError:  # the application's own record factory sets one of the names
        logger.debug("route %s", line)
