"""Calls with jobs by the thousand: decided on one snapshot, placed, and run from their columns."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np

from helixnb._blocks import SLICE, Block, Turns, checked_blocks
from helixnb._config import RouterConfig
from helixnb._core.estimate import CostModel, KindModel
from helixnb._core.lifecycle import Ledger
from helixnb._core.policy import AdaptivePolicy, Policy, StaticPolicy
from helixnb._core.queues import Backlog
from helixnb._core.rows import PENDING, Rows
from helixnb._core.rules import DECISIONS, DROP_CLOSED, REFUSALS
from helixnb._decide_columns import (
    Candidates,
    Carried,
    Decided,
    candidates_of,
    decide_adaptive,
    decide_static,
)
from helixnb._decider import Decider, checked_decision
from helixnb._exec.column_lane import ColumnLane, Pace, Part
from helixnb._exec.inline import LoopWatch, is_on_trust
from helixnb._exec.inline_rows import run_rows
from helixnb._exec.lanes import Settings
from helixnb._exec.workers import Workers
from helixnb._observe.routing_log import is_logging, log_row
from helixnb._records import Array, Decision, Job, Load, Status, Strategy
from helixnb.columns import BlockOutcomes, JobColumns, Outcomes
from helixnb_kernels import Kernel

if TYPE_CHECKING:  # OpenTelemetry is imported when a router opens
    from helixnb._observe.tracing import CallSpan, Tracing


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Plan:
    """Where a call's jobs go.

    Attributes
    ----------
    dropped
        Which of a block's jobs are dropped, for each block.
    queued, inline
        What waits for threads, and what runs on the event loop because a policy says so.
    on_trust
        What runs there for as long as it is as short as is believed.
    """

    dropped: list[Array]
    queued: list[Part]
    inline: list[Part]
    on_trust: list[Part]


class Many:
    """Takes calls with many jobs through the router."""

    def __init__(
        self,
        settings: Settings,
        decider: Decider,
        costs: CostModel,
        ledger: Ledger,
        backlog: Backlog,
        workers: Workers,
        tracing: Tracing,
        in_thread: Callable[[Callable[[], Any]], Awaitable[Any]],
        converting: Callable[[Callable[[], Any]], Awaitable[Any]],
        watch: LoopWatch,
    ) -> None:
        self._tracing = tracing
        self._watch = watch
        self._settings = settings
        self._decider = decider
        self._costs = costs
        self._ledger = ledger
        self._backlog = backlog
        self._workers = workers
        self._clock = ledger.clock
        self._in_thread = in_thread
        self._converting = converting
        # Paces are relative to predictions, and those of a cold kind may be off by any factor.
        self._paces: defaultdict[tuple[Kernel, bool], Pace] = defaultdict(Pace)

    async def run(
        self, jobs: JobColumns | Iterable[Job], kernels: Mapping[str, Kernel]
    ) -> Outcomes:
        """Bring jobs to their outcomes; those that haven't ended are cancelled with the caller."""
        arrived_ns = self._clock()
        if not self._settings.config.trace_jobs:
            return await self._run(jobs, kernels, arrived_ns, None)
        with self._tracing.call(arrived_ns) as trace:
            return await self._run(jobs, kernels, arrived_ns, trace)

    async def _run(
        self,
        jobs: JobColumns | Iterable[Job],
        kernels: Mapping[str, Kernel],
        arrived_ns: int,
        trace: CallSpan | None,
    ) -> Outcomes:
        await anyio.lowlevel.checkpoint()  # even if every job will be dropped
        turns = Turns(self._clock, None)
        if self._settings.is_open:
            turns = Turns(self._clock, self._in_thread, self._converting)
        blocks, order = await checked_blocks(jobs, kernels, self._costs, turns)
        settled = anyio.Event()

        def check_settled() -> None:
            if not any(rows.pending for rows in books):
                settled.set()

        new_rows = functools.partial(
            Rows, self._ledger, arrived_ns, check_settled, hold=self._settings.is_adaptive
        )
        books, plan, decided, carried = await self._plan(
            blocks, order, new_rows, arrived_ns, turns, trace
        )
        if trace is not None:
            trace.books = books
        # From here to the queues nothing awaits, so that nobody sees half of it.
        lane = self.enter(books, plan)
        try:
            for rows, dropped, block in zip(books, plan.dropped, blocks, strict=True):
                rows.settle(dropped, Status.DROPPED)
                _note(block.model, rows, dropped, self._clock())
            if is_logging():
                _log(blocks, order, books, decided, carried)
            self._workers.look(lane)
            self._workers.expect(lane.expire(self._clock()))
            await self._run_inline(plan, lane)
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

    def forget(self, kernel: Kernel) -> None:
        """Forget how fast a kernel's jobs were, when another one has taken its place."""
        for cold in (False, True):
            self._paces.pop((kernel, cold), None)

    def enter(self, books: list[Rows], plan: _Plan) -> ColumnLane:
        """Count all jobs in, and let threads take them."""
        for rows in books:
            rows.enter()
        lane = ColumnLane(plan.queued)
        self._workers.add(lane)
        return lane

    async def _plan(
        self,
        blocks: list[Block],
        order: Array | None,
        new_rows: Callable[..., Rows],
        arrived_ns: int,
        turns: Turns,
        trace: CallSpan | None,
    ) -> tuple[list[Rows], _Plan, Decided, Carried]:
        """Decide for all jobs, make their books, and say where they go."""
        config = self._settings.config
        candidates = await self._candidates(blocks, order, turns)
        now_ns = self._clock()
        load = self._decider.load(now_ns, now_ns - arrived_ns, None, sharers=len(candidates))
        plan = None
        if self._settings.is_open:
            decided = await self._decide(blocks, order, candidates, load, turns)
            books = await turns.call(
                lambda: _booked(blocks, order, decided, config, new_rows), len(candidates)
            )
            trusted = [code for code, each in enumerate(decided[1]) if is_on_trust(each)]
            plan = await self._place(blocks, order, books, trusted, turns, trace)
        if plan is None or not self._settings.is_open:  # since when, is not for the books to say
            for part in plan.queued if plan is not None else ():
                part.abandon()
            closed = np.full(len(candidates), DROP_CLOSED, np.uint8)
            decided = closed, list(DECISIONS), None
            books = _booked(blocks, order, decided, config, new_rows)
            plan = _placed(blocks, order, books, [], 0, self._backlog, self._paces, None)
        return books, plan, decided, Carried(load, candidates)

    async def _run_inline(self, plan: _Plan, lane: ColumnLane) -> None:
        """Run what runs on the event loop."""
        for part in plan.inline:
            await _run_pieces(part)
        for part in plan.on_trust:
            await run_rows(part, self._watch, functools.partial(self._send_off, lane))

    def _send_off(self, lane: ColumnLane, part: Part) -> None:
        """Let the rest of what was to run on the event loop run in threads."""
        rows, rest = part.rows, part.rest
        strategy = Strategy.CPU_POOL if part.kernel.serial is None else Strategy.BATCH
        rows.reroute(rest[rows.status[rest] == PENDING], strategy, "inline_overrun")
        lane.add(part)
        self._workers.look(lane)
        self._workers.expect(lane.expire(self._clock()))

    async def _candidates(
        self, blocks: Sequence[Block], order: Array | None, turns: Turns
    ) -> Candidates:
        scales = [
            self._paces[block.kernel, block.cold].scale
            if (block.kernel, block.cold) in self._paces
            else block.model.gains.scale(len(block))
            for block in blocks
        ]
        return await turns.call(
            lambda: candidates_of(blocks, order, scales, self._clock()), sum(map(len, blocks))
        )

    async def _decide(
        self,
        blocks: Sequence[Block],
        order: Array | None,
        candidates: Candidates,
        load: Load,
        turns: Turns,
    ) -> Decided:
        """Decide on one snapshot of the load, and let the shadow decide beside it."""
        decider = self._decider
        decided = await self._ask(decider.policy, blocks, order, candidates, load, turns)
        if decider.shadow is not None:
            try:
                other = await self._ask(decider.shadow, blocks, order, candidates, load, turns)
            except Exception as error:
                decider.note_shadow(len(candidates), len(candidates), error)
            else:
                same = _strategies(decided) == _strategies(other)
                decider.note_shadow(len(candidates), int(np.count_nonzero(~same)))
        return decided

    async def _ask(
        self,
        policy: Policy,
        blocks: Sequence[Block],
        order: Array | None,
        candidates: Candidates,
        load: Load,
        turns: Turns,
    ) -> Decided:
        config = self._settings.config
        compiled = {StaticPolicy: decide_static, AdaptivePolicy: decide_adaptive}.get(type(policy))
        if compiled is not None:
            return await turns.call(lambda: compiled(candidates, load, config), len(candidates))
        starts = _starts(blocks)
        codes = np.empty(len(candidates), np.int32)
        retry_after_s = np.full(len(candidates), np.nan)
        known: dict[tuple[Decision, bool], int] = {}
        carried = Carried(load, candidates)
        for i in range(len(codes)):
            if i % SLICE == 0:
                await turns.pass_on()
            position = i if order is None else int(order[i])
            block = bisect.bisect_right(starts, position) - 1
            job = blocks[block].job(position - starts[block])
            decision = checked_decision(
                policy.decide(job, carried.load(), config, carried.estimate(i)), policy
            )
            carried.add(i, decision)
            if decision.retry_after_s is not None:
                retry_after_s[i] = decision.retry_after_s
                decision = dataclasses.replace(decision, retry_after_s=None)
            # Those that are equal may still differ in whether they are on trust.
            codes[i] = known.setdefault((decision, is_on_trust(decision)), len(known))
        return codes, [decision for decision, _ in known], retry_after_s

    async def _place(
        self,
        blocks: Sequence[Block],
        order: Array | None,
        books: list[Rows],
        trusted: list[int],
        turns: Turns,
        trace: CallSpan | None,
    ) -> _Plan:
        """Take room in the backlog for jobs with a budget, and drop those that find none."""
        counted = sum(
            int((block.bounded & _counts(rows)).sum())
            for block, rows in zip(blocks, books, strict=True)
        )
        room = min(max(0, int(self._backlog.capacity) - self._backlog.waiting), counted)
        self._backlog.grow(room)  # so that jobs that come meanwhile don't take it
        try:
            return await turns.call(
                lambda: _placed(
                    blocks, order, books, trusted, room, self._backlog, self._paces, trace
                ),
                sum(map(len, blocks)),
            )
        except BaseException:
            self._backlog.grow(-room)
            raise


def _note(model: KindModel, rows: Rows, dropped: Array, now_ns: int) -> None:
    """Let a model know of a call's probes, and of drops for which a cold kind needs some."""
    if len(rows.probes):
        model.note_probe(now_ns)
    if not model.is_cold:
        return
    for at in rows.probes.tolist():
        model.note_lesson(now_ns, functools.partial(rows.waits, at))
    if any(rows.reasons[code] in REFUSALS for code in np.unique(rows.reason[dropped])):
        model.note_refusal()


def _starts(blocks: Sequence[Block]) -> list[int]:
    """Return where each block begins among all jobs, and where the last one ends."""
    return list(itertools.accumulate(map(len, blocks), initial=0))


def _strategies(decided: Decided) -> Array:
    codes, decisions, _ = decided
    strategies: Array = np.array([each.strategy.code for each in decisions], np.uint8)[codes]
    return strategies


def _booked(
    blocks: Sequence[Block],
    order: Array | None,
    decided: Decided,
    config: RouterConfig,
    new_rows: Callable[..., Rows],
) -> list[Rows]:
    """Make the books of each block; pure, and so for any thread."""
    codes, decisions, retry_after_s = decided
    if order is not None:
        codes = _by_position(codes, order)
        retry_after_s = None if retry_after_s is None else _by_position(retry_after_s, order)
    strategies = np.array([each.strategy.code for each in decisions], np.uint8)
    reasons = [each.reason for each in decisions]
    probing = [code for code, reason in enumerate(reasons) if reason == "probe"]
    open_ = not len(codes) or decisions[codes[0]] != DECISIONS[DROP_CLOSED]
    books = []
    for block, start in zip(blocks, _starts(blocks), strict=False):
        own = slice(start, start + len(block))
        rows = new_rows(
            kind=block.kernel.name,
            job_id=block.columns.job_id,
            latency_budget_ms=block.latency_budget_ms,
            decided=strategies[codes[own]],
            reason=codes[own].astype(np.int32),
            reasons=reasons,
            values=block.kernel.no_values(len(block)),
            retry_after_s=None if retry_after_s is None else retry_after_s[own],
        )
        if rows.deadline_ns is not None:
            rows.probes = np.flatnonzero(np.isin(rows.reason, probing))
            rows.deadline_ns[rows.probes] = np.inf
        if open_:
            too_large = np.flatnonzero(block.predicted_ns > config.max_job_s * 1e9)
            rows.reroute(too_large, Strategy.DROP, "too_large")
        books.append(rows)
    return books


def _by_position(column: Array, order: Array) -> Array:
    moved = np.empty_like(column)
    moved[order] = column
    return moved


def _log(
    blocks: Sequence[Block],
    order: Array | None,
    books: Sequence[Rows],
    decided: Decided,
    carried: Carried,
) -> None:
    """Log each job with what it was decided from, as it came."""
    starts = _starts(blocks)
    codes, decisions, _ = decided
    for i, code in enumerate(codes.tolist()):
        position = i if order is None else int(order[i])
        block = bisect.bisect_right(starts, position) - 1
        at, rows = position - starts[block], books[block]
        log_row(rows, at, blocks[block].job(at), carried.load(), carried.estimate(i))
        carried.add(i, decisions[code])


def _placed(
    blocks: Sequence[Block],
    order: Array | None,
    books: list[Rows],
    trusted: list[int],
    room: int,
    backlog: Backlog,
    paces: Mapping[tuple[Kernel, bool], Pace],
    trace: CallSpan | None,
) -> _Plan:
    """Say where each job goes; as good as pure, and so for any thread.

    A job without a budget waits for as long as it takes. One with a budget counts among the
    waiting jobs, those before it included, and is dropped where there is no `room` for it.
    `trusted` are the codes of decisions to run on the event loop that hold as long as the jobs are
    as short as is believed.
    """
    plan = _Plan(dropped=[], queued=[], inline=[], on_trust=[])
    for rows, own in zip(books, _beyond(room, blocks, books, order), strict=True):
        rows.reroute(own, Strategy.DROP, "queue_full")
    ranks = np.arange(sum(map(len, blocks)))
    if order is not None:
        ranks[order] = ranks.copy()
    starts = _starts(blocks)
    for rows, block, start in zip(books, blocks, starts, strict=False):
        new_part = functools.partial(
            Part,
            block,
            rows,
            ranks[start : start + len(block)],
            backlog=backlog,
            pace=paces[block.kernel, block.cold],
            trace=trace,
        )
        plan.dropped.append(np.flatnonzero(rows.strategy == Strategy.DROP.code))
        is_inline = rows.strategy == Strategy.INLINE.code
        is_trusted = is_inline & np.isin(rows.reason, trusted)
        queued = np.flatnonzero(_in_threads(rows.strategy))
        rows.reroute(*_together(rows, queued, block.kernel), "in_columns")
        if len(queued):
            plan.queued.append(new_part(queued, block.bounded[queued] & _counts(rows)[queued]))
        for inline, parts in (
            (np.flatnonzero(is_inline & ~is_trusted), plan.inline),
            (np.flatnonzero(is_trusted), plan.on_trust),
        ):
            if len(inline):
                parts.append(new_part(inline, np.zeros(len(inline), bool)))
    return plan


def _beyond(
    room: int, blocks: Sequence[Block], books: Sequence[Rows], order: Array | None
) -> list[Array]:
    """Return which of each block's jobs find the backlog full, in the order of all."""
    starts = _starts(blocks)
    counted = [
        np.flatnonzero(block.bounded & _counts(own)) + start
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


def _counts(rows: Rows) -> Array:
    """Return which jobs count among those that wait, if they have a budget.

    None where budgets are held to: the time of what waits is bounded there.
    """
    if rows.deadline_ns is not None:
        return np.zeros(len(rows.strategy), bool)
    return _in_threads(rows.strategy)


def _in_threads(strategy: Array) -> Array:
    wanted: Array = (strategy != Strategy.INLINE.code) & (strategy != Strategy.DROP.code)
    return wanted


async def _run_pieces(part: Part) -> None:
    """Run jobs on the event loop, a millisecond at a time."""
    while (work := part.take(1, gather=False)) is not None:
        work.run()
        work.settle()
        if work.interrupt is not None:
            raise work.interrupt
        await anyio.lowlevel.checkpoint()
