# SPDX-License-Identifier: Apache-2.0
"""
What files hold, read again only where the file may be another one.

A file is taken for unchanged if its inode, size and times are what they were, and it had been left alone for longer
than the file system's clock is coarse when it was read (a change within one tick would leave no trace).
"""

from __future__ import annotations

import os
import time
from collections.abc import Container

from ext_authz.model.load import read_bytes
from ext_authz.model.types import PolicyError

_SETTLED_NS = 100_000_000
_Mark = tuple[int, int, int, int, int]


class FileCache:
    """Contents by path."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[_Mark, bytes]] = {}

    def read(self, path: str) -> bytes | PolicyError:
        """As read_bytes of a file the user did not name."""
        try:
            found = os.stat(path)
        except OSError:
            return read_bytes(path, given=False)
        mark = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        known = self._known.get(path)
        if known is not None and known[0] == mark:
            return known[1]
        settled = time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) > _SETTLED_NS
        content = read_bytes(path, given=False)
        if settled and isinstance(content, bytes) and len(content) == found.st_size:
            self._known[path] = (mark, content)
        return content

    def forget(self, paths: Container[str]) -> None:
        """Forget files that are not among these."""
        for path in [path for path in self._known if path not in paths]:
            del self._known[path]
