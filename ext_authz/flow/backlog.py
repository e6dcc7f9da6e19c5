# SPDX-License-Identifier: Apache-2.0
"""Records that nobody wanted as lines yet: the newest ones, as they came."""

from __future__ import annotations

from collections import deque

# Twice what the hub keeps: most responses among the newest flows then find their requests.
RECORDS_MAX, BYTES_MAX = 8192, 8 << 20


class Backlog:
    """Batches, the oldest first; what is too much is forgotten."""

    def __init__(self, records_max: int = RECORDS_MAX, bytes_max: int = BYTES_MAX) -> None:
        self._batches: deque[tuple[bytes, int]] = deque()
        self._records_max = records_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self.records = 0

    def add(self, batch: bytes, records: int) -> None:
        """The newest batch is kept whatever its size."""
        self._batches.append((batch, records))
        self._bytes += len(batch)
        self.records += records
        while len(self._batches) > 1 and self._too_much():
            self.pop()

    def _too_much(self) -> bool:
        first = self._batches[0][1]
        return self._bytes > self._bytes_max or self.records - first >= self._records_max

    def pop(self) -> bytes:
        """
        Raises:
            IndexError: There is none.
        """
        batch, records = self._batches.popleft()
        self._bytes -= len(batch)
        self.records -= records
        return batch

    def __bool__(self) -> bool:
        return bool(self._batches)
