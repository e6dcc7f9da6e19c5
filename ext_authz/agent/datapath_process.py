# SPDX-License-Identifier: Apache-2.0
"""
The process that alone speaks with the kernel: `python -m ext_authz.agent.datapath_process --state DIR`.

It loads the programs or takes over those of an earlier process, follows the snapshot, attaches and detaches, and hands
events to the observer. One line of JSON on stdin asks for something, one on stdout answers; the first one says whether
it has started. It ends with its agent. What it has put into the kernel stays, and the next process goes on from there.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ext_authz import logs
from ext_authz.agent.attachments import Attachment, AttachmentStore, Stage, read_record
from ext_authz.agent.datapath_cgroups import Cgroups
from ext_authz.agent.datapath_events import Events
from ext_authz.agent.datapath_following import Following
from ext_authz.agent.datapath_host import Addresses, Host
from ext_authz.agent.datapath_page import Page
from ext_authz.agent.datapath_services import read_services
from ext_authz.agent.datapath_sizes import parse_size
from ext_authz.agent.datapath_steering import Steering
from ext_authz.agent.places import gone
from ext_authz.datapath import Datapath, DatapathError, Refused
from ext_authz.datapath._datapath import lib
from ext_authz.datapath.routing import RoutingError
from ext_authz.datapath.service_table import ServiceTable
from ext_authz.datapath.services import Front, Wanted
from ext_authz.flow.names import Identities
from ext_authz.inotify import CREATE, MOVED_TO, Inotify
from ext_authz.logs import event
from ext_authz.state import State

log = logging.getLogger("ext_authz.agent.datapath_process")  # also where it runs as __main__

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
# Where the BPF objects are, if not where they were built or installed.
OBJECTS_VARIABLE = "IDMESH_BPF_OBJECTS"
_TICK_S = 1.0
_LOOK_S = 0.1  # without inotify
_FLAGS: int = lib.IDM_CONFIG_EVENTS_ALLOWED | lib.IDM_CONFIG_PEER_REDIRECT
FAILURES = (DatapathError, RoutingError, OSError)


class Keeper:
    """Everything the process holds."""

    def __init__(self, state: State, proxy_port: int, sizes: Mapping[str, int], verbose: bool) -> None:
        """
        Raises:
            DatapathError, RoutingError, OSError: The programs cannot be loaded, or the host cannot be set up.
        """
        self._state = state
        self._store = AttachmentStore(state.attached)
        self._port = proxy_port
        self._wanted: dict[Front, Wanted] = {}
        self.service_trouble = ""
        self.host = Host(state)
        self.addresses = Addresses()
        objects = os.environ.get(OBJECTS_VARIABLE)
        self._kernel = Datapath.open(state.datapath_pins, Path(objects) if objects else None, sizes, verbose=verbose)
        self._cgroups = Cgroups(self._kernel)
        room = next(info.max_rows for info in self._kernel.maps() if info.name == "backends")
        self._services = ServiceTable(self._kernel, room, self._kernel.grace)
        self._set_up()
        self.following = Following(state, self._publish, (DatapathError,), self._kernel.revision)
        self._reattach()
        self.look()
        self.events = Events(self._take_events, state.root / "flows.sock")
        self._page = Page(state, self._kernel)

    def _set_up(self) -> None:
        self.host.steer()
        envoy = self.host.envoy()
        self._kernel.config(proxy_port=self._port, envoy_cgroup=envoy, flags=_FLAGS)
        steering = Steering(self._kernel)
        steering.choose_listeners()
        if self.host.base and self.host.envoy_folder:
            steering.guard(self.host.base, self.host.envoy_folder)
        self._follow_addresses()

    def _follow_addresses(self) -> None:
        if self.addresses.look():
            self._kernel.locals(sorted(self.addresses.known))

    def _take_events(self, timeout_ms: int) -> bytes:
        return self._kernel.events(timeout_ms=timeout_ms)

    def _reattach(self) -> None:
        """What the store says shall be; programs of this version take the place of others without a gap."""
        for attachment in self._store.all():
            if gone(attachment) or attachment.stage is Stage.COMING:
                continue
            try:
                self._attach(attachment)
            except FAILURES as error:
                event(log, logging.ERROR, "endpoint not attached anew", name=attachment.key, reason=error)

    def _publish(self, snapshot: bytes) -> dict[str, Any]:
        return asdict(self._kernel.publish(snapshot))

    def _attach(self, attachment: Attachment) -> None:
        self._cgroups.attach(attachment)
        if attachment.cgroup:
            return
        mac = bytes.fromhex(attachment.mac.replace(":", "")) if attachment.mac else None
        self._kernel.attach(attachment.ifindex, attachment.addresses, mac, peer_ifindex=attachment.peer_ifindex)
        self.host.add(attachment)

    def _detach(self, attachment: Attachment) -> None:
        self._cgroups.detach(attachment)
        if attachment.ifindex:
            self.host.remove(attachment)
            self._kernel.detach(attachment.ifindex)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what is asked; what could not be done is said under `failure`."""
        try:
            match request["op"]:
                case "attach":
                    self._attach(read_record(request["attachment"]))
                case "detach":
                    self._detach(read_record(request["attachment"]))
                case "publish":
                    self._reach(int(request["revision"]))
                case "resolve":
                    return {"found": [self._resolve(address) for address in request["addresses"]]}
                case other:
                    return {"failure": f"{other}: is nothing that this process does"}
        except (*FAILURES, ValueError, KeyError, TypeError) as error:
            return {"failure": str(error) or type(error).__name__}
        finally:
            self.report()
        return {}

    def look(self) -> None:
        """Bring Services and the snapshot into the kernel, if they are others than there."""
        self._follow_services()
        if self.following.look() and self.following.engine is not None:
            self._cgroups.tell(self._ready(), self.following.engine)

    def _ready(self) -> list[Attachment]:
        return [attachment for attachment in self._store.all() if attachment.stage is Stage.ATTACHED]

    def _follow_services(self) -> None:
        """A Service that does not fit stays as it was; the policies do not wait for it."""
        try:
            wanted = read_services(self._state)
            if wanted != self._wanted:
                self._services.apply(wanted)
                self._wanted = wanted
            self.service_trouble = ""
        except (DatapathError, OSError, ValueError, KeyError, TypeError) as error:
            self.service_trouble = f"Services are not all in the kernel: {error}"

    def _reach(self, revision: int) -> None:
        self.look()
        if self.following.engine is not None:
            self._cgroups.tell(self._ready(), self.following.engine)
        if self.following.revision < revision:
            raise DatapathError(self.following.problem or f"the kernel judges by revision {self.following.revision}")

    def _resolve(self, address: str) -> dict[str, Any]:
        engine = self.following.engine
        if engine is None:
            raise DatapathError("nothing is published yet")
        identity, endpoint = engine.resolve(address)
        name = Identities(engine).endpoint(endpoint) if endpoint is not None else ""
        return {"identity": identity, "endpoint": name}

    def tick(self) -> None:
        """Once a second."""
        self.events.offer()
        self.look()
        self.report()

    def report(self) -> None:
        """Both pages: the reader's, and the data path's own."""
        packets = self._page.packets()
        counts = {"passed": packets.passed, "dropped": packets.dropped}
        flows = self.events.counts()
        flows["lost"] += packets.lost
        self.following.write_page(counts, flows)
        attached = self._store.all()
        problems = self.host.problems(attached)
        problems += [self.service_trouble] if self.service_trouble else []
        self._page.write(self.following, attached, problems, self._port)

    def address_change(self) -> None:
        self._follow_addresses()

    def close(self) -> None:
        """Everything in the kernel stays."""
        self.events.stop()
        self.addresses.close()
        self._kernel.close()


def serve(keeper: Keeper, state: State, out: Any) -> None:
    """Until stdin ends."""
    watch = _watch(keeper, state)
    ticked, pending = 0.0, b""
    while True:
        sources: list[Any] = [0, keeper.addresses.descriptor, *watch]
        ready = select.select(sources, [], [], _TICK_S if watch else _LOOK_S)[0]
        if watch and watch[0] in ready:
            watch[0].read()
            keeper.look()
        if keeper.addresses.descriptor in ready:
            keeper.address_change()
        if 0 in ready:
            data = os.read(0, 1 << 20)
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                request = json.loads(line)
                out.write(json.dumps({"id": request["id"], **keeper.answer(request)}) + "\n")
                out.flush()
        if time.monotonic() - ticked >= _TICK_S:
            keeper.tick()
            ticked = time.monotonic()


def _watch(keeper: Keeper, state: State) -> list[Inotify]:
    try:
        made = Inotify()
        made.watch(str(state.root), MOVED_TO | CREATE)
        made.watch(str(state.datapath), MOVED_TO)
    except OSError as error:
        event(log, logging.WARNING, "no inotify, polling", reason=error)
        return []
    keeper.look()  # what came before the watch
    return [made]


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="idmesh-datapath")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--proxy-port", type=int, default=0)
    parser.add_argument("--size", action="append", default=[], metavar="MAP=ROWS")
    parser.add_argument("--verbose", action="store_true", help="the verifier's log with a refusal")
    parser.add_argument("--log", default="INFO")
    return parser.parse_args(arguments)


def _end_with_agent() -> None:
    agent = os.getppid()
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != agent:
        sys.exit(1)


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    logs.install(args.log)
    _end_with_agent()
    os.umask(0o077)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints must not speak on our channel
    state = State(args.state)
    try:
        keeper = Keeper(state, args.proxy_port, dict(map(parse_size, args.size)), args.verbose)
    except FAILURES as error:
        if args.verbose and isinstance(error, Refused):
            sys.stderr.write(error.log)
        out.write(json.dumps({"failure": str(error)}) + "\n")
        out.flush()
        return 1
    keeper.events.start()
    keeper.tick()
    out.write(json.dumps({"pid": os.getpid()}) + "\n")
    out.flush()
    try:
        serve(keeper, state, out)
    finally:
        keeper.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
