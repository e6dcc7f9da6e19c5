# SPDX-License-Identifier: Apache-2.0
"""
Takes everything of the data path off this host: programs, pins, mount, rules, routes, sysctls, cgroups, and what the
state directory says of them. Nothing is judged in the kernel any more, and nobody is attached.

The order leaves nothing that steers without somebody who listens: first the programs, then Envoy, then the ways.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
import time
from pathlib import Path

from ext_authz.agent import cgroups
from ext_authz.agent.attachments import AttachmentStore
from ext_authz.agent.datapath_following import PAGE
from ext_authz.agent.datapath_strangers import find_strangers
from ext_authz.logs import event
from ext_authz.process import Held
from ext_authz.state import State

log = logging.getLogger(__name__)

_END_S = 5.0


def clean_up(state: State) -> list[str]:
    """
    To be called by who owns the state directory.

    Returns:
        A line for everything that could not be put back, and for what of other state directories judges here.
    """
    problems = []
    if state.datapath_pins.exists():
        problems += _programs(state)
    end_all(cgroups.envoy_cgroup(state))
    problems += _ways(state)
    if not problems:
        _forget(state)
        event(log, logging.INFO, "nothing of the data path is left")
    return problems + [str(one) for one in find_strangers(state, cgroups.base())]


def is_there(state: State) -> bool:
    """Whether a state directory has anything for clean_up()."""
    cgroup = cgroups.envoy_cgroup(state)
    marks = [state.datapath / "routing.json", state.datapath / "page.json", state.readers / PAGE]
    marks += [cgroup] if cgroup else []
    try:
        return state.has_datapath or any(one.exists() for one in marks) or AttachmentStore(state.attached).any()
    except PermissionError:  # whoever may not look is told when he tries
        return True


def _programs(state: State) -> list[str]:
    """Also of a loader that could not load here any more: nothing is loaded for it."""
    try:
        from ext_authz.datapath.errors import DatapathError
        from ext_authz.datapath.hooks import Hooks
        from ext_authz.datapath.lock import Lock
        from ext_authz.datapath.mount import check_mount, close_mount, kind_of
        from ext_authz.datapath.sets import Pins
    except ImportError as error:
        return [str(error)]

    def no_program(name: str) -> int:
        raise DatapathError(f"{name}: nothing is attached while cleaning up")

    root = state.datapath_pins
    try:
        lock = Lock.take(root)
        try:
            if kind_of(root):
                check_mount(root)
                pins = Pins(root)
                Hooks(pins, no_program, None).clear()
                pins.clear()
                close_mount(root)
        finally:
            lock.release()
        lock.remove()
    except (DatapathError, OSError) as error:
        return [f"programs and pins: {error}"]
    return []


def end_all(cgroup: Path | None) -> None:
    """End every process of a cgroup of ours: it cannot go while one is in it."""
    until = time.monotonic() + _END_S
    number = signal.SIGTERM
    while cgroup and (pids := cgroups.members(cgroup)):
        for pid in pids:
            with contextlib.suppress(OSError):
                held = Held(pid)
                held.send(number)
                held.wait(_END_S / 2)
                held.close()
        if time.monotonic() > until:
            return
        number = signal.SIGKILL


def _ways(state: State) -> list[str]:
    from ext_authz.agent.datapath_host import Host
    from ext_authz.datapath.routing import RoutingError

    try:
        return Host(state).restore()
    except (RoutingError, OSError) as error:
        return [str(error)]


def _forget(state: State) -> None:
    store = AttachmentStore(state.attached)
    for attachment in store.all():
        store.remove(attachment.key)
    shutil.rmtree(state.datapath, ignore_errors=True)
    (state.readers / PAGE).unlink(missing_ok=True)
