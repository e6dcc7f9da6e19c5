# SPDX-License-Identifier: Apache-2.0
"""The state directory: that only its owner can write, and only he can read what holds secrets."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ext_authz.doctor.registry import Finding, Patient, check, fail, ok
from ext_authz.state import State, folder_problem

_PRIVATE = ("snapshot", "identities.json", "revision", "status.json", "lock", "envoy-config.json")


@check("state directory")
def state_directory(patient: Patient) -> Iterator[Finding]:
    state = State(patient.state)
    if not state.root.exists():
        yield from _creatable(state.root)
        return
    problems = []
    for folder in (state.root, state.readers, state.kept):
        if folder.exists():
            problem = folder_problem(folder)
            if problem:
                problems.append(fail(problem, f"chown it to the node's user and chmod go-w {folder}"))
    files = [state.root / name for name in _PRIVATE]
    files += list(state.kept.glob("*.json")) if os.access(state.root, os.X_OK) else []
    problems += [finding for file in files for finding in _file(file)]
    yield from problems or [ok(f"{state.root}: owner and modes are right")]


def _creatable(root: Path) -> Iterator[Finding]:
    parent = next(folder for folder in root.parents if folder.exists())
    if os.access(parent, os.W_OK):
        yield ok(f"{root}: will be made at the first run")
    else:
        yield fail(f"{root}: does not exist, and {parent} is not writable", "make it, or use --state DIR")


def _file(path: Path) -> Iterator[Finding]:
    try:
        found = path.lstat()
    except OSError:
        return
    if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077 or found.st_uid not in (os.geteuid(), 0):
        mode = f"{found.st_mode & 0o7777:04o}, owner {found.st_uid}"
        yield fail(f"{path}: is not private ({mode})", f"stop the node and remove it, or chmod 600 {path}")
