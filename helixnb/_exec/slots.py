"""The one owner of CPU slots: no kernel runs in a worker thread without a lease from here."""

from __future__ import annotations

import anyio


class Lease:
    """One slot or several, held until `Slots.release`."""

    __slots__ = ("extras",)

    def __init__(self) -> None:
        self.extras: list[object] = []

    @property
    def size(self) -> int:
        """How many slots are held, and so on how many threads the holder may compute."""
        return 1 + len(self.extras)


class Slots:
    """CPU slots, over all strategies. Waiters are served in order of arrival.

    Must be created, and used, on the event loop.
    """

    def __init__(self, total: int) -> None:
        self._limiter = anyio.CapacityLimiter(total)
        self._taken = anyio.Event()

    @property
    def total(self) -> int:
        """How many there are."""
        return int(self._limiter.total_tokens)

    @property
    def busy(self) -> int:
        """How many are held; more than `total` for a while after a `resize` to less."""
        return self._limiter.borrowed_tokens

    @property
    def idle(self) -> int:
        """How many are free."""
        return max(0, self.total - self.busy)

    async def wait_busy(self) -> None:
        """Wait until a slot is held."""
        while not self.busy:
            self._taken = anyio.Event()
            await self._taken.wait()

    def resize(self, total: int) -> None:
        """Change how many there are. Leases that are out stay out, new ones wait."""
        self._limiter.total_tokens = total

    async def take(self) -> Lease:
        """Wait for a slot."""
        lease = Lease()
        await self._limiter.acquire_on_behalf_of(lease)
        self._taken.set()
        return lease

    def take_nowait(self) -> Lease | None:
        """Take a slot if one is free and nobody waits for it."""
        lease = Lease()
        try:
            self._limiter.acquire_on_behalf_of_nowait(lease)
        except anyio.WouldBlock:
            return None
        self._taken.set()
        return lease

    def extend(self, lease: Lease, extras: int) -> None:
        """Add up to `extras` slots to a lease, as many as are free now.

        Never waits: two holders that waited for each other's slots would wait for ever.
        """
        for _ in range(extras):
            extra = object()
            try:
                self._limiter.acquire_on_behalf_of_nowait(extra)
            except anyio.WouldBlock:
                return
            lease.extras.append(extra)

    def release(self, lease: Lease) -> None:
        """Give all slots of a lease back, once the thread that used them has ended."""
        for extra in lease.extras:
            self._limiter.release_on_behalf_of(extra)
        self._limiter.release_on_behalf_of(lease)
