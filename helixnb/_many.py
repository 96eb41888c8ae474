"""Calls with jobs by the thousand: decided on one snapshot, placed, and run from their columns."""

from __future__ import annotations

import bisect
import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import anyio
import numpy as np

from helixnb._blocks import SLICE, Block, Turns, checked_blocks
from helixnb._config import RouterConfig
from helixnb._core.lifecycle import Ledger
from helixnb._core.policy import Policy, StaticPolicy
from helixnb._core.queues import Backlog
from helixnb._core.rows import Rows
from helixnb._decide import decide_static
from helixnb._exec.column_lane import ColumnLane, Pace, Part
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
    """Where a call's jobs go.

    Attributes
    ----------
    dropped
        Which of a block's jobs are dropped, for each block.
    queued, inline
        What waits for threads, and what runs on the event loop.
    """

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
        self._paces: defaultdict[Kernel, Pace] = defaultdict(Pace)

    async def run(
        self, jobs: JobColumns | Iterable[Job], kernels: Mapping[str, Kernel]
    ) -> Outcomes:
        """Bring jobs to their outcomes; those that haven't ended are cancelled with the caller."""
        arrived_ns = self._clock()
        await anyio.lowlevel.checkpoint()  # even if every job will be dropped
        turns = Turns(self._clock, self._planners)
        blocks, order = await checked_blocks(jobs, kernels, turns)
        settled = anyio.Event()

        def check_settled() -> None:
            if not any(rows.pending for rows in books):
                settled.set()

        new_rows = functools.partial(Rows, self._ledger, arrived_ns, check_settled)
        load = Load(cpu_busy=self._slots.busy)
        books = await self._decide(blocks, order, load, new_rows, turns)
        plan = await self._place(blocks, order, books, turns)
        if not self._settings.is_open:  # since when, is not for the books to say
            for part in plan.queued:
                part.abandon()
            books = _decided(blocks, _closed(blocks), self._settings.config, new_rows)
            plan = _placed(blocks, order, books, 0, self._backlog, self._paces)
        # From here to the queues nothing awaits, so that nobody sees half of it.
        for rows in books:
            rows.enter()
        lane = ColumnLane(plan.queued)
        self._workers.add(lane)
        try:
            for rows, dropped, block in zip(books, plan.dropped, blocks, strict=True):
                rows.settle(dropped, Status.DROPPED)
                log_rows(rows, block.job, load)
            self._workers.look(lane)
            for part in plan.inline:
                await _run_inline(part)
            if any(rows.pending for rows in books):
                await settled.wait()
        except BaseException:
            for rows in books:
                rows.settle(np.arange(len(rows.status)), Status.CANCELLED)
            raise
        finally:
            self._workers.remove(lane)
            lane.abandon()
        return Outcomes(map(BlockOutcomes, books), order)

    async def _decide(
        self,
        blocks: Sequence[Block],
        order: Array | None,
        load: Load,
        new_rows: Callable[..., Rows],
        turns: Turns,
    ) -> list[Rows]:
        """Decide on one snapshot of the load; returns the books, which aren't entered yet."""
        config = self._settings.config
        if type(self._policy) is StaticPolicy:
            return await turns.call(
                lambda: _decided(blocks, _static(blocks, load, config), config, new_rows),
                sum(map(len, blocks)),
            )
        asked = await self._ask_policy(blocks, order, load, turns)
        return _decided(blocks, asked, config, new_rows)

    async def _ask_policy(
        self, blocks: Sequence[Block], order: Array | None, load: Load, turns: Turns
    ) -> _Decisions:
        """Return what a policy of the user's says of each job."""
        starts = _starts(blocks)
        codes = np.empty(starts[-1], np.int32)
        known: dict[Decision, int] = {}
        config = self._settings.config
        for i in range(len(codes)):
            if i % SLICE == 0:
                await turns.pass_on()
            position = i if order is None else int(order[i])
            block = bisect.bisect_right(starts, position) - 1
            job = blocks[block].job(position - starts[block])
            decision = self._policy.decide(job, load, config)
            codes[position] = known.setdefault(decision, len(known))
        return codes, list(known)

    async def _place(
        self, blocks: Sequence[Block], order: Array | None, books: list[Rows], turns: Turns
    ) -> _Plan:
        """Take room in the backlog for jobs with a budget, and drop those that find none."""
        counted = sum(
            int((block.bounded & _in_threads(rows.strategy)).sum())
            for block, rows in zip(blocks, books, strict=True)
        )
        room = min(max(0, int(self._backlog.capacity) - self._backlog.waiting), counted)
        self._backlog.grow(room)  # so that jobs that come meanwhile don't take it
        try:
            return await turns.call(
                lambda: _placed(blocks, order, books, room, self._backlog, self._paces),
                sum(map(len, blocks)),
            )
        except BaseException:
            self._backlog.grow(-room)
            raise


_Decisions = tuple[Array, list[Decision]]
"""What was decided of each job, block by block: positions in a list."""


def _starts(blocks: Sequence[Block]) -> list[int]:
    """Return where each block begins among all jobs, and where the last one ends."""
    return list(itertools.accumulate(map(len, blocks), initial=0))


def _static(blocks: Sequence[Block], load: Load, config: RouterConfig) -> _Decisions:
    if not blocks:
        return np.empty(0, np.uint8), []
    costs = np.concatenate([block.columns.compute_cost for block in blocks])
    scalings = np.concatenate([block.scaling_potential for block in blocks])
    return decide_static(costs, scalings, load, config)


def _closed(blocks: Sequence[Block]) -> _Decisions:
    return np.zeros(sum(map(len, blocks)), np.uint8), [_ROUTER_CLOSED]


def _decided(
    blocks: Sequence[Block],
    decisions: _Decisions,
    config: RouterConfig,
    new_rows: Callable[..., Rows],
) -> list[Rows]:
    """Make the books of each block; pure, and so for any thread."""
    codes, known = decisions
    strategies = np.array([each.strategy.code for each in known], np.uint8)
    reasons = [each.reason for each in known]
    books = []
    for block, start in zip(blocks, _starts(blocks), strict=False):
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
        if known != [_ROUTER_CLOSED]:
            too_large = np.flatnonzero(block.predicted_ns > config.max_job_s * 1e9)
            rows.reroute(too_large, Strategy.DROP, "too_large")
        books.append(rows)
    return books


def _placed(
    blocks: Sequence[Block],
    order: Array | None,
    books: list[Rows],
    room: int,
    backlog: Backlog,
    paces: Mapping[Kernel, Pace],
) -> _Plan:
    """Say where each job goes; as good as pure, and so for any thread.

    A job without a budget waits for as long as it takes. One with a budget counts among the
    waiting jobs, those before it included, and is dropped where there is no `room` for it.
    """
    plan = _Plan(dropped=[], queued=[], inline=[])
    for rows, own in zip(books, _beyond(room, blocks, books, order), strict=True):
        rows.reroute(own, Strategy.DROP, "queue_full")
    for rows, block in zip(books, blocks, strict=True):
        new_part = functools.partial(Part, block, rows, backlog=backlog, pace=paces[block.kernel])
        plan.dropped.append(np.flatnonzero(rows.strategy == Strategy.DROP.code))
        inline = np.flatnonzero(rows.strategy == Strategy.INLINE.code)
        queued = np.flatnonzero(_in_threads(rows.strategy))
        rows.reroute(*_together(rows, queued, block.kernel), "in_columns")
        if len(queued):
            plan.queued.append(new_part(queued, block.bounded[queued]))
        if len(inline):
            plan.inline.append(new_part(inline, np.zeros(len(inline), bool)))
    return plan


def _beyond(
    room: int, blocks: Sequence[Block], books: Sequence[Rows], order: Array | None
) -> list[Array]:
    """Return which of each block's jobs find the backlog full, in the order of all."""
    starts = _starts(blocks)
    counted = [
        np.flatnonzero(block.bounded & _in_threads(own.strategy)) + start
        for block, own, start in zip(blocks, books, starts, strict=False)
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
        if work.interrupt is not None:
            raise work.interrupt
        await anyio.lowlevel.checkpoint()
