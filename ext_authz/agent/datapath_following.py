# SPDX-License-Identifier: Apache-2.0
"""
Brings each published snapshot into the kernel's maps.

Envoy first, for a moment: a connection that the new revision steers is best judged by an Envoy that has it too. That
is a courtesy, not a condition; an Envoy without the revision closes what it cannot judge. A snapshot that does not
come into the maps leaves the generation before it in force, and is tried again.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ext_authz.engine.engine import Engine
from ext_authz.engine.types import SnapshotError
from ext_authz.logs import event
from ext_authz.memory import trim
from ext_authz.state import State, read_json, read_owned, write_json

log = logging.getLogger(__name__)

PAGE = "datapath.json"
DOOR = "bpf"
# The longest that Envoy is waited for. A denial is late by as much.
_ENVOY_S = 0.02
_RETRY_S = 5.0


class Following:
    """
    Keeps the kernel at the newest snapshot that fits.

    Args:
        publish: Brings a snapshot (its bytes, and the same opened) into the maps, whole or not at all; raises what
            `failures` names.
        in_force: Revision that the kernel judges by now, 0: none.
    """

    def __init__(
        self,
        state: State,
        publish: Callable[[bytes, Engine], dict[str, Any]],
        failures: tuple[type[Exception], ...],
        in_force: int,
    ) -> None:
        self._state = state
        self._publish = publish
        self._failures: tuple[type[Exception], ...] = (OSError, SnapshotError, MemoryError, *failures)
        self._seen: tuple[int, ...] = ()
        self._retry = float("inf")
        self.engine: Engine | None = None
        self.revision = in_force
        self.digest = ""
        self.since = time.time() if in_force else 0.0
        self.rejected = 0
        self.problem = ""
        self.report: dict[str, Any] = {}

    def look(self) -> bool:
        """Take in the snapshot if it is another one, or was refused a while ago. True if it came into force."""
        try:
            found = os.stat(self._state.snapshot, follow_symlinks=False)
        except OSError:
            return False
        seen = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
        if seen == self._seen and time.monotonic() < self._retry:
            return False
        self._seen = seen
        return self._load()

    def _load(self) -> bool:
        try:
            data = read_owned(self._state.snapshot)
            engine = Engine.open(data, self.engine)
            self._await_envoy(engine.revision)
            self.report = self._publish(data, engine)
        except self._failures as error:
            self.rejected += 1
            self.problem = str(error)
            self._retry = time.monotonic() + _RETRY_S
            event(log, logging.ERROR, "snapshot is not in the kernel, the last one stays", reason=error)
            return False
        finally:
            trim()
        self.engine, self.revision, self.digest = engine, engine.revision, engine.digest
        self.problem, self._retry, self.since = "", float("inf"), time.time()
        event(log, logging.INFO, "snapshot in the kernel", fields={"revision": self.revision, **self.report})
        return True

    def _await_envoy(self, revision: int) -> None:
        until = time.monotonic() + _ENVOY_S
        while time.monotonic() < until and _envoys_behind(self._state.readers, revision):
            time.sleep(0.001)

    def write_page(self, counts: dict[str, int], flows: dict[str, int]) -> None:
        """
        Report as every reader does. The page stays when the process ends: the kernel still judges by it, and its
        numbers must not be given to others.
        """
        page = {
            "pid": os.getpid(),
            "door": DOOR,
            "revision": self.revision,
            "digest": self.digest,
            "in_force_since": self.since,
            "rejected": self.rejected,
            "error": self.problem,
            "counts": counts,
            "flows": flows,
        }
        try:
            write_json(self._state.readers / PAGE, page)
        except OSError as error:
            event(log, logging.WARNING, "cannot write the reader's page", reason=error)


def _envoys_behind(readers: Path, revision: int) -> bool:
    """Whether an Envoy that runs has an older revision."""
    for path in readers.glob("*.json"):
        page = read_json(path) if path.name != PAGE else None
        if not isinstance(page, dict) or page.get("door") != "module":
            continue
        try:
            if int(page.get("revision") or 0) < revision and Path(f"/proc/{int(page['pid'])}").exists():
                return True
        except (KeyError, TypeError, ValueError):
            continue
    return False


def page_of(state: State) -> dict[str, Any]:
    """What the reader reported last."""
    try:
        return dict(json.loads((state.readers / PAGE).read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}
