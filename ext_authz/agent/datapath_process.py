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
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ext_authz import logs
from ext_authz.agent.attachments import Attachment, AttachmentStore, Stage, read_record
from ext_authz.agent.datapath_cgroups import Cgroups
from ext_authz.agent.datapath_events import Events
from ext_authz.agent.datapath_following import Following
from ext_authz.agent.datapath_host import Addresses, Host
from ext_authz.agent.datapath_listeners import Listeners
from ext_authz.agent.datapath_lost import Lost
from ext_authz.agent.datapath_page import Page
from ext_authz.agent.datapath_places import Places
from ext_authz.agent.datapath_services import read_services
from ext_authz.agent.datapath_sizes import parse_size
from ext_authz.agent.datapath_steering import BASE_HOOKS, CGROUP_HOOKS, Steering
from ext_authz.agent.presence import Presence
from ext_authz.datapath import Datapath, DatapathError, Refused
from ext_authz.datapath._datapath import lib
from ext_authz.datapath.routing import RoutingError
from ext_authz.datapath.service_table import ServiceTable
from ext_authz.datapath.services import Front, Wanted
from ext_authz.engine.engine import Engine
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
# How often it is looked after programs, and after rules, routes and sysctls; both may take a part of the time only.
_LOST_S, _HOST_S, _SHARE = 1.0, 5.0, 200
_FLAGS: int = lib.IDM_CONFIG_EVENTS_ALLOWED | lib.IDM_CONFIG_PEER_REDIRECT
_PRIVATE = (
    "its BPF file system is mounted for this process alone (PrivateTmp, ProtectSystem and their kin do that): what is "
    "enforced ends with it; have the host mount it before, as the units of idmesh systemd do"
)
FAILURES = (DatapathError, RoutingError, OSError)
_PLACES = "not every endpoint has its addresses"


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
        self._troubles: dict[str, str] = {}
        self._locals: frozenset[str] = frozenset()
        self._unjudged: list[str] = []
        self._presence = Presence()
        self._gone: dict[str, str] = {}
        self._problems: list[str] = []
        self._lost_due = self._host_due = 0.0
        self.host = Host(state)
        self.host.claim()
        self.host.alone()
        self.addresses = Addresses()
        objects = os.environ.get(OBJECTS_VARIABLE)
        self._kernel = Datapath.open(state.datapath_pins, Path(objects) if objects else None, sizes, verbose=verbose)
        self._is_private = self._kernel.is_private
        self._cgroups = Cgroups(self._kernel)
        room = next(info.max_rows for info in self._kernel.maps() if info.name == "backends")
        self._services = ServiceTable(self._kernel, room, self._kernel.grace)
        self._places = Places(self._kernel, self._store)
        self._listeners = Listeners(self._kernel, self.host.envoy_folder, proxy_port)
        self._lost = Lost(self._kernel, self._cgroups.names, self._attach, self.host.set_link, FAILURES)
        self._set_up()
        self.following = Following(state, self._publish, (DatapathError,), self._kernel.revision)
        self.look()  # first: by what was in force an address may be somebody else's
        self._reattach()
        self.events = Events(self._take_events, state.root / "flows.sock")
        self._page = Page(state, self._kernel)

    def _set_up(self) -> None:
        if self._port and self.host.base is None:
            raise DatapathError("connections cannot be steered to Envoy: no cgroup2 hierarchy is mounted")
        self.host.steer()
        envoy = self.host.envoy()
        self._kernel.config(proxy_port=self._port, envoy_cgroup=envoy, flags=_FLAGS)
        self._hang()
        self._follow_addresses()

    def _hang(self) -> None:
        steering = Steering(self._kernel)
        steering.choose_listeners()
        if self.host.base and self.host.envoy_folder:
            steering.guard(self.host.base, self.host.envoy_folder)

    def _attempt(self, what: str, work: Callable[[], object]) -> None:
        """Whatever cannot be done now is told of, and keeps nothing else from being done."""
        try:
            work()
        except (*FAILURES, ValueError, KeyError, TypeError) as error:
            if self._troubles.get(what) != f"{what}: {error}":
                event(log, logging.ERROR, "the data path falls behind", what=what, reason=error)
            self._troubles[what] = f"{what}: {error}"
        else:
            self._troubles.pop(what, None)

    def _follow_addresses(self) -> None:
        self.addresses.look()
        if self.addresses.known != self._locals:
            self._kernel.locals(sorted(self.addresses.known))
            self._locals = self.addresses.known

    def _take_events(self, timeout_ms: int) -> bytes:
        return self._kernel.events(timeout_ms=timeout_ms)

    def _reattach(self) -> None:
        """What the store says shall be; programs of this version take the place of others without a gap."""
        attached = self._store.all()
        self._gone = self._presence.gone(attached)
        for attachment in attached:
            if attachment.key in self._gone or attachment.stage is Stage.COMING:
                continue
            try:
                self._attach(attachment)
            except FAILURES as error:
                event(log, logging.ERROR, "endpoint not attached anew", name=attachment.key, reason=error)

    def _publish(self, snapshot: bytes, engine: Engine) -> dict[str, Any]:
        """Who loses an address by it loses it before: it must not speak for the next one."""
        try:
            self._places.take_away(engine)
            report = asdict(self._kernel.publish(snapshot))
        except DatapathError:
            if self.following.engine is not None:
                self._give_back(self.following.engine)
            raise
        self._give_back(engine)
        return report

    def _give_back(self, engine: Engine) -> None:
        self._attempt(_PLACES, lambda: self._places.give_back(engine))

    def _attach(self, attachment: Attachment) -> None:
        self._cgroups.attach(attachment)
        if attachment.cgroup:
            return
        self._places.attach(attachment, self.following.engine)
        self.host.add(attachment)

    def _detach(self, attachment: Attachment) -> None:
        self._cgroups.detach(attachment)
        if attachment.ifindex:
            self.host.remove(attachment)
            self._places.detach(attachment)

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
        self._attempt("Services are not all in the kernel", self._follow_services)
        if self.following.look():
            self._attempt("not every workload without a namespace has its identity", self._tell)
            self._attempt("what is steered finds no Envoy", lambda: self._listeners.look(at_once=True))

    def _tell(self) -> None:
        if self.following.engine is not None:
            self._cgroups.tell(self._ready(), self.following.engine)

    def _ready(self) -> list[Attachment]:
        return [attachment for attachment in self._store.all() if attachment.stage is Stage.ATTACHED]

    def _follow_services(self) -> None:
        """A Service that does not fit stays as it was; the policies do not wait for it."""
        wanted = read_services(self._state)
        if wanted != self._wanted:
            self._services.apply(wanted)
            self._wanted = wanted

    def _reach(self, revision: int) -> None:
        self.look()
        self._tell()
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
        if _PLACES in self._troubles and self.following.engine is not None:
            self._give_back(self.following.engine)
        self._attempt("what is steered finds no Envoy", self._listeners.look)
        if self.addresses.known != self._locals:
            self.address_change()
        self.check()
        self.report()

    def check(self) -> None:
        """What others took away since is put back, or told of."""
        started = time.monotonic()
        if started >= self._lost_due:
            self._attempt("programs are not all on their hooks", self._find_lost)
            self._lost_due = time.monotonic() + max(_LOST_S, _SHARE * (time.monotonic() - started))
        started = time.monotonic()
        if started >= self._host_due:
            self._attempt("rules and routes", self._find_problems)
            self._host_due = time.monotonic() + max(_HOST_S, _SHARE * (time.monotonic() - started))

    def _find_lost(self) -> None:
        attached = self._store.all()
        self._gone = self._presence.gone(attached)
        there = [one for one in attached if one.stage is Stage.ATTACHED and one.key not in self._gone]
        own = {"choose_listener"} | set(BASE_HOOKS) | set(CGROUP_HOOKS) if self.host.base else {"choose_listener"}
        self._unjudged, hooks = self._lost.look(there, own)
        if hooks:
            event(log, logging.ERROR, "somebody took programs off", names=" ".join(sorted(hooks)))
            self._hang()

    def _find_problems(self) -> None:
        problems = self.host.problems(self._store.all())
        if any(problem.startswith("missing") for problem in problems):
            self.host.mend()
            problems = self.host.problems(self._store.all())
        self._problems = problems

    def report(self) -> None:
        """Both pages: the reader's, and the data path's own."""
        packets = self._page.packets()
        counts = {"passed": packets.passed, "dropped": packets.dropped}
        flows = self.events.counts()
        flows["lost"] += packets.lost
        self.following.write_page(counts, flows)
        problems = [*self._unjudged, *self._problems, *self._troubles.values()]
        problems += [self.events.trouble] if self.events.trouble else []
        problems += [_PRIVATE] if self._is_private else []
        self._page.write(self.following, self._store.all(), self._gone, problems, self._port)

    def address_change(self) -> None:
        self._attempt("the host's addresses are not all known", self._follow_addresses)

    def close(self) -> None:
        """Everything in the kernel stays."""
        self.events.stop()
        self.addresses.close()
        self._presence.close()
        self._kernel.close()
        self.host.release()


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
    parser.add_argument("--agent", type=int, default=os.getppid(), metavar="PID", help="whom it ends with")
    parser.add_argument("--size", action="append", default=[], metavar="MAP=ROWS")
    parser.add_argument("--verbose", action="store_true", help="the verifier's log with a refusal")
    parser.add_argument("--log", default="INFO")
    return parser.parse_args(arguments)


def _end_with_agent(agent: int) -> None:
    """An agent that was killed before we asked to be told is nobody's parent any more: the next one must find no us."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != agent:
        sys.exit(1)


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    logs.install(args.log)
    _end_with_agent(args.agent)
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
