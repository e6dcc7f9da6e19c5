# SPDX-License-Identifier: Apache-2.0
"""The kernel's part of a node that steers."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path
from types import TracebackType

from ext_authz.datapath._datapath import ffi, lib

from ext_authz.play.network import GATEWAY4, GATEWAY6, End, Space
from tests.bpf.bare import ROOT, address

_OBJECTS = ("from_workload", "to_workload", "sk_lookup", "envoy_sockets")
_TCX_IN, _TCX_OUT, _SK_LOOKUP = 46, 47, 36
_CGROUP_EGRESS, _SOCK_OPS, _SETSOCKOPT = 1, 3, 22


class Kernel:
    """Use as a context: all of it is gone afterwards, but for the mount, which `folder`'s fixture takes away."""

    def __init__(self, node: Space, folder: Path) -> None:
        folder.mkdir(mode=0o700)
        subprocess.run(["mount", "-t", "bpf", "-o", "mode=0700", "bpf", str(folder)], check=True)
        self._node, self._links = node, list[int]()
        self._error = ffi.new("struct idm_datapath_error *")
        self._all = lib.idm_datapath_create(str(folder).encode())
        log = ffi.new("char[]", 1 << 16)
        with node.inside():
            for name in _OBJECTS:
                path = str(ROOT / f"build/bpf/{name}.bpf.o").encode()
                done = lib.idm_datapath_load(self._all, path, log, 1 << 16, 0, self._error)
                assert not done, f"{name}: {done} {ffi.string(log).decode()[-3000:]}"
            self._check(lib.idm_datapath_recover(self._all, self._error))
        self.locals(())

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.detach()
        lib.idm_datapath_destroy(self._all)

    def _check(self, done: int) -> None:
        assert not done, f"{done} {ffi.string(self._error.message).decode()}"

    def config(self, port: int, cgroup: int, flags: int = 2) -> None:
        self.update("config", struct.pack("=I", 0), struct.pack("=QHHII12x", cgroup, port, 0, flags, 1))

    def update(self, name: str, key: bytes, value: bytes) -> None:
        self._check(lib.idm_datapath_update(self._all, name.encode(), ffi.from_buffer(key), ffi.from_buffer(value)))

    def delete(self, name: str, key: bytes) -> None:
        lib.idm_datapath_delete(self._all, name.encode(), ffi.from_buffer(key))

    def read(self, name: str, key: bytes, value_size: int) -> bytes:
        value = ffi.new("char[]", value_size)
        self._check(lib.idm_datapath_lookup(self._all, name.encode(), ffi.from_buffer(key), value))
        return bytes(ffi.buffer(value))

    def rows(self, name: str, key_size: int, value_size: int) -> dict[bytes, bytes]:
        keys, values = ffi.new("char[]", key_size << 10), ffi.new("char[]", value_size << 10)
        cursor, found, first = ffi.new("char[]", key_size + 8), dict[bytes, bytes](), 1
        while (count := lib.idm_datapath_read(self._all, name.encode(), first, cursor, keys, values, 1 << 10)) >= 0:
            first = 0
            for row in range(count):
                key = bytes(ffi.buffer(keys, key_size << 10)[row * key_size : (row + 1) * key_size])
                found[key] = bytes(ffi.buffer(values, value_size << 10)[row * value_size : (row + 1) * value_size])
        return found

    def locals(self, addresses: tuple[str, ...]) -> None:
        data = b"".join(address(one) for one in (*addresses, GATEWAY4, GATEWAY6))
        self._check(lib.idm_datapath_locals(self._all, ffi.from_buffer(data), len(data) // 16, self._error))

    def publish(self, snapshot: bytes) -> None:
        made, error = ffi.new("struct idm_snapshot **"), ffi.new("struct idm_error *")
        report = ffi.new("struct idm_datapath_report *")
        assert not lib.idm_snapshot_load(ffi.from_buffer(snapshot), len(snapshot), ffi.NULL, made, error)
        try:
            self._check(lib.idm_datapath_publish(self._all, made[0], report, self._error))
        finally:
            lib.idm_snapshot_unref(made[0])

    def attach(self, end: End) -> None:
        data, mac = b"".join(map(address, end.addresses)), bytes.fromhex(end.mac.replace(":", ""))
        self._check(
            lib.idm_datapath_workload(
                self._all, end.ifindex, end.peer_ifindex, mac, ffi.from_buffer(data), len(data) // 16, self._error
            )
        )
        with self._node.inside():
            self._link("from_workload", end.ifindex, _TCX_IN)
            self._link("to_workload", end.ifindex, _TCX_OUT)

    def detach(self) -> None:
        """Take all programs off their hooks."""
        while self._links:
            os.close(self._links.pop())

    def steer(self, envoy: Path, guard: Path) -> None:
        """sk_lookup at the node, the programs of Envoy's sockets at their cgroups."""
        with self._node.inside():
            self._link_folder("choose_listener", "/proc/thread-self/ns/net", _SK_LOOKUP)
        self._link_folder("envoy_sockets", str(envoy), _SOCK_OPS)
        self._link_folder("keep_marks", str(guard), _SETSOCKOPT)
        self._link_folder("keep_packets", str(guard), _CGROUP_EGRESS)

    def empty_maps(self, folder: Path) -> None:
        """Maps of the same shapes, pinned there, that no program writes."""
        other = lib.idm_datapath_create(str(folder).encode())
        path = str(ROOT / "build/bpf/sk_lookup.bpf.o").encode()
        self._check(lib.idm_datapath_load(other, path, ffi.NULL, 0, 0, self._error))
        lib.idm_datapath_destroy(other)

    def _link_folder(self, program: str, path: str, kind: int) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._link(program, descriptor, kind)
        finally:
            os.close(descriptor)

    def _link(self, program: str, target: int, kind: int) -> None:
        made = lib.idm_datapath_link(lib.idm_datapath_program(self._all, program.encode()), target, kind, -1)
        assert made >= 0, f"{program}: {made}"
        self._links.append(made)
