# SPDX-License-Identifier: Apache-2.0
"""
The data path of one host: objects in the kernel, one set of maps in force, programs on their hooks.

All of it outlives the process, and the next one takes it up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ext_authz.datapath.addresses import packed
from ext_authz.datapath.errors import DatapathError
from ext_authz.datapath.hooks import Hooks
from ext_authz.datapath.layout import row
from ext_authz.datapath.lock import Lock
from ext_authz.datapath.maps import MapSet, Snapshot
from ext_authz.datapath.mount import Mount, close_mount, is_private, kind_of, open_mount
from ext_authz.datapath.objects import check, objects_in
from ext_authz.datapath.results import Connection, Counter, Enforced, LiveState, MapInfo, Report, Run
from ext_authz.datapath.sets import Pins
from ext_authz.datapath.succession import Succession

# Objects of a wheel, and of a source tree.
_FOLDERS = (Path(__file__).parent / "objects", Path(__file__).parents[2] / "build/bpf")
HOST_IDENTITY = 1


def default_objects() -> Path:
    """Where our objects are; the first of the places if they are nowhere."""
    return next((folder for folder in _FOLDERS if any(folder.glob("*.bpf.o"))), _FOLDERS[0])


class Datapath:
    """
    Made by open(). Attaching is done in the network namespace of the calling thread, or in `netns` (a descriptor).

    trouble: why the last publish() left the revision before in force, or empty.
    """

    def __init__(
        self,
        mount: Mount,
        lock: Lock,
        objects: Path,
        sizes: Mapping[str, int],
        verbose: bool,
        clsact: bool | None,
    ) -> None:
        self._mount = mount
        self._lock = lock
        self._pins = Pins(mount.root)
        self._pins.prepare()
        self._closed = False
        self._succession = Succession(self._pins, objects, sizes, verbose)
        self.hooks = Hooks(self._pins, self._program, clsact)
        self.hooks.forget_dead()
        if not self._succession.is_aside:
            self.hooks.upgrade()
        self.trouble = ""

    @property
    def _maps(self) -> MapSet:
        return self._succession.maps

    def _program(self, name: str) -> int:
        return self._maps.program(name)

    @classmethod
    def open(
        cls,
        root: Path,
        objects: Path | None = None,
        sizes: Mapping[str, int] | None = None,
        *,
        verbose: bool = False,
        clsact: bool | None = None,
    ) -> Datapath:
        """
        Load everything, taking up what an earlier process left in the kernel; programs in force are replaced.

        Args:
            root: The bpffs of our own; mounted if it is not.
            objects: Folder of *.bpf.o; None: those that came with this package.
            sizes: Rows by name of map; `endpoints` means both slots' maps.
            verbose: Keep the verifier's whole log for `log`.
            clsact: True: filters instead of tcx links. None: as the kernel can.

        Raises:
            DatapathError: Its subclass says what is missing; nothing was changed then.
        """
        from ext_authz.datapath import kernel

        kernel.check_privileges()
        kernel.check_btf()
        folder = objects or default_objects()
        for path in objects_in(folder):
            check(path, kernel.has)
        lock = Lock.take(root)
        was_there = kind_of(root) is not None
        try:
            made = cls(open_mount(root), lock, folder, sizes or {}, verbose, clsact)
        except BaseException:
            _undo(root, was_there)
            lock.release()
            raise
        return made

    # ---- revisions ----

    @property
    def pins(self) -> Path:
        """The folder in which the maps in force are pinned by name."""
        return self._pins.live

    @property
    def is_private(self) -> bool:
        """True if only mounts of this process's own hold the pins: what is enforced ends with them."""
        return is_private(self._mount.root)

    @property
    def log(self) -> str:
        """What libbpf and the verifier said while loading."""
        return self._maps.log

    def publish(self, snapshot: Snapshot) -> Report:
        """
        Make a snapshot what the kernel judges by.

        Args:
            snapshot: Its bytes, the path of its file, or an Engine.

        Raises:
            MapFull: It does not fit.
            DatapathError: The kernel refuses. With either the revision before stays in force.
        """
        try:
            self._mount.verify()
            report = self._succession.publish(snapshot, self.hooks.upgrade)
        except DatapathError as error:
            self.trouble = str(error)
            raise
        self.trouble = ""
        return report

    def grace(self) -> None:
        """Return once no program reads any more what was replaced in maps before the call; some milliseconds."""
        self._maps.grace()

    def upgrade(self, objects: Path | None = None) -> int:
        """
        Load programs anew and put them in the place of those in force; no packet falls between.

        Returns:
            How many hooks were given another program.
        """
        from ext_authz.datapath import kernel

        folder = objects or self._succession.objects
        for path in objects_in(folder):
            check(path, kernel.has)
        self._succession.load(folder)
        return 0 if self._succession.is_aside else self.hooks.upgrade()

    def state(self) -> LiveState:
        """What is in force."""
        return self._maps.state()

    @property
    def revision(self) -> int:
        """Of the generation in force; 0 if nothing was published yet."""
        return self._maps.state().revision

    @property
    def generation(self) -> int:
        return self._maps.state().generation

    # ---- this host ----

    def attach(
        self,
        ifindex: int,
        addresses: Iterable[str] = (),
        mac: str | bytes | None = None,
        *,
        peer_ifindex: int = 0,
        netns: int | None = None,
    ) -> None:
        """
        Enforce policy on a workload.

        Args:
            ifindex: Host side of its veth.
            addresses: All of its addresses; what it sends from others is dropped.
            mac: Its own; None: any.
            peer_ifindex: Its side of the veth, in its namespace.

        Raises:
            DatapathError: A program is not on it, or there is no room: nothing passes then.
        """
        self._mount.verify()
        if not (self._succession.is_aside and self.hooks.is_attached(ifindex, netns)):
            self.hooks.attach(ifindex, netns)
        self.place(ifindex, addresses, mac, peer_ifindex=peer_ifindex)

    def place(
        self, ifindex: int, addresses: Iterable[str], mac: str | bytes | None = None, *, peer_ifindex: int = 0
    ) -> None:
        """
        The addresses of a workload whose programs are on it: exactly these from now on; else as attach().

        Raises:
            DatapathError: There is no room.
        """
        hardware = bytes.fromhex(mac.replace(":", "")) if isinstance(mac, str) else mac
        self._maps.workload(ifindex, peer_ifindex, hardware or None, [packed(address) for address in addresses])

    def detach(self, ifindex: int, *, netns: int | None = None) -> None:
        """Forget a workload and take the programs off its interface: set that down first if it still exists."""
        self._mount.verify()
        self._maps.forget_workload(ifindex)
        self.hooks.detach(ifindex, netns)

    def link(self, name: str, program: str, target: int, attach_type: int, netns: int | None = None) -> None:
        """
        Any other hook: sk_lookup (36; a namespace's descriptor), cgroup types (a cgroup's descriptor).

        name: begins with the program's own and "-"; or is the program's own.
        """
        self._mount.verify()
        # The set at hand is empty: a program that looks into it goes to work with all the others, when it is filled.
        if not (self._succession.is_aside and self.hooks.is_on(name, target, attach_type)):
            self.hooks.link(name, program, target, attach_type, netns)

    def unlink(self, name: str) -> None:
        self.hooks.unlink(name)

    def config(self, **fields: int) -> dict[str, int]:
        """
        Set fields of the row `config` (struct idm_config): proxy_port, proxy_port6, envoy_cgroup, flags.

        Returns:
            The whole row as it is now.

        Raises:
            TypeError: No such field.
        """
        packer = row("idm_config")
        held = packer.unpack_from(self._maps.lookup("config", bytes(4)))
        if unknown := fields.keys() - held.keys():
            raise TypeError(f"config has no {', '.join(sorted(unknown))}")
        wanted = held | {"host_identity": held["host_identity"] or HOST_IDENTITY} | fields
        if wanted != held:
            self._maps.update("config", bytes(4), packer.pack(**wanted))
        return wanted

    def locals(self, addresses: Iterable[str]) -> None:
        """The host's own addresses: exactly these, broadcast addresses of its links among them."""
        self._maps.set_locals([packed(address) for address in addresses])

    def attached(self, netns: int | None = None) -> set[int]:
        """Interfaces that both our programs are on, as the kernel says now."""
        return self.hooks.attached(netns)

    def is_living(self, name: str) -> bool:
        """True if our link of this name holds its program on a hook."""
        return self.hooks.is_living(name)

    def enforced(self) -> Enforced:
        """What is on its hook, as the kernel says now."""
        return self.hooks.enforced()

    # ---- reading ----

    def maps(self) -> list[MapInfo]:
        """Every map: shape, rows where we know them, the kernel's memory."""
        return list(self._maps.infos())

    def rows(self, name: str) -> int:
        """Rows of a hash, counted by walking it."""
        return self._maps.rows(name)

    def map_fd(self, name: str) -> int:
        """A map's descriptor, borrowed."""
        return self._maps.descriptor(name)

    def program_fd(self, name: str) -> int:
        """A program's descriptor, borrowed; it changes with upgrade()."""
        return self._program(name)

    def lookup(self, name: str, key: bytes) -> bytes:
        """
        A row's value.

        Raises:
            KeyError: There is none.
        """
        return self._maps.lookup(name, key)

    def update(self, name: str, key: bytes, value: bytes) -> None:
        self._maps.update(name, key, value)

    def delete(self, name: str, key: bytes) -> None:
        self._maps.delete(name, key)

    def read(self, name: str) -> Iterator[tuple[bytes, bytes]]:
        """Rows of a hash in batches; what comes and goes meanwhile may be missed."""
        return self._maps.read(name)

    def connections(self) -> Iterator[Connection]:
        """Connections that the kernel knows; see struct idm_connection_key and idm_connection."""
        return self._maps.connections()

    def counters(self) -> tuple[list[Counter], int]:
        """Packets by drop reason and direction, none of them zero; and events that found no room."""
        return self._maps.counters()

    def events(self, timeout_ms: int = 0, limit: int = 65536) -> bytes:
        """
        Up to `limit` events out of the ring: whole struct idm_event, one after the other. On one thread at a time.

        Args:
            timeout_ms: How long to wait for the first one; -1: for ever.
        """
        return self._maps.events(limit, timeout_ms)

    def events_fd(self) -> int:
        """Readable when there are events; borrowed."""
        return self._maps.events_fd()

    def run(self, program: str, packet: bytes, **options: Any) -> Run:
        """A program on one packet, for tests; see MapSet.run()."""
        return self._maps.run(program, packet, **options)

    # ---- the end ----

    def close(self) -> None:
        """Let go; what is enforced stays enforced."""
        if not self._closed:
            self._closed = True
            self._maps.close()
            self._lock.release()

    def cleanup(self, netns: int | None = None) -> None:
        """Take everything off this host: programs, pins, the mount if it is ours. Nothing is judged any more."""
        self.hooks.clear(netns)
        self._pins.clear()
        self.close()
        with contextlib.suppress(FileNotFoundError):
            close_mount(self._mount.root)
        self._lock.remove()

    def __enter__(self) -> Datapath:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _undo(root: Path, was_there: bool) -> None:
    """After opening has failed: what was in force stays, what was begun goes."""
    pins = Pins(root)
    if not was_there:
        with contextlib.suppress(DatapathError, OSError):
            close_mount(root)
    elif pins.sets.is_dir():
        pins.drop_others(pins.live_set())
