# SPDX-License-Identifier: Apache-2.0
"""
Where a workload is: the host's side of the veth in its namespace, or its cgroup. Looked up when it is attached, and
again when the node starts: an interface number or a namespace may have come to mean another one.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ext_authz.agent import cgroups
from ext_authz.agent.attachments import AttachError, Attachment
from ext_authz.agent.netlink import Link, Netlink, in_namespace
from ext_authz.boot import boot_id

_NAMED = Path("/run/netns")


@dataclass(frozen=True, slots=True)
class Veth:
    """One veth pair with its far side in the workload's namespace."""

    ifindex: int
    peer_ifindex: int
    mac: str
    interface: str
    netns: str
    addresses: tuple[str, ...]


def netns_path(text: str) -> str:
    """What the user calls a namespace, as a path: a name of `ip netns`, or a path already."""
    return text if "/" in text else str(_NAMED / text)


def find_veth(netns: str, interface: str) -> Veth:
    """
    The veth of an interface in a namespace given by path.

    Raises:
        AttachError: There is none, or it does not lead here.
    """
    with _opened(netns) as descriptor:
        found = os.fstat(descriptor)
        home = os.stat("/proc/thread-self/ns/net")
        if os.path.samestat(found, home):
            raise AttachError(f"{netns}: is the host's own namespace, not a workload's")
        inner, addresses = in_namespace(descriptor, lambda: _inside(interface))
        if inner is None:
            raise AttachError(f"{netns}: has no interface {interface}")
        with Netlink() as here:
            outer = here.link(ifindex=inner.link) if inner.kind == "veth" and inner.link else None
            if not _pair(here, descriptor, outer, inner):
                raise AttachError(f"{netns}: {interface} is no veth whose other side is on this host")
        assert outer is not None
        identity = f"{found.st_dev}:{found.st_ino}"
        return Veth(outer.ifindex, inner.ifindex, inner.mac, interface, identity, addresses)


def _inside(interface: str) -> tuple[Link | None, tuple[str, ...]]:
    with Netlink() as there:
        link = there.link(name=interface)
        return link, there.addresses(link.ifindex) if link else ()


def _pair(here: Netlink, descriptor: int, outer: Link | None, inner: Link) -> bool:
    """Both numbers may by chance fit two sides that do not belong together; the namespace's number does not."""
    if outer is None or outer.kind != "veth" or outer.link != inner.ifindex or outer.nsid is None:
        return False
    return here.nsid(descriptor) == outer.nsid


@contextlib.contextmanager
def _opened(netns: str) -> Iterator[int]:
    try:
        descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise AttachError(f"{netns}: {error.strerror}") from None
    try:
        # Only a file of nsfs can be entered; setns says so, too, but not as kindly.
        if os.fstat(descriptor).st_dev != os.stat("/proc/thread-self/ns/net").st_dev:
            raise AttachError(f"{netns}: is no network namespace")
        yield descriptor
    finally:
        os.close(descriptor)


def find_cgroup(path: str) -> tuple[str, int]:
    """
    Path and id of a cgroup (version 2).

    Raises:
        AttachError: It is none, or the root, in which everything is.
    """
    place = os.path.realpath(path)
    try:
        found = os.stat(place)
    except OSError as error:
        raise AttachError(f"{path}: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode) or not os.path.exists(os.path.join(place, "cgroup.procs")):
        raise AttachError(f"{path}: is no cgroup of version 2")
    if not os.path.exists(os.path.join(place, "cgroup.type")):
        raise AttachError(f"{path}: is the root of all cgroups, the host itself is in it")
    mounted = cgroups.mounted()
    if mounted and (mounted / _cgroup_path("self").lstrip("/")).is_relative_to(place):
        raise AttachError(f"{path}: this node itself runs in it")
    return place, found.st_ino


def cgroup_of(pid: int) -> str:
    """
    The cgroup of a process, if it is the workload's own: not the root, not the one that we run in, and none with
    processes of another network namespace, as the session is that somebody started it from.
    """
    mounted = cgroups.mounted()
    theirs, ours = _cgroup_path(str(pid)), _cgroup_path("self")
    if mounted is None or not theirs or theirs == "/" or ours == theirs or ours.startswith(f"{theirs}/"):
        return ""
    found = mounted / theirs.lstrip("/")
    return str(found) if (found / "cgroup.procs").exists() and _is_of_one(found, pid) else ""


def _is_of_one(cgroup: Path, pid: int) -> bool:
    """Every process of the cgroup is in the network namespace of this one."""
    try:
        home = os.stat(f"/proc/{pid}/ns/net")
    except OSError:
        return False
    for other in cgroups.members(cgroup):
        with contextlib.suppress(OSError):  # it has ended
            if not os.path.samestat(os.stat(f"/proc/{other}/ns/net"), home):
                return False
    return True


def _cgroup_path(process: str) -> str:
    try:
        lines = Path(f"/proc/{process}/cgroup").read_text().splitlines()
    except OSError:
        return ""
    return next((line[3:] for line in lines if line.startswith("0::")), "")


def gone(attachment: Attachment) -> str:
    """Why the workload of an attachment is not there any more; empty: it is."""
    if attachment.boot and attachment.boot != boot_id():
        return "the host was started anew since"
    if attachment.cgroup:
        try:
            return "" if find_cgroup(attachment.cgroup)[1] == attachment.cgroup_id else "the cgroup is another one now"
        except AttachError as error:
            return str(error)
    with Netlink() as here:
        link = here.link(ifindex=attachment.ifindex)
    if link is None:
        return f"interface {attachment.ifindex} is gone"
    if link.kind != "veth" or link.link != attachment.peer_ifindex:
        return f"interface {attachment.ifindex} is another one now"
    return ""
