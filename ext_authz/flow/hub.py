# SPDX-License-Identifier: Apache-2.0
"""
The newest flows, and the clients that follow them.

Each client has a bounded queue. One that is too slow loses flows and is told how many; it never slows the others.
While nobody looks on, records may be held as they came: `settle` makes flows of them, for whoever begins to look.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from ext_authz.flow.facts import Seen

KEPT, KEPT_BYTES = 4096, 16 << 20
QUEUE_BYTES = 16 << 20
CLIENTS_MAX = 64


class TooManyClients(Exception):
    """Another client would cost the rest."""


class Follower:
    """One client's queue of batches."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._batches: deque[tuple[Sequence[Seen], int]] = deque()
        self._held = 0  # bytes
        self._ready = asyncio.Event()
        self._ring_lost = hub.lost
        self.lost = 0

    def push(self, batch: Sequence[Seen], size: int) -> bool:
        """False if it is lost: there is no room for so many bytes."""
        fits = self._held + size <= QUEUE_BYTES
        if fits:
            self._batches.append((batch, size))
            self._held += size
        else:
            self.lost += len(batch)
        self._ready.set()
        return fits

    def wake(self) -> None:
        self._ready.set()

    async def next(self) -> Sequence[Seen]:
        """The next batch; empty if there is only news of losses, or the hub has closed."""
        await self._ready.wait()
        if not self._batches:
            self._clear()
            return ()
        batch, size = self._batches.popleft()
        self._held -= size
        self._clear()
        return batch

    def _clear(self) -> None:
        if not self._batches and not self._hub.closed:
            self._ready.clear()

    def losses(self) -> tuple[int, int]:
        """Flows lost since the last call: in the rings, and by this client."""
        rings, self._ring_lost = self._hub.lost - self._ring_lost, self._hub.lost
        own, self.lost = self.lost, 0
        return rings, own


class Hub:
    """Hands each batch to whoever follows."""

    def __init__(self, kept: int = KEPT) -> None:
        self._recent: deque[Seen] = deque()
        self._kept = kept
        self._size = 0  # of the lines that are kept
        self._followers: set[Follower] = set()
        self.lost = 0  # in rings, ever
        self.client_lost = 0
        self.seen = 0  # records, whether or not they became flows
        self.closed = False
        self.settle: Callable[[], Awaitable[None]] = _settled

    def publish(self, batch: Sequence[Seen]) -> None:
        size = sum([len(seen.line) for seen in batch])
        self._recent.extend(batch)
        self._size += size
        while len(self._recent) > self._kept or self._size > KEPT_BYTES:
            self._size -= len(self._recent.popleft().line)
        for follower in self._followers:
            if not follower.push(batch, size):
                self.client_lost += len(batch)

    def lose(self, count: int) -> None:
        self.lost += count
        for follower in self._followers:
            follower.wake()

    @property
    def followed(self) -> bool:
        return bool(self._followers)

    def newest(self) -> list[Seen]:
        """All that are kept, the oldest first."""
        return list(self._recent)

    def follow(self) -> Follower:
        """
        Raises:
            TooManyClients: There are enough.
        """
        if len(self._followers) >= CLIENTS_MAX:
            raise TooManyClients(f"{CLIENTS_MAX} clients follow already")
        follower = Follower(self)
        self._followers.add(follower)
        return follower

    def leave(self, follower: Follower) -> None:
        self._followers.discard(follower)

    def close(self) -> None:
        """No more flows come: followers end when they have read what is there."""
        self.closed = True
        for follower in self._followers:
            follower.wake()


async def _settled() -> None:
    """Nothing is held."""
