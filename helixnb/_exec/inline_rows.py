"""Jobs in columns that run on the event loop, one by one, while they are as short as predicted."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import numpy as np

from helixnb._core.guard import LEAST_NS
from helixnb._core.rules import ROW_NS
from helixnb._exec.column_lane import Part
from helixnb._exec.inline import LoopWatch
from helixnb._exec.lanes import CHUNK_NS
from helixnb._exec.work import timed
from helixnb._records import Array

TURN_ROWS = 256
"""How many jobs one turn of the event loop begins at most: to begin and settle them costs as much
as to run some, so it is done for many at once; but those that it doesn't get to begin in vain."""

OVER_TIMES = 4
"""How many times longer than predicted the jobs so far may have taken, for the others to go on."""


async def run_rows(part: Part, watch: LoopWatch, send_off: Callable[[Part], object]) -> None:
    """Run the jobs of a part on the event loop, in turns of a millisecond.

    As soon as their kind is barred from it, or they are over their time, the others go elsewhere.

    Parameters
    ----------
    send_off
        Lets what still waits of a part run elsewhere.
    """
    clock = part.rows.clock
    spent_ns, due_ns = 0, float(LEAST_NS)
    while len(part.rest):
        if spent_ns > due_ns or not part.model.guard.allows(clock()):
            send_off(part)
            return
        turn = _Turn(part, watch)
        spent_ns += turn.run()
        due_ns += OVER_TIMES * turn.due_ns
        turn.settle()
        watch.tell()
        if turn.interrupt is not None:
            raise turn.interrupt
        await anyio.lowlevel.checkpoint()


class _Turn:
    """Jobs of a part that run one after the other, until a millisecond is over.

    Attributes
    ----------
    due_ns
        How long those that ran should have taken.
    interrupt
        The KeyboardInterrupt that ended it early.
    """

    def __init__(self, part: Part, watch: LoopWatch) -> None:
        self._part = part
        self._watch = watch
        self._start = part.taken
        jobs = part.take_rows(TURN_ROWS)
        self._positions: Array = part.positions[jobs.start : jobs.stop]
        self._values = part.kernel.no_values(len(jobs))
        self._completed: list[int] = []
        self._failed: list[tuple[int, BaseException]] = []
        self.due_ns = 0.0
        self.interrupt: KeyboardInterrupt | None = None

    def run(self) -> int:
        """Run them, and give back those that it doesn't get to; returns how long it took."""
        part, watch = self._part, self._watch
        kernel, model, clock = part.kernel, part.model, part.rows.clock
        values, completed = self._values, self._completed
        live = part.rows.begin(self._positions).tolist()
        first_ns = began_ns = clock()
        ends_ns = first_ns + CHUNK_NS
        for done, at in enumerate(live, 1):
            if began_ns > watch.stale_ns:
                watch.read(began_ns)
            taken_ns = 0
            try:
                value, taken_ns = timed(part.call_of(at), kernel, model)
                values[len(completed)] = value
            except BaseException as error:
                self._failed.append((at, error))
                if isinstance(error, KeyboardInterrupt):
                    self.interrupt = error
            else:
                completed.append(at)
            now_ns = clock()
            barred = False
            if now_ns - began_ns > LEAST_NS:
                barred = watch.watches and self._judge(at, began_ns, now_ns)
            elif model.guard.strikes:
                model.guard.strikes = 0
            if taken_ns and not barred:
                model.learn(float(part.work[at]), taken_ns, now_ns)
                now_ns = clock()
            began_ns = now_ns
            if now_ns > ends_ns or barred or self.interrupt is not None:
                self._stop_after(at, live[done:])
                break
        stop = part.taken
        if stop > self._start:
            self.due_ns = part.predicted_ns(self._start, stop) + (stop - self._start) * ROW_NS
        return began_ns - first_ns

    def _judge(self, at: int, began_ns: int, now_ns: int) -> bool:
        part = self._part
        job = self._start + int(np.searchsorted(self._positions, at))
        return self._watch.judge(
            part.model,
            part.kernel.name,
            float(part.work[at]),
            part.predicted_ns(job, job + 1),
            began_ns,
            now_ns,
            is_compiled=part.kernel.is_compiled,
        )

    def _stop_after(self, at: int, left: list[int]) -> None:
        if left:
            done = int(np.searchsorted(self._positions, at)) + 1
            self._part.give_back(self._start + done)
            self._positions = self._positions[:done]

    def settle(self) -> None:
        """Settle those that ran, and drop those that were too late to begin."""
        part = self._part
        part.rows.expire(self._positions)
        if self._completed:
            positions = np.array(self._completed, np.int64)
            part.rows.complete(positions, self._values[: len(self._completed)])
        for at, error in self._failed:
            part.rows.fail(np.array([at]), error)
