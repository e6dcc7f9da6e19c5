# SPDX-License-Identifier: Apache-2.0
"""Waits until every reader decides with a revision, or a newer one."""

from __future__ import annotations

import select
import time
from typing import Any

from ext_authz.agent.status import Reader, read_readers
from ext_authz.inotify import CREATE, DELETE, MOVED_TO, Inotify
from ext_authz.state import State, read_json

# A reader that ends without removing its page sends no event.
_LOOK_S = 0.5


def wait_for_readers(state: State, revision: int, timeout_s: float) -> list[Reader]:
    """Those that still decide with an older revision when the time is over; none: all have it."""
    until = time.monotonic() + timeout_s
    watch = _watch(state)
    try:
        while True:
            behind = readers_behind(state, revision)
            left = until - time.monotonic()
            if not behind or left <= 0:
                return behind
            if watch is None:
                time.sleep(min(left, 0.02))
            elif select.select([watch.fileno()], [], [], min(left, _LOOK_S))[0]:
                watch.read()
    finally:
        if watch is not None:
            watch.close()


def readers_behind(state: State, revision: int) -> list[Reader]:
    """Readers that run, and workers that have not reported yet."""
    page = read_json(state.status)
    page = page if isinstance(page, dict) else {}
    readers = read_readers(state, page)
    known = {reader.pid for reader in readers}
    silent = [Reader.silent(pid, page) for pid in page.get("workers") or [] if pid not in known]
    if _lacks_datapath(page, readers):
        silent.append(Reader.kernel(state, page))
    return [reader for reader in [*readers, *silent] if reader.revision < revision]


def _lacks_datapath(page: dict[str, Any], readers: list[Reader]) -> bool:
    """The kernel goes on judging by what it has, whether or not its process runs."""
    datapath = page.get("datapath")
    active = isinstance(datapath, dict) and datapath.get("active")
    return bool(active) and all(reader.door != "bpf" for reader in readers)


def _watch(state: State) -> Inotify | None:
    """None: there is no inotify left, so the pages are looked at often."""
    try:
        made = Inotify()
    except OSError:
        return None
    made.watch(str(state.readers), MOVED_TO | CREATE | DELETE)
    return made
