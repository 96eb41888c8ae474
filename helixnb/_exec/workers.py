"""Worker threads: one hop out, then work from the lanes as long as there is some."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

import anyio

from helixnb._core.lifecycle import Entry, Ledger
from helixnb._core.queues import Backlog, JobQueue
from helixnb._exec.detached import Detached, mark_inside
from helixnb._exec.gil import own_clock, waits
from helixnb._exec.inline import settle_late
from helixnb._exec.lanes import CHUNK_NS, Lane, QueueLane
from helixnb._exec.slots import Lease, Slots
from helixnb._exec.work import Chunk, Work

LINGER_S = 0.002
"""How long a thread waits for more work before it ends: to wake it takes half of a hop's 0.1 ms, on
both sides, and the batch that gathers meanwhile comes within that."""

EXPIRY_NS = 1_000_000
"""The least time between two looks for jobs that have expired."""


HOPS = 7
"""Hops that are measured when a router opens: about a millisecond."""


async def measure_hop_us() -> float:
    """Return what it takes to send a thread or to hear from one: half of a visit, at the median."""
    visits_s = []
    limiter = anyio.CapacityLimiter(1)
    for _ in range(HOPS):
        began_s = time.perf_counter()
        await anyio.to_thread.run_sync(int, limiter=limiter)
        visits_s.append(time.perf_counter() - began_s)
    return sorted(visits_s)[HOPS // 2] / 2 * 1e6


class Workers:
    """Runs what waits in the lanes, in threads that hold a slot each.

    A thread goes round the lanes until nothing is due, and lingers. It hands over what is done on
    the way, and wakes the event loop through a socket, which is what anyio offers for a thread that
    shall not wait for the loop. A caller that is cancelled leaves threads alone: they can't be
    stopped, and a slot is free only when its thread has done what it had in hand.
    """

    def __init__(
        self,
        slots: Slots,
        ledger: Ledger,
        backlog: Backlog,
        tasks: Detached,
        clock: Callable[[], int],
    ) -> None:
        self._slots = slots
        self._spawned = JobQueue(Backlog(math.inf))
        self._ledger = ledger
        self._backlog = backlog
        self._tasks = tasks
        self._clock = clock
        self._lanes: list[Lane] = []  # the one that was served last at the end
        self._virtual_ns = 0.0
        self._known: tuple[Lane, ...] = ()  # the same, for the event loop
        # Any lock that the event loop takes may be asked for again by a finaliser that runs then.
        self._taking = threading.RLock()
        self._starting = 0
        self._done: deque[tuple[Work, BaseException | None]] = deque()
        self._awake = False
        self._clocks: dict[Lease, int | None] = {}
        self._lingering: list[Lease] = []
        self._alarm = anyio.Event()
        self._alarm_ns = math.inf
        # The lease is what bounds the threads; anyio's own limiter would count them twice.
        self._unbounded = anyio.CapacityLimiter(math.inf)
        self._receiver, self._sender = socket.socketpair()
        for each in (self._receiver, self._sender):
            each.setblocking(False)
        self.parallel_launches = 0

    def close(self) -> None:
        """Free the sockets, when no thread runs any more."""
        self._receiver.close()
        self._sender.close()

    def add(self, lane: Lane) -> None:
        """Let threads take from a lane too."""
        with self._taking:
            self._lanes.append(lane)
            self._known = (*self._known, lane)

    def remove(self, lane: Lane) -> None:
        """Let threads take from a lane no more."""
        with self._taking:
            self._lanes.remove(lane)
            self._known = tuple(each for each in self._known if each is not lane)

    # -- On the event loop ----------------------------------------------------------------------

    def spawn(self, entry: Entry) -> bool:
        """Send a thread with a job; returns whether a slot was free."""
        with self._taking:
            if not self._slots.idle:
                return False
            self._spawned.push(entry)
            lease = self._engage(None)
        self._send(lease)
        return True

    def look(self, lane: Lane) -> None:
        """Send threads if there is work in a lane, slots are free, and it is worth it."""
        if self._slots.idle and lane.threads_worth > lane.sent:
            due_in_ns = lane.due_in_ns()
            if due_in_ns > 0:
                self._wake_at(self._clock() + due_in_ns)
                return
            while lane.threads_worth > lane.sent:
                with self._taking:
                    if not self._slots.idle:
                        return
                    lease = self._engage(lane)
                if not self._send(lease):
                    return

    def _engage(self, lane: Lane | None) -> Lease:
        """Take a slot for a thread: one that lingers, or another. `_taking` is held."""
        lease = self._lingering.pop() if self._lingering else Lease()
        self._slots.take(lease)
        self._starting += 1
        lease.lane = lane
        if lane is not None:
            lane.sent += 1
        return lease

    def _send(self, lease: Lease) -> bool:
        """Let a thread go for what it was engaged for; returns False if the router has ended."""
        if lease.begun:
            lease.wanted.release()
        elif not self._tasks.start(self._visit, lease):
            self._dismiss(lease)
            return False
        return True

    def _dismiss(self, lease: Lease) -> None:
        """Let a thread that was sent, but never began, give its slot back."""
        with self._taking:
            self._arrive(lease)
        self._slots.release(lease)

    def _arrive(self, lease: Lease) -> None:
        """Note that a thread that was sent begins, or never will. `_taking` is held."""
        self._starting -= 1
        if lease.lane is not None:
            lease.lane.sent -= 1

    def backlogs_ns(
        self, now_ns: int, pool: QueueLane | None, batch: QueueLane | None
    ) -> tuple[float, float]:
        """Return the predicted time of what waits and runs before a job that comes now.

        The first number is for one that comes to the pool, or behind everything for None; the
        second for one that joins a batch. Lanes share the threads' time evenly, so no more of
        another lane comes before than of its own.
        """
        before_ns = self._spawned.work_ns
        for lease in list(self._clocks):
            if lease.ends_ns > now_ns:
                before_ns += lease.ends_ns - now_ns
        pool_ns = CHUNK_NS if pool is None else CHUNK_NS + pool.queue.work_ns
        batch_ns = CHUNK_NS + batch.queue.work_ns * batch.queue.scale if batch else pool_ns
        pool_before_ns = batch_before_ns = before_ns
        for lane in self._known:
            queue = lane.queue
            # As `left_ns`, which takes a call; this runs for each job while the slots are busy.
            left_ns = lane.left_ns if queue is None else queue.work_ns * queue.scale
            if left_ns:
                pool_before_ns += left_ns if pool is None or left_ns < pool_ns else pool_ns
                batch_before_ns += left_ns if left_ns < batch_ns else batch_ns  # noqa: FURB136
        return pool_before_ns, batch_before_ns

    def expect(self, deadline_ns: float) -> None:
        """Look whether a job has expired, when its time has come."""
        self._wake_at(deadline_ns)

    def look_around(self) -> None:
        """Look at all lanes: slots came free, or settings have changed."""
        for lane in self._known:
            self.look(lane)

    def one_waits(self) -> bool:
        """Tell whether a thread is on its way, or stands still in the middle of its work."""
        try:
            return self._starting > 0 or any(waits(clock) for clock in self._clocks.values())
        except RuntimeError:  # one has come or gone meanwhile, so that it had the GIL
            return False

    def _wake_at(self, at_ns: float) -> None:
        if at_ns < self._alarm_ns:
            self._alarm_ns = at_ns
            self._alarm.set()

    async def run_alarm(self) -> None:
        """Look at the lanes when a batch is due. Never ends."""
        while True:
            self._alarm = anyio.Event()
            delay_s = max(0, self._alarm_ns - self._clock()) / 1e9
            with anyio.move_on_after(None if math.isinf(delay_s) else delay_s) as timeout:
                await self._alarm.wait()
            if timeout.cancelled_caught:
                self._alarm_ns = math.inf
                self._expire()
                self.look_around()

    def _expire(self) -> None:
        now_ns = self._clock()
        self._backlog.expire(now_ns)
        settle_late(self._backlog, self._ledger)
        deadline_ns = self._backlog.deadline_ns
        for lane in self._known:
            deadline_ns = min(deadline_ns, lane.expire(now_ns))
        self._wake_at(max(deadline_ns, now_ns + EXPIRY_NS))

    async def run_settling(self) -> None:
        """Settle what threads hand over while they go on. Never ends."""
        while True:
            await anyio.wait_readable(self._receiver)
            self._receiver.recv(64)
            self._awake = False
            self.settle_done()

    def settle_done(self) -> None:
        """Settle what threads have handed over, and look at what the slots can do now."""
        self._settle()
        self.look_around()

    def _settle(self) -> None:
        while self._done:
            work, error = self._done.popleft()
            try:
                if error is not None:
                    work.fail(error)
                else:
                    if work.batched:
                        work.trace()
                    work.settle()
            except Exception as fault:  # what a kernel gave isn't what it declared
                work.fail(fault)
            if work.batched:
                self._ledger.count_batch(work.kind, work.cause, work.batched)
            self.parallel_launches += work.parallel
        settle_late(self._backlog, self._ledger)

    async def _visit(self, lease: Lease) -> None:
        """Let a thread work for as long as there is something to do."""
        try:
            await anyio.to_thread.run_sync(self._work_through, lease, limiter=self._unbounded)
        except Exception as error:
            if lease.begun:
                raise  # a fault of our own
            with self._taking:  # no thread could be started; others may go on and take the work
                work = self._take(lease) if self._slots.busy <= 1 else None
            if work is not None:
                work.fail(error)
        finally:
            if lease.begun:
                self._slots.release(lease)
            else:
                self._dismiss(lease)
            self._settle()
        self.look_around()

    # -- In worker threads ----------------------------------------------------------------------

    def _work_through(self, lease: Lease) -> None:
        lease.begun = True
        mark_inside(self._tasks)
        clock = own_clock()
        while True:
            self._clocks[lease] = clock
            try:
                self._serve(lease)
            finally:
                del self._clocks[lease]
            if not lease.wanted.acquire(timeout=LINGER_S):
                with self._taking:
                    if lease in self._lingering:
                        self._lingering.remove(lease)
                        return
                lease.wanted.acquire()  # somebody has just taken the thread on

    def _serve(self, lease: Lease) -> None:
        """Do what is due, then linger.

        The slot is free before the last work is handed over, so that its caller finds it so.
        """
        with self._taking:
            self._arrive(lease)
            work = self._take_or_linger(lease)
        if work is None:
            self._wake()  # what came while the slot was held counted on it
        while work is not None:
            error = None
            try:
                work.run()
            except BaseException as caught:
                error = caught
            done = work
            try:
                with self._taking:
                    self._slots.shrink(lease)
                    work = self._take_or_linger(lease)
            finally:
                self._done.append((done, error))
            self._wake()

    def _wake(self) -> None:
        """Let the event loop settle what is done, and look at what the slots can do now."""
        if not self._awake:
            self._awake = True
            with contextlib.suppress(OSError):  # the router is gone: its tasks were killed
                self._sender.send(b"\0")

    def _take_or_linger(self, lease: Lease) -> Work | None:
        work = self._take(lease)
        if work is None:
            self._slots.release(lease)
            self._lingering.append(lease)
        return work

    def _take(self, lease: Lease) -> Work | None:
        """Take work for a thread, from the lanes; None if there is none, or no slot.

        `_taking` is held.
        """
        work = self._next(lease)
        lease.ends_ns = 0.0 if work is None else self._clock() + work.predicted_ns
        return work

    def _next(self, lease: Lease) -> Work | None:
        if entries := self._spawned.take(1):  # which has a slot, even if there are fewer by now
            return Chunk(self._ledger, entries)
        if self._slots.busy > self._slots.total:
            return None
        # By start-time fair queuing (Goyal, Vin and Cheng 1996): whoever got the least comes first.
        lanes = sorted(self._lanes, key=self._start_ns)
        for gather in (True, False):
            for lane in lanes:
                if (work := lane.take(lease, gather=gather)) is not None:
                    self._virtual_ns = self._start_ns(lane)
                    lane.served_ns = self._virtual_ns + work.predicted_ns
                    self._lanes.remove(lane)
                    self._lanes.append(lane)  # among equals, the one that waited longest
                    return work
        return None

    def _start_ns(self, lane: Lane) -> float:
        return max(lane.served_ns, self._virtual_ns)
