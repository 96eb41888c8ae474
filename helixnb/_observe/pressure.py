"""What presses on a router from outside: the event loop's lag, and what others take of the CPU."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

import anyio

from helixnb._log import SafeLogger

logger = SafeLogger("helixnb")

HEARTBEAT_NS = 5_000_000
"""How often the loop's lag is measured, while jobs come."""

TIMER_NS = 1_000_000
"""How late an event loop's timers are by themselves: they go by milliseconds."""

REST_NS = 1_000_000_000
"""Time without a new job, and with none in flight, after which nothing is measured until one comes:
an idle service sleeps."""

CPU_PERIOD_S = 0.25
"""How often CPU use is measured: the kernel counts it in hundredths of a second."""

FRESH = 0.5
"""Weight of the newest measurement of CPU use."""


class Pressure:
    """Measures how late the event loop is, and how much of the CPU is left to the slots.

    Attributes
    ----------
    cpu_left
        CPUs that other processes and the event loop leave; infinite until it is known.
    resting
        Whether nothing is measured; `note_use` changes that.
    """

    def __init__(self, clock: Callable[[], int], is_busy: Callable[[], bool]) -> None:
        self._clock = clock
        self._is_busy = is_busy
        self.cpu_left = math.inf
        self.resting = True
        self._late_ns = 0
        self._due_ns = math.inf
        self._used_ns = 0
        self._news = anyio.Event()
        self._warned = False

    def lag_ms(self, now_ns: int) -> float:
        """Return how late the loop was when it was last due, or is by now if it is due again."""
        overdue_ns = now_ns - TIMER_NS - self._due_ns
        if overdue_ns > self._late_ns:
            return overdue_ns / 1e6
        return self._late_ns / 1e6

    def note_use(self, now_ns: int) -> None:
        """Note that a job has come."""
        self._used_ns = now_ns
        if self.resting:
            self.resting = False
            self._news.set()

    async def run_heartbeat(self, beat: Callable[[], object]) -> None:
        """Measure the loop's lag, and call `beat` as often. Never ends."""
        while True:
            await self._wait_for_use()
            try:
                while not self._rests():
                    self._due_ns = self._clock() + HEARTBEAT_NS
                    await anyio.sleep(HEARTBEAT_NS / 1e9)
                    self._late_ns = max(0, self._clock() - int(self._due_ns) - TIMER_NS)
                    beat()
            finally:  # nothing is due any more, of a router that has ended either
                self._due_ns, self._late_ns = math.inf, 0

    async def run_sampler(self, heeds: Callable[[], bool]) -> None:
        """Measure CPU use, as long as `heeds` says so. Never ends."""
        while True:
            await self._wait_for_use()
            meter = None
            while not self._rests():
                if not heeds():
                    self.cpu_left, meter = math.inf, None
                else:
                    meter = self._sample(meter)
                await anyio.sleep(CPU_PERIOD_S)
            self.cpu_left = math.inf

    def _sample(self, meter: CpuMeter | None) -> CpuMeter | None:
        """Read a meter, or begin with one; takes 0.05 ms, half of what a thread would."""
        try:
            if meter is None:
                return CpuMeter(threading.get_ident())
            left = meter.read()
        except Exception as error:  # there are no such counters here
            self._warn(error)
            self.cpu_left = math.inf
            return None
        known = self.cpu_left
        self.cpu_left = left if math.isinf(known) else known + FRESH * (left - known)
        return meter

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("the CPU use of other processes can't be measured: %r", error)

    async def _wait_for_use(self) -> None:
        while self.resting:
            if self._news.is_set():
                self._news = anyio.Event()
            await self._news.wait()

    def _rests(self) -> bool:
        self.resting = not self._is_busy() and self._clock() - self._used_ns > REST_NS
        return self.resting


class CpuMeter:
    """Reads how much of this process's CPUs is left to threads of its own, but one.

    `loop_thread` names the one that isn't left anything.
    """

    def __init__(self, loop_thread: int) -> None:
        import psutil  # takes 20 ms

        self._psutil = psutil
        self._process = psutil.Process()
        try:
            self._loop_clock: int | None = time.pthread_getcpuclockid(loop_thread)
        except (AttributeError, OSError):  # macOS and Windows have no such clocks
            self._loop_clock = None
        self._at_s, self._others_s = time.perf_counter(), 0.0
        self.read()

    def read(self) -> float:
        """Return how many CPUs were left since the last call, or since this was made."""
        cpus, busy_s = self._machine()
        own = self._process.cpu_times()
        own_s: float = own.user + own.system
        if self._loop_clock is not None:
            own_s -= time.clock_gettime(self._loop_clock)
        others_s = busy_s - own_s
        now_s = time.perf_counter()
        taken: float = (others_s - self._others_s) / max(now_s - self._at_s, 1e-3)
        self._at_s, self._others_s = now_s, others_s
        return cpus - min(max(taken, 0.0), cpus)

    def _machine(self) -> tuple[int, float]:
        """Return how many CPUs this process may use, and the seconds that they were busy."""
        each = self._psutil.cpu_times(percpu=True)
        try:
            mine = [each[cpu] for cpu in self._process.cpu_affinity()]
        except (AttributeError, IndexError):  # macOS has no affinity; a CPU may be offline
            mine = each
        idle_s = sum(cpu.idle + getattr(cpu, "iowait", 0.0) for cpu in mine)
        guests_s = sum(getattr(cpu, "guest", 0.0) + getattr(cpu, "guest_nice", 0.0) for cpu in mine)
        # A guest's time is counted as the user's too.
        return len(mine), sum(sum(cpu) for cpu in mine) - guests_s - idle_s
