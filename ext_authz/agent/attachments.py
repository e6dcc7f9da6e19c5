# SPDX-License-Identifier: Apache-2.0
"""
Endpoints attached to this host with `idmesh endpoint attach`: kept in STATE/attached, so that they outlive the node.

One file each, replaced whole. An attachment says where the workload is (the host side of its veth, or a cgroup) and,
if it brought labels, who it is; then it counts for the compiler like a Pod. Without labels a Pod of the sources says
who it is, and the attachment only where.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from ext_authz.files import replace_file
from ext_authz.model.context import is_computed
from ext_authz.model.selector import bad_key, bad_value, is_subdomain

_FORMAT = 1
_TICK_NS = 1_000_000_000
_K8S = "k8s:"
# Stands for a workload that sends from the host's own addresses; nobody routes there.
_STAND_IN = ipaddress.ip_network("fd1d:6d65:7368::/96")


class AttachError(ValueError):
    """An endpoint cannot be attached as asked; nothing was changed."""


class Stage(StrEnum):
    """How far it is. Who dies between two steps leaves a stage from which the next node goes on."""

    COMING = "coming"  # its programs may not be there yet: it has no identity
    ATTACHED = "attached"
    LEAVING = "leaving"  # its identity is taken away, its programs may be there still


@dataclass(frozen=True, slots=True)
class Attachment:
    """
    One attached endpoint.

    labels: None where the sources say who it is. number: stable for as long as it is attached, from 1.
    A veth has ifindex (the host side), peer_ifindex, mac ("" for any), interface and netns ("DEV:INO" of the
    namespace), and service_cgroup where its cgroup is known, so that Services' addresses lead to backends. A workload
    without a namespace has cgroup, its path, and cgroup_id. boot: the start of the host in which these numbers count.
    """

    namespace: str
    name: str
    addresses: tuple[str, ...]
    number: int
    labels: Mapping[str, str] | None = None
    ifindex: int = 0
    peer_ifindex: int = 0
    mac: str = ""
    interface: str = ""
    netns: str = ""
    cgroup: str = ""
    cgroup_id: int = 0
    service_cgroup: str = ""
    attached: float = 0.0
    boot: str = ""
    stage: Stage = Stage.ATTACHED

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"cgroup {self.cgroup}" if self.cgroup else f"interface {self.ifindex} ({self.interface} inside)"

    def record(self) -> dict[str, Any]:
        found = asdict(self)
        return {"format": _FORMAT, **found, "addresses": list(self.addresses)}

    def document(self, node: str | None) -> bytes:
        """The Pod that it counts as; empty where the sources have one, or while it comes or leaves."""
        if self.labels is None or self.stage is not Stage.ATTACHED:
            return b""
        metadata = {"namespace": self.namespace, "name": self.name, "labels": dict(self.labels)}
        status = {"podIPs": [{"ip": address} for address in self.addresses]}
        spec = {"nodeName": node} if node is not None else {}
        return json.dumps(
            {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status}
        ).encode()


@dataclass(frozen=True, slots=True)
class AttachmentFile:
    """What one file of the folder holds; `problem`: why it is nothing, and then `attachment` is None."""

    path: str
    attachment: Attachment | None
    problem: str = ""


class AttachmentStore:
    """All of them. One writer, the agent; the compiling process and the data path read, a file only when it is new."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: tuple[int, ...] = ()
        self._files: list[AttachmentFile] = []
        self._read: dict[str, tuple[tuple[int, ...], AttachmentFile]] = {}

    def any(self) -> bool:
        """True if there is one, readable or not. Cheap: for whoever asks all the time."""
        try:
            with os.scandir(self.folder) as entries:
                return any(one.name.endswith(".json") and not one.name.startswith(".") for one in entries)
        except OSError:
            return False

    def files(self) -> list[AttachmentFile]:
        """By rising number. Never raises for what is damaged."""
        begun, seen = time.time_ns(), _signature(self.folder)
        if not seen or seen != self._seen:
            self._files = sorted(self._look(begun), key=_rank)
            is_whole = not any(file.problem for file in self._files)  # what could not be read may be read the next time
            self._seen = seen if is_whole and _is_old(seen, begun) else ()
        return list(self._files)

    def _look(self, begun: int) -> list[AttachmentFile]:
        """Every file is replaced, never written to: one of the same signature is the same."""
        found: dict[str, tuple[tuple[int, ...], AttachmentFile]] = {}
        try:
            paths = [path for path in self.folder.glob("*.json") if not path.name.startswith(".")]
        except OSError:
            paths = []
        for path in paths:
            seen = _signature(path)
            known = self._read.get(path.name)
            made = known[1] if known and seen and known[0] == seen else _read(path)
            found[path.name] = (seen if not made.problem and _is_old(seen, begun) else (), made)
        self._read = found
        return [file for _, file in found.values()]

    def all(self) -> list[Attachment]:
        return [file.attachment for file in self.files() if file.attachment is not None]

    def find(self, key: str) -> Attachment | None:
        return next((found for found in self.all() if found.key == key), None)

    def free_number(self) -> int:
        """
        A number that no attachment has: whose it is, that one's programs are put elsewhere.

        Raises:
            AttachError: An attachment cannot be read, and may have any number, place and address.
        """
        files = self.files()
        if problem := next((file.problem for file in files if file.problem), ""):
            raise AttachError(f"nothing can be attached beside {problem}, in {self.folder}")
        return max((file.attachment.number for file in files if file.attachment), default=0) + 1

    def put(self, attachment: Attachment) -> None:
        """
        Keep it, in the place of an earlier one of that name.

        Raises:
            OSError: It could not be kept.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(self._path(attachment.key), json.dumps(attachment.record()).encode())

    def remove(self, key: str) -> bool:
        """
        Forget it. False if there is none of that name.

        Raises:
            OSError: It is still there.
        """
        path = self._path(key)
        if not path.exists():
            return False
        path.unlink()
        return True

    def path(self, key: str) -> str:
        """The file that keeps it."""
        return str(self._path(key))

    def _path(self, key: str) -> Path:
        return self.folder / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.json"


def stand_in(number: int) -> str:
    """The address under which the attachment of this number is known, if it has none of its own."""
    return str(_STAND_IN[number])


def is_stand_in(address: str) -> bool:
    return ipaddress.ip_address(address) in _STAND_IN


def check_name(namespace: str, name: str) -> None:
    """
    Raises:
        AttachError: Not names as Kubernetes has them.
    """
    for what, text in (("namespace", namespace), ("name", name)):
        if not is_subdomain(text):
            raise AttachError(f"{what} {text!r}: must be a lower-case DNS name of at most 253 characters")


def parse_labels(texts: Iterable[str]) -> dict[str, str]:
    """
    Labels as the command line gives them: KEY=VALUE, several of them with commas between, also as k8s:KEY=VALUE.

    Raises:
        AttachError: One is no label, is reserved, or claims a source that is not ours to give.
    """
    found: dict[str, str] = {}
    for text in _split(texts):
        key, _, value = text.removeprefix(_K8S).partition("=")
        _check_label(text, key, value)
        if found.setdefault(key, value) != value:
            raise AttachError(f"label {key}: is given twice")
    return found


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """
    The same of labels that are already apart.

    Raises:
        AttachError: As parse_labels.
    """
    for key, value in labels.items():
        _check_label(f"{key}={value}", key, value)
    return dict(labels)


def _split(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from filter(None, (part.strip() for part in text.split(",")))


def _check_label(text: str, key: str, value: str) -> None:
    """Labels decide identity: what Cilium computes or reserves never comes from whoever attaches."""
    source, colon, _ = key.partition(":")
    if colon:
        why = "reserved labels are given by the node alone" if source == "reserved" else "only k8s: may be named"
        raise AttachError(f"label {text!r}: source {source!r}: {why}")
    if key.startswith("$"):
        raise AttachError(f"label {text!r}: reserved labels are given by the node alone")
    if is_computed(key):
        raise AttachError(f"label {text!r}: is computed (see --namespace)")
    reason = bad_key(key) or bad_value(value)
    if reason:
        raise AttachError(f"label {text!r}: {reason}")


def check_addresses(texts: Iterable[str]) -> tuple[str, ...]:
    """
    Addresses in their canonical form, each once.

    Raises:
        AttachError: One is none, or can be no workload's own.
    """
    found: dict[str, None] = {}
    for text in texts:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            raise AttachError(f"{text!r} is no address") from None
        if getattr(address, "scope_id", None) is not None or address.is_link_local:
            raise AttachError(f"{text}: is a link-local address, which names nobody")
        mapped = getattr(address, "ipv4_mapped", None)
        if address.is_loopback or address.is_multicast or address.is_unspecified or mapped is not None:
            raise AttachError(f"{text}: can be no workload's own address")
        found[str(address)] = None
    return tuple(found)


def check_free(attachment: Attachment, others: Iterable[Attachment]) -> None:
    """
    Nothing of it may be somebody else's.

    Raises:
        AttachError: Another endpoint has the interface, the cgroup or an address.
    """
    for other in others:
        if other.key == attachment.key:
            continue
        if attachment.ifindex and attachment.ifindex == other.ifindex:
            raise AttachError(f"interface {attachment.ifindex}: {other.key} is attached there")
        if attachment.cgroup_id and attachment.cgroup_id == other.cgroup_id:
            raise AttachError(f"cgroup {attachment.cgroup}: {other.key} is attached there")
        shared = set(attachment.addresses) & set(other.addresses)
        if shared:
            raise AttachError(f"{min(shared)}: is an address of {other.key}")


def read_record(record: Mapping[str, Any]) -> Attachment:
    """
    What `record` gave.

    Raises:
        ValueError, KeyError, TypeError: It is none.
    """
    held = dict(record)
    if held.pop("format") != _FORMAT:
        raise ValueError("another format")
    made = Attachment(**held)
    check_name(made.namespace, made.name)
    return replace(
        made,
        addresses=check_addresses(made.addresses),
        labels=None if made.labels is None else check_labels(made.labels),
        number=int(made.number),
        stage=Stage(made.stage),
    )


def _signature(path: Path) -> tuple[int, ...]:
    """Changes with what lies there; empty: nothing does. The time of the change comes first."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size


def _is_old(signature: tuple[int, ...], now_ns: int) -> bool:
    """Within a tick of the clock two changes have one time: what is younger may change unseen."""
    return bool(signature) and now_ns - signature[0] > _TICK_NS


def _rank(file: AttachmentFile) -> tuple[int, str]:
    return file.attachment.number if file.attachment else 0, file.path


def _read(path: Path) -> AttachmentFile:
    try:
        return AttachmentFile(str(path), read_record(json.loads(path.read_bytes())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return AttachmentFile(str(path), None, f"an attachment that cannot be read ({os.path.basename(path)}: {error})")
