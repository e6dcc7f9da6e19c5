# SPDX-License-Identifier: Apache-2.0
"""
Programs of another data path on this host: a node with another state directory is dead, and what it left judges on.

Two sets of programs would take each other's marks for forged, and the older one's verdicts follow no policy any more.
They are found where they hang, whoever pinned them; the file systems of pins then say whose they are.

Source: proc_pid_mountinfo(5)
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ext_authz.agent.cgroups import opened
from ext_authz.datapath.mount import bpf_mounts
from ext_authz.datapath.sets import Pins
from ext_authz.datapath.syscall import AttachType, attached_programs, pinned_program, program_name
from ext_authz.state import State

_NAMESPACE = Path("/proc/thread-self/ns/net")
# On an interface, in the order in which people read them.
_INTERFACE = {AttachType.TCX_INGRESS: "from_workload", AttachType.TCX_EGRESS: "to_workload"}
_BASE = {AttachType.SETSOCKOPT: "keep_marks", AttachType.CGROUP_EGRESS: "keep_packets"}


@dataclass(frozen=True, slots=True)
class Hanging:
    """One program of a data path on its hook. where: the hook, for people."""

    number: int
    name: str
    where: str


@dataclass(frozen=True, slots=True)
class Stranger:
    """Another data path. root: its file system of pins; None: none that is mounted here has them."""

    root: Path | None
    hanging: tuple[Hanging, ...]

    def __str__(self) -> str:
        found = ", ".join(f"{one.name} ({one.where})" for one in self.hanging)
        return f"another data path judges on this host: {found}{self._remedy()}"

    def _remedy(self) -> str:
        if self.root is None:
            return (
                "; their pins are in no file system that is mounted here, but perhaps in another mount namespace: "
                "clean up there, or take them off by bpftool link detach"
            )
        state = state_of(self.root)
        if state is None:
            return f", pinned in {self.root}"
        with contextlib.suppress(OSError):
            if (pid := State(state).running()) is not None:
                return f", of the node with {state} (process {pid}): use that, or end it first"
        return f", of a node with {state} that does not run: idmesh run --cleanup --state {state}"


def state_of(root: Path) -> Path | None:
    """The state directory that a file system of pins belongs to, by its name."""
    found = root.parent.parent
    return found if State(found).datapath_pins == root else None


def find_strangers(state: State, base: Path | None) -> list[Stranger]:
    """
    Data paths of others than this state directory on the calling thread's network namespace, its interfaces, and the
    cgroup `base`. Who may not ask the kernel finds none.
    """
    ours = _pinned(state.datapath_pins)
    left = [one for one in _hanging(base) if one.number not in ours]
    found = []
    for root in bpf_mounts() if left else ():
        if root != state.datapath_pins and (theirs := _pinned(root)):
            found.append(Stranger(root, tuple(one for one in left if one.number in theirs)))
            left = [one for one in left if one.number not in theirs]
    return [one for one in [*found, Stranger(None, tuple(left))] if one.hanging]


def _pinned(root: Path) -> set[int]:
    """Programs that the links of a data path hold. Links that cannot be read hold none."""
    pins, found = Pins(root), set()
    with contextlib.suppress(OSError):
        for name in pins.link_names():
            with contextlib.suppress(OSError):
                found.add(pinned_program(pins.links / name))
    return found


def _hanging(base: Path | None) -> Iterator[Hanging]:
    with contextlib.suppress(OSError), opened(_NAMESPACE) as namespace:
        yield from _on(namespace, {AttachType.SK_LOOKUP: "choose_listener"}, "network namespace")
    for number, name in socket.if_nameindex():
        yield from _on(number, _INTERFACE, name)
    with contextlib.suppress(OSError):
        if base is not None:
            with opened(base) as cgroup:
                yield from _on(cgroup, _BASE, f"cgroup {base}")


def _on(target: int, hooks: dict[AttachType, str], where: str) -> Iterable[Hanging]:
    for attach_type, name in hooks.items():
        with contextlib.suppress(OSError):
            for number in attached_programs(target, attach_type):
                if program_name(number) == name:
                    yield Hanging(number, name, where)
