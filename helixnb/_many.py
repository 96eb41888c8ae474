"""Calls with jobs by the thousand: decided on one snapshot, placed, and run from their columns."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import anyio
import numpy as np

from helixnb._blocks import LARGE, SLICE, Block, Turns, checked_blocks
from helixnb._config import RouterConfig
from helixnb._core.lifecycle import Ledger
from helixnb._core.policy import Policy, StaticPolicy
from helixnb._core.queues import Backlog
from helixnb._core.rows import Rows
from helixnb._decide import decide_static
from helixnb._exec.column_lane import ColumnLane, Part
from helixnb._exec.lanes import Settings
from helixnb._exec.slots import Slots
from helixnb._exec.workers import Workers
from helixnb._observe.routing_log import log_rows
from helixnb._records import Array, Decision, Job, Load, Status, Strategy
from helixnb.columns import BlockOutcomes, JobColumns, Outcomes
from helixnb_kernels import Kernel

_ROUTER_CLOSED = Decision(Strategy.DROP, "router_closed")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Plan:
    """What becomes of a call's jobs.

    Attributes
    ----------
    rows
        The books of each block, not entered yet.
    dropped
        Which of a block's jobs are dropped, for each block.
    queued, inline
        What waits for threads, and what runs on the event loop.
    """

    rows: list[Rows]
    dropped: list[Array]
    queued: list[Part]
    inline: list[Part]


class Many:
    """Takes calls with many jobs through the router."""

    def __init__(
        self,
        settings: Settings,
        policy: Policy,
        ledger: Ledger,
        backlog: Backlog,
        slots: Slots,
        workers: Workers,
        clock: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._ledger = ledger
        self._backlog = backlog
        self._slots = slots
        self._workers = workers
        self._clock = clock
        self._planners = anyio.CapacityLimiter(1)

    async def run(
        self, jobs: JobColumns | Iterable[Job], kernels: Mapping[str, Kernel]
    ) -> Outcomes:
        """Bring jobs to their outcomes; those that haven't ended are cancelled with the caller."""
        arrived_ns = self._clock()
        blocks, order = await checked_blocks(jobs, kernels, Turns(self._clock))
        settled = anyio.Event()

        def check_settled() -> None:
            if not any(rows.pending for rows in plan.rows):
                settled.set()

        new_rows = functools.partial(Rows, self._ledger, arrived_ns, check_settled)
        plan, load = await self._plan(blocks, order, new_rows)
        # From here to the queues nothing awaits, so that nobody sees half of it.
        for rows in plan.rows:
            rows.enter()
        for rows, dropped, block in zip(plan.rows, plan.dropped, blocks, strict=True):
            rows.settle(dropped, Status.DROPPED)
            log_rows(rows, block.job, load)
        lane = ColumnLane(plan.queued)
        self._workers.add(lane)
        try:
            self._workers.look(lane)
            for part in plan.inline:
                await _run_inline(part)
            if any(rows.pending for rows in plan.rows):
                await settled.wait()
        except BaseException:
            for rows in plan.rows:
                rows.settle(np.arange(len(rows.status)), Status.CANCELLED)
            raise
        finally:
            self._workers.remove(lane)
            lane.abandon()
        return Outcomes(map(BlockOutcomes, plan.rows), order)

    async def _plan(
        self, blocks: Sequence[Block], order: Array | None, new_rows: Callable[..., Rows]
    ) -> tuple[_Plan, Load]:
        """Decide on one snapshot of load and backlog, and make room in the backlog."""
        load = Load(cpu_busy=self._slots.busy)
        bounded = sum(int(block.bounded.sum()) for block in blocks)
        room = min(max(0, int(self._backlog.capacity) - self._backlog.waiting), bounded)
        taken = 0
        new_part = functools.partial(Part, backlog=self._backlog)
        self._backlog.grow(room)  # so that jobs that come meanwhile don't take it
        try:
            config = self._settings.config
            decide: Callable[[], tuple[Array, list[Decision]]]
            if not self._settings.is_open:
                decide = functools.partial(_closed, blocks)
            elif type(self._policy) is StaticPolicy:
                decide = functools.partial(_static, blocks, load, config)
            else:
                asked = await self._ask_policy(blocks, order, load)
                decide = lambda: asked  # noqa: E731  # said
            make = functools.partial(_plan, blocks, order, decide, config, room, new_rows, new_part)
            if sum(map(len, blocks)) < LARGE:
                plan = make()
            else:
                plan = await anyio.to_thread.run_sync(make, limiter=self._planners)
            if not self._settings.is_open:
                decide = functools.partial(_closed, blocks)
                plan = _plan(blocks, order, decide, config, room, new_rows, new_part)
            taken = sum(part.bounded for part in plan.queued)
        finally:
            self._backlog.grow(taken - room)
        return plan, load

    async def _ask_policy(
        self, blocks: Sequence[Block], order: Array | None, load: Load
    ) -> tuple[Array, list[Decision]]:
        """Return what a policy of the user's says of each job, as positions in a list."""
        jobs = [(block, at) for block in blocks for at in range(len(block))]
        codes = np.empty(len(jobs), np.int32)
        known: dict[Decision, int] = {}
        config = self._settings.config
        turns = Turns(self._clock)
        for i, position in enumerate(range(len(jobs)) if order is None else order.tolist()):
            if i % SLICE == 0:
                await turns.pass_on()
            block, at = jobs[position]
            decision = self._policy.decide(block.job(at), load, config)
            codes[position] = known.setdefault(decision, len(known))
        return codes, list(known)


def _static(
    blocks: Sequence[Block], load: Load, config: RouterConfig
) -> tuple[Array, list[Decision]]:
    if not blocks:
        return np.empty(0, np.uint8), []
    costs = np.concatenate([block.columns.compute_cost for block in blocks])
    scalings = np.concatenate([block.scaling_potential for block in blocks])
    return decide_static(costs, scalings, load, config)


def _closed(blocks: Sequence[Block]) -> tuple[Array, list[Decision]]:
    return np.zeros(sum(map(len, blocks)), np.uint8), [_ROUTER_CLOSED]


def _plan(
    blocks: Sequence[Block],
    order: Array | None,
    decide: Callable[[], tuple[Array, list[Decision]]],
    config: RouterConfig,
    room: int,
    new_rows: Callable[..., Rows],
    new_part: Callable[..., Part],
) -> _Plan:
    """Say what becomes of each job; pure, and so for any thread.

    A job without a budget waits for as long as it takes. One with a budget counts among the
    waiting jobs, those before it included, and is dropped where there is no `room` for it.
    """
    codes, decisions = decide()
    strategies = np.array([each.strategy.code for each in decisions], np.uint8)
    reasons = [each.reason for each in decisions]
    starts = list(itertools.accumulate(map(len, blocks), initial=0))
    plan = _Plan(rows=[], dropped=[], queued=[], inline=[])
    for block, start in zip(blocks, starts, strict=False):
        own = codes[start : start + len(block)]
        rows = new_rows(
            kind=block.kernel.name,
            job_id=block.columns.job_id,
            latency_budget_ms=block.latency_budget_ms,
            decided=strategies[own],
            reason=own.astype(np.int32),
            reasons=reasons,
            values=block.kernel.no_values(len(block)),
        )
        too_large = np.flatnonzero(block.predicted_ns > config.max_job_s * 1e9)
        if decisions != [_ROUTER_CLOSED]:
            rows.reroute(too_large, Strategy.DROP, "too_large")
        plan.rows.append(rows)
    for rows, own in zip(plan.rows, _beyond(room, blocks, plan.rows, starts, order), strict=True):
        rows.reroute(own, Strategy.DROP, "queue_full")
    for rows, block in zip(plan.rows, blocks, strict=True):
        plan.dropped.append(np.flatnonzero(rows.strategy == Strategy.DROP.code))
        inline = np.flatnonzero(rows.strategy == Strategy.INLINE.code)
        queued = np.flatnonzero(_in_threads(rows.strategy))
        rows.reroute(*_together(rows, queued, block.kernel), "in_columns")
        if len(queued):
            plan.queued.append(new_part(block, rows, queued, block.bounded[queued]))
        if len(inline):
            plan.inline.append(new_part(block, rows, inline, np.zeros(len(inline), bool)))
    return plan


def _beyond(
    room: int,
    blocks: Sequence[Block],
    rows: Sequence[Rows],
    starts: Sequence[int],
    order: Array | None,
) -> list[Array]:
    """Return which of each block's jobs find the backlog full, in the order of all."""
    counted = [
        np.flatnonzero(block.bounded & _in_threads(own.strategy)) + start
        for block, own, start in zip(blocks, rows, starts, strict=False)
    ]
    if sum(map(len, counted)) <= room:
        return [np.empty(0, np.int64) for _ in blocks]
    everywhere = np.concatenate(counted)
    if order is not None:
        bounded = np.zeros(starts[-1], bool)
        bounded[everywhere] = True
        everywhere = order[bounded[order]]
    full = np.sort(everywhere[room:])
    cuts = np.searchsorted(full, starts)
    return [
        full[first:last] - start for first, last, start in zip(cuts, cuts[1:], starts, strict=False)
    ]


def _together(rows: Rows, queued: Array, kernel: Kernel) -> tuple[Array, Strategy]:
    """Return which jobs run otherwise than decided, and how: those of a kernel share its calls."""
    strategy = rows.strategy[queued]
    if kernel.serial is not None:
        return queued[strategy != Strategy.BATCH.code], Strategy.BATCH
    return queued[strategy == Strategy.SPAWN.code], Strategy.CPU_POOL


def _in_threads(strategy: Array) -> Array:
    wanted: Array = (strategy != Strategy.INLINE.code) & (strategy != Strategy.DROP.code)
    return wanted


async def _run_inline(part: Part) -> None:
    """Run jobs on the event loop, a millisecond at a time."""
    while (work := part.take(1, gather=False)) is not None:
        work.run()
        work.settle()
        for error in part.rows.errors.values():
            if isinstance(error, KeyboardInterrupt):  # someone stops the program
                raise error
        await anyio.lowlevel.checkpoint()
