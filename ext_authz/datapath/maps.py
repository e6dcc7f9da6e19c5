# SPDX-License-Identifier: Apache-2.0
"""One set of maps and the programs over it: the loader in C, with errors that say what to do."""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ext_authz.datapath._datapath import ffi, lib
from ext_authz.datapath.errors import DatapathError, MapFull, Refused
from ext_authz.datapath.layout import row
from ext_authz.datapath.objects import objects_in
from ext_authz.datapath.results import LiveState, Report, Run
from ext_authz.datapath.rows import Rows
from ext_authz.engine.layout import TableKind

if TYPE_CHECKING:
    from ext_authz.engine import Engine

# Its bytes, the path of its file, or an Engine: the binding has an engine of its own, so that one is packed again.
Snapshot: TypeAlias = "bytes | bytearray | memoryview | str | os.PathLike[str] | Engine"

_LOG_SIZE = 4 << 20
# Rows for a node of ordinary size; what is not named keeps the size that its object gives it.
SIZES = {
    "endpoints": 131072,
    "prefixes": 131072,
    "sides": 8192,
    "peers": 131072,
    "spans": 262144,
    "connections": 131072,
}
_SLOTTED = ("endpoints", "prefixes", "sides", "peers")
_CONTEXT_SIZE = {"tc": 192, "sk_lookup": 72}
# Offsets in struct __sk_buff.
_MARK, _INGRESS_IFINDEX, _IFINDEX = 8, 36, 40


class MapSet(Rows):
    """Maps pinned in one folder, and what is loaded over them."""

    def __init__(self, folder: Path, sizes: Mapping[str, int]) -> None:
        super().__init__(ffi.gc(lib.idm_datapath_create(os.fsencode(folder)), lib.idm_datapath_destroy))
        self.folder = folder
        self.log = ""
        self._previous: Any = ffi.NULL  # the snapshot before, whose tables the next one may share
        for name, count in (SIZES | dict(sizes)).items():
            for each in (f"{name}_0", f"{name}_1") if name in _SLOTTED else (name,):
                lib.idm_datapath_size(self._handle, each.encode(), count)

    @classmethod
    def open(cls, folder: Path, objects: Path, sizes: Mapping[str, int], verbose: bool) -> MapSet | None:
        """
        Load all objects over the maps in a folder; missing ones are made.

        Returns:
            None if the maps there are of another layout or size: they are not to be used.

        Raises:
            Refused: The kernel refuses a program.
        """
        made = cls(folder, sizes)
        try:
            made.load(objects, verbose)
            error = ffi.new("struct idm_datapath_error *")
            code = lib.idm_datapath_recover(made._handle, error)
        except _OtherShape:
            made.close()
            return None
        if code == -errno.ESTALE:
            made.close()
            return None
        if code:
            raise DatapathError(_text(error))
        return made

    def load(self, objects: Path, verbose: bool) -> None:
        """
        Load objects; programs of names that are there already are replaced.

        Raises:
            Refused: With the verifier's log.
        """
        log, error = ffi.new("char[]", _LOG_SIZE), ffi.new("struct idm_datapath_error *")
        self.log = ""
        for path in objects_in(objects):
            log[0] = b"\0"
            code = lib.idm_datapath_load(self._handle, os.fsencode(path), log, _LOG_SIZE, int(verbose), error)
            said = ffi.string(log).decode("utf-8", "backslashreplace")
            self.log += said
            if code == -errno.EEXIST:
                raise _OtherShape(_text(error))
            if code:
                raise Refused(_text(error) + _hint(said, verbose), said)

    def close(self) -> None:
        if self._previous != ffi.NULL:
            lib.idm_snapshot_unref(self._previous)
            self._previous = ffi.NULL
        super().close()

    def program(self, name: str) -> int:
        """
        Raises:
            DatapathError: No object has it.
        """
        found: int = lib.idm_datapath_program(self._handle, name.encode())
        if found < 0:
            raise DatapathError(f"program {name}: in none of the objects")
        return found

    def copy(self, name: str, pin: Path) -> None:
        """Rows of another set's map into ours; what cannot be read stays behind."""
        self._with_pin(pin, lambda found: lib.idm_datapath_copy(self._handle, name.encode(), found))

    def adopt(self, pin: Path) -> None:
        """Where workloads are, as another set's endpoints say."""
        self._with_pin(pin, lambda found: lib.idm_datapath_adopt(self._handle, found))

    def take_places(self, other: MapSet) -> None:
        """Where workloads are whose addresses no revision had yet: only the other set itself knows."""
        if code := lib.idm_datapath_take_places(self._handle, other._handle):
            raise DatapathError(f"places of workloads: {os.strerror(-code)}")

    @staticmethod
    def _with_pin(pin: Path, call: Any) -> None:
        found = lib.idm_datapath_pinned(os.fsencode(pin))
        if found >= 0:
            try:
                call(found)
            finally:
                os.close(found)

    # ---- revisions ----

    def publish(self, snapshot: Any) -> Report | None:
        """
        Returns:
            None if the maps belong to another identity domain.

        Raises:
            MapFull: It does not fit.
            DatapathError: The snapshot is damaged, or the kernel refuses.
        """
        loaded = self._load_snapshot(snapshot)
        report, error = ffi.new("struct idm_datapath_report *"), ffi.new("struct idm_datapath_error *")
        code = lib.idm_datapath_publish(self._handle, loaded, report, error)
        if code:
            lib.idm_snapshot_unref(loaded)
        if code == -errno.ESTALE:
            return None
        if code == -errno.ENOSPC:
            raise MapFull(_text(error))
        if code:
            raise DatapathError(_text(error))
        if self._previous != ffi.NULL:
            lib.idm_snapshot_unref(self._previous)
        self._previous = loaded
        return Report(*(getattr(report, name) for name in Report.__slots__))

    def _load_snapshot(self, snapshot: Any) -> Any:
        if isinstance(snapshot, (str, os.PathLike)):
            snapshot = Path(snapshot).read_bytes()
        elif not isinstance(snapshot, (bytes, bytearray, memoryview)):
            snapshot = _bytes_of(snapshot)
        made, error = ffi.new("struct idm_snapshot **"), ffi.new("struct idm_error *")
        data = ffi.from_buffer(snapshot)
        if lib.idm_snapshot_load(data, len(data), self._previous, made, error):
            raise DatapathError(f"not a snapshot that can be loaded: {_text(error) or 'no memory'}")
        return made[0]

    def grace(self) -> None:
        if code := lib.idm_datapath_grace(self._handle):
            raise DatapathError(f"waiting for running programs: {os.strerror(-code)}")

    def state(self) -> LiveState:
        packer = row("idm_state")
        value = ffi.new("char[]", packer.size)
        lib.idm_datapath_state(self._handle, value, packer.size)
        held = packer.unpack_from(ffi.buffer(value))
        slot = held["generation"] & 1
        return LiveState(
            held["generation"], held["layout"], held["domain"], held[f"revision_{slot}"], bool(held[f"closed_{slot}"])
        )

    # ---- this host ----

    def workload(self, ifindex: int, peer_ifindex: int, mac: bytes | None, addresses: Sequence[bytes]) -> None:
        error = ffi.new("struct idm_datapath_error *")
        hardware = ffi.NULL if mac is None else ffi.from_buffer(mac)
        joined = b"".join(addresses)
        code = lib.idm_datapath_workload(
            self._handle, ifindex, peer_ifindex, hardware, ffi.from_buffer(joined), len(addresses), error
        )
        if code == -errno.ENOSPC:
            raise MapFull(_text(error))
        if code:
            raise DatapathError(_text(error))

    def forget_workload(self, ifindex: int) -> None:
        if code := lib.idm_datapath_workload_remove(self._handle, ifindex):
            raise DatapathError(f"interface {ifindex}: {os.strerror(-code)}")

    def set_locals(self, addresses: Sequence[bytes]) -> None:
        error = ffi.new("struct idm_datapath_error *")
        unique = sorted(set(addresses))
        code = lib.idm_datapath_locals(self._handle, ffi.from_buffer(b"".join(unique)), len(unique), error)
        if code == -errno.ENOSPC:
            raise MapFull(_text(error))
        if code:
            raise DatapathError(_text(error) or os.strerror(-code))

    # ---- tests ----

    def run(
        self,
        program: str,
        packet: bytes,
        *,
        ifindex: int = 0,
        ingress_ifindex: int = 0,
        mark: int = 0,
        context: bytes | None = None,
        repeat: int = 1,
        netns: int | None = None,
    ) -> Run:
        """
        BPF_PROG_TEST_RUN.

        Args:
            ifindex: Interface that the packet is at, in the calling thread's namespace or netns.
            context: The whole context instead (72 bytes for sk_lookup, which takes no packet).

        Raises:
            DatapathError: The kernel refuses, as it does for kinds that cannot be run so.
        """
        request, room = ffi.new("struct idm_datapath_run *"), len(packet) + 512
        held = bytearray(context if context is not None else _CONTEXT_SIZE["tc"])
        if context is None:
            for offset, value in ((_MARK, mark), (_INGRESS_IFINDEX, ingress_ifindex), (_IFINDEX, ifindex)):
                struct.pack_into("=I", held, offset, value)
        data, out = ffi.from_buffer(packet) if packet else ffi.NULL, ffi.new("char[]", room)
        request.repeat, request.size_out, request.context_size = repeat, room, len(held)
        code = lib.idm_datapath_run(
            self.program(program),
            data,
            len(packet),
            out if packet else ffi.NULL,
            ffi.from_buffer(held),
            request,
            -1 if netns is None else netns,
        )
        if code:
            raise DatapathError(f"program {program} cannot be run: {os.strerror(-code)}")
        answer = int(ffi.cast("int32_t", request.answer))
        return Run(answer, bytes(ffi.buffer(out, request.size_out)), bytes(held), request.duration_ns)


def _bytes_of(engine: Engine) -> bytes:
    from ext_authz.compiler.assemble import Table, pack_snapshot, table_digest

    tables = []
    for kind in TableKind:
        data = bytes(engine.table(kind))
        tables.append(Table(int(kind), data, zlib.crc32(data), table_digest(data), engine.revision))
    return pack_snapshot(tables, engine.domain, engine.revision)


class _OtherShape(DatapathError):
    """A pinned map has another shape than the object wants."""


def _text(error: Any) -> str:
    return ffi.string(error.message).decode("utf-8", "backslashreplace")


def _hint(log: str, verbose: bool) -> str:
    """The end of the log: the verifier says there what it holds against a program."""
    lines = [line for line in log.splitlines() if line.strip()]
    if verbose or not lines:
        return ""
    return "\n" + "\n".join(lines[-8:]) + "\n(the whole log: --verbose)"
