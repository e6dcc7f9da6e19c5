# SPDX-License-Identifier: Apache-2.0
"""
Programs and rows of cgroups: workloads that have no namespace, and Services' addresses for those that have one.

A cgroup's programs hold for everything below it, and until it has a row nothing of it passes. The row names its
identity; where the live tables say another one, nothing passes either, so the two need not change at one moment.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from ext_authz.agent.attachments import Attachment, is_stand_in
from ext_authz.agent.cgroups import opened
from ext_authz.agent.datapath_places import own_addresses
from ext_authz.datapath import Datapath, DatapathError
from ext_authz.datapath._datapath import lib
from ext_authz.datapath.addresses import packed
from ext_authz.datapath.layout import row
from ext_authz.datapath.syscall import AttachType
from ext_authz.engine.engine import Engine

_SOCKETS = (
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
)
_WORKLOAD = ("ingress", "egress", "create", "opened", "bind4", "bind6", *_SOCKETS)
# Hooks that the kernel calls otherwise than we.
_ATTACH_TYPES = {
    "ingress": AttachType.CGROUP_INGRESS,
    "egress": AttachType.CGROUP_EGRESS,
    "create": AttachType.SOCKET_CREATE,
    "opened": AttachType.SOCK_OPS,
}


class Cgroups:
    """Of one data path."""

    def __init__(self, kernel: Datapath) -> None:
        self._kernel = kernel

    def attach(self, attachment: Attachment) -> None:
        """
        Raises:
            DatapathError, OSError: The programs are not all on it. Then none is, unless some were before: what they
                judge must not go on unjudged.
        """
        had = any(self._kernel.is_living(name) for name in self.names(attachment))
        try:
            for hook, folder in _hooks(attachment):
                with opened(folder) as descriptor:
                    self._kernel.link(_link(hook, attachment), hook, descriptor, _attach_type(hook))
        except (DatapathError, OSError):
            if not had:
                self.detach(attachment)
            raise

    @staticmethod
    def names(attachment: Attachment) -> set[str]:
        """Links that hold its programs."""
        return {_link(hook, attachment) for hook, _ in _hooks(attachment)}

    def detach(self, attachment: Attachment) -> None:
        if attachment.cgroup:
            self._kernel.delete("workloads", struct.pack("=Q", attachment.cgroup_id))
            self._kernel.grace()
        for hook, _ in _hooks(attachment):
            self._kernel.unlink(_link(hook, attachment))

    def tell(self, attachments: Iterable[Attachment], engine: Engine) -> None:
        """
        Who the workloads are in a revision.

        Raises:
            DatapathError: A row is not written: that workload is denied. All others are told of.
        """
        failures = []
        for attachment in attachments:
            if not attachment.cgroup or not attachment.addresses:
                continue
            try:
                self._write(struct.pack("=Q", attachment.cgroup_id), _row(attachment, engine))
            except DatapathError as error:
                failures.append(f"{attachment.key}: {error}")
        if failures:
            raise DatapathError(failures[0])

    def _write(self, key: bytes, value: bytes) -> None:
        """
        Only what changes: the kernel hands the memory of a row that was replaced to the next one at once, and a program
        that still reads it would see somebody else's.
        """
        try:
            if self._kernel.lookup("workloads", key) == value:
                return
        except KeyError:
            pass
        self._kernel.update("workloads", key, value)
        self._kernel.grace()


def _hooks(attachment: Attachment) -> Iterator[tuple[str, Path]]:
    """Programs and the cgroup that each hangs on."""
    if attachment.cgroup:
        for hook in _WORKLOAD:
            yield f"workload_{hook}", Path(attachment.cgroup)
    elif attachment.service_cgroup:
        for hook in _SOCKETS:
            yield hook, Path(attachment.service_cgroup)


def _attach_type(program: str) -> AttachType:
    hook = program.removeprefix("workload_")
    return _ATTACH_TYPES[hook] if hook in _ATTACH_TYPES else AttachType[hook.upper()]


def _link(program: str, attachment: Attachment) -> str:
    return f"{program}-{attachment.number}"


def _row(attachment: Attachment, engine: Engine) -> bytes:
    # Of an address that is another's by now it must not have the identity: 0 is nobody's, and nothing passes.
    own = own_addresses(attachment, engine)
    identity = engine.resolve(own[0])[0] if own else 0
    known: dict[int, str] = {}
    for address in own:
        known.setdefault(ipaddress.ip_address(address).version, address)
    return row("idm_workload").pack(
        identity=identity,
        endpoint=attachment.number,
        address4_bytes=packed(known[4]) if 4 in known else bytes(16),
        address6_bytes=packed(known[6]) if 6 in known else bytes(16),
        flags=lib.IDM_WORKLOAD_SHARED if is_stand_in(attachment.addresses[0]) else 0,
    )
