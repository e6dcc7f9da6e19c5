# SPDX-License-Identifier: Apache-2.0
"""
Programs on their hooks. A link is pinned the moment it is made, so that enforcement outlives this process; a program
is replaced inside its link, so that no packet finds the hook empty.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ext_authz.datapath._datapath import ffi, lib
from ext_authz.datapath.errors import DatapathError
from ext_authz.datapath.results import Enforced
from ext_authz.datapath.sets import Pins
from ext_authz.datapath.syscall import AttachType

INGRESS, EGRESS = AttachType.TCX_INGRESS, AttachType.TCX_EGRESS
# Host side of a veth: the program of each direction.
VETH: dict[int, str] = {INGRESS: "from_workload", EGRESS: "to_workload"}


@dataclass(frozen=True)
class Link:
    """A pinned link as the kernel describes it. ifindex 0 of a tcx link: its interface is gone."""

    name: str
    id: int
    program: int
    attach_type: int
    ifindex: int
    target: int  # cgroup id or inode of the network namespace

    @property
    def is_dead(self) -> bool:
        """Its hook is gone, or somebody took it off."""
        return not (self.ifindex if self.attach_type in VETH else self.target)


class Hooks:
    """
    Hooks of one data path.

    Args:
        program: Descriptor of a program by name; raises DatapathError.
        clsact: Use filters although the kernel has tcx. None: only if it has not.
    """

    def __init__(self, pins: Pins, program: Callable[[str], int], clsact: bool | None) -> None:
        self._pins = pins
        self._program = program
        self._clsact = clsact

    # ---- links ----

    def link(self, name: str, program: str, target: int, attach_type: int, netns: int | None = None) -> None:
        """
        Put a program on a hook, or in the place of the one that our link of this name holds there.

        Args:
            name: program's name comes first, then "-" and whatever tells it from others.
            target: ifindex (tcx), or descriptor of a cgroup or network namespace. A link of this name that hangs on
                another one goes: a cgroup that was removed lives on in its sockets, and its link with it.

        Raises:
            DatapathError: The kernel refuses.
        """
        if self._update(name, program, _hook(target, attach_type)):
            return
        made = lib.idm_datapath_link(self._program(program), target, attach_type, _space(netns))
        if made < 0:
            raise DatapathError(f"{program} cannot be attached ({name}): {os.strerror(-made)}")
        try:
            code = lib.idm_datapath_pin(made, os.fsencode(self._pins.links / name))
        finally:
            os.close(made)
        if code:
            raise DatapathError(f"{self._pins.links / name}: {os.strerror(-code)}")

    def is_on(self, name: str, target: int, attach_type: int) -> bool:
        """True if a link of this name hangs there."""
        with self._opened(name) as found:
            return found is not None and _fits(_describe(name, found), _hook(target, attach_type))

    def _update(self, name: str, program: str, hook: int | None = None) -> bool:
        """False if there is no living link of the name (on this hook); what there was is gone then."""
        with self._opened(name) as found:
            if found is None:
                return False
            if not _fits(_describe(name, found), hook):
                lib.idm_datapath_link_detach(found)
                (self._pins.links / name).unlink()
                return False
            code = lib.idm_datapath_link_update(found, self._program(program))
            if code == -errno.ENOLINK:  # its hook is gone
                (self._pins.links / name).unlink()
                return False
            if code:
                raise DatapathError(f"{program} cannot be replaced ({name}): {os.strerror(-code)}")
            return True

    def unlink(self, name: str) -> None:
        """Take a link's program off its hook, at once, whoever else holds the link."""
        with self._opened(name) as found:
            if found is not None:
                lib.idm_datapath_link_detach(found)
        with contextlib.suppress(FileNotFoundError):
            (self._pins.links / name).unlink()

    def links(self) -> list[Link]:
        """Every pinned link."""
        made = []
        for name in self._pins.link_names():
            with self._opened(name) as found:
                if found is not None:
                    made.append(_describe(name, found))
        return made

    def is_living(self, name: str) -> bool:
        with self._opened(name) as found:
            return found is not None and not _describe(name, found).is_dead

    def enforced(self, netns: int | None = None) -> Enforced:
        """What is on its hook, as the kernel says now."""
        living = [link for link in self.links() if not link.is_dead]
        found = Counter(link.ifindex for link in living if link.attach_type in VETH)
        whole = {ifindex for ifindex, count in found.items() if count == len(VETH)}
        whole |= {ifindex for ifindex in self._pins.filters() if self._has_filters(ifindex, netns)}
        return Enforced({link.name for link in living}, whole)

    @contextlib.contextmanager
    def _opened(self, name: str) -> Any:
        found = lib.idm_datapath_pinned(os.fsencode(self._pins.links / name))
        try:
            yield found if found >= 0 else None
        finally:
            if found >= 0:
                os.close(found)

    def upgrade(self) -> int:
        """
        Let every link and filter run the programs as they are loaded now.

        Returns:
            How many were replaced.
        """
        count = 0
        for link in self.links():
            count += self._update(link.name, link.name.partition("-")[0])
        for ifindex in self._pins.filters():
            self._set_filters(ifindex, None)
            count += len(VETH)
        return count

    def forget_dead(self) -> None:
        """Unpin links whose interface is gone; filters went with theirs when the programs are replaced."""
        for link in self.links():
            if link.is_dead:
                self.unlink(link.name)

    # ---- interfaces ----

    def attach(self, ifindex: int, netns: int | None = None) -> None:
        """
        Put both programs on the host side of a veth; nothing passes until the workload is told of.

        Raises:
            DatapathError: The kernel refuses one; then neither stays.
        """
        if ifindex in self._pins.filters():
            self._set_filters(ifindex, netns)
            return
        if self._clsact or not self._attach_links(ifindex, netns):
            self._attach_filters(ifindex, netns)

    def _attach_links(self, ifindex: int, netns: int | None) -> bool:
        """False if the kernel has no tcx. Links that were there before stay whatever happens."""
        names = [f"{program}-{ifindex}" for program in VETH.values()]
        made = [name for name in names if not (self._pins.links / name).exists()]
        try:
            for attach_type, program in VETH.items():
                self.link(f"{program}-{ifindex}", program, ifindex, attach_type, netns)
        except DatapathError:
            for name in made:
                self.unlink(name)
            if self._clsact is False or has_tcx(self._program(VETH[INGRESS])):
                raise
            return False
        return True

    def _attach_filters(self, ifindex: int, netns: int | None) -> None:
        had = any(lib.idm_datapath_clsact_query(ifindex, way, _space(netns)) > 0 for way in (0, 1))
        self._pins.add_filter(ifindex, not had)
        try:
            self._set_filters(ifindex, netns)
        except DatapathError:
            self._remove_filters(ifindex, netns)
            raise

    def _set_filters(self, ifindex: int, netns: int | None) -> None:
        for attach_type, program in VETH.items():
            egress = int(attach_type == EGRESS)
            code = lib.idm_datapath_clsact(self._program(program), ifindex, egress, _space(netns))
            if code == -errno.ENODEV:
                self._pins.remove_filter(ifindex)
                return
            if code:
                raise DatapathError(f"{program} cannot be attached to interface {ifindex}: {os.strerror(-code)}")

    def _remove_filters(self, ifindex: int, netns: int | None) -> None:
        for way in (0, 1):
            lib.idm_datapath_clsact_remove(ifindex, way, _space(netns))
        if self._pins.filters().get(ifindex):
            lib.idm_datapath_clsact_destroy(ifindex, _space(netns))
        self._pins.remove_filter(ifindex)

    def detach(self, ifindex: int, netns: int | None = None) -> None:
        """Take both programs off; the interface then forwards whatever comes."""
        for program in VETH.values():
            self.unlink(f"{program}-{ifindex}")
        if ifindex in self._pins.filters():
            self._remove_filters(ifindex, netns)

    def attached(self, netns: int | None = None) -> set[int]:
        """Interfaces that both our programs are on, as the kernel says now."""
        return self.enforced(netns).interfaces

    def is_attached(self, ifindex: int, netns: int | None = None) -> bool:
        """The same of one interface, for no more than that one costs."""
        if ifindex in self._pins.filters():
            return self._has_filters(ifindex, netns)
        return all(self.is_living(f"{program}-{ifindex}") for program in VETH.values())

    @staticmethod
    def _has_filters(ifindex: int, netns: int | None) -> bool:
        return all(lib.idm_datapath_clsact_query(ifindex, way, _space(netns)) > 0 for way in (0, 1))

    def clear(self, netns: int | None = None) -> None:
        """Everything off."""
        for name in list(self._pins.link_names()):
            self.unlink(name)
        for ifindex in self._pins.filters():
            self._remove_filters(ifindex, netns)


def has_tcx(program: int) -> bool:
    """Whether the kernel has tcx: it tells an interface that cannot be from an attach type that it does not know."""
    return bool(lib.idm_datapath_link(program, 0x7FFFFFFF, INGRESS, -1) == -errno.ENODEV)


def _hook(target: int, attach_type: int) -> int | None:
    """What the kernel calls the cgroup or namespace behind a descriptor; None: an interface, which is in the name."""
    return None if attach_type in VETH else os.fstat(target).st_ino


def _fits(link: Link, hook: int | None) -> bool:
    return not link.is_dead and hook in (None, link.target)


def _space(netns: int | None) -> int:
    return -1 if netns is None else netns


def _describe(name: str, descriptor: int) -> Link:
    info = ffi.new("struct idm_datapath_link *")
    code = lib.idm_datapath_link_info(descriptor, info)
    if code:
        raise DatapathError(f"link {name}: {os.strerror(-code)}")
    return Link(name, info.id, info.program, info.attach_type, info.ifindex, info.cgroup)
