# SPDX-License-Identifier: Apache-2.0
"""
The compiling process: reads the sources, keeps last good objects, compiles, publishes, and reports.

It is a process of its own, so that nothing the sources hold (size, a hostile pattern, a crash) can stall or end
the agent. One line of JSON on stdin asks for a look; one line on stdout answers each.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import gc
import json
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ext_authz import logs
from ext_authz.agent.applied import AppliedStore
from ext_authz.agent.attachments import AttachmentStore
from ext_authz.agent.datapath_services import ServiceWriter
from ext_authz.agent.pressure import pressure
from ext_authz.agent.sources import Sources, View, within
from ext_authz.agent.standing import Standing
from ext_authz.compiler.compile import Compiled, Compiler
from ext_authz.compiler.publish import FileTransport, Transport
from ext_authz.identity.allocator import FileAllocator
from ext_authz.logs import event
from ext_authz.memory import tidy, trim
from ext_authz.model.settings import parse_settings
from ext_authz.model.types import PolicyError, Service, Settings
from ext_authz.privileges import OF_DATA_PATH, give_up
from ext_authz.state import State

log = logging.getLogger(__name__)

_SHOWN_MAX = 500
_APPLIED_MAX = 5000
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
# At scale tidying takes longer than a change may wait: so late after the last one that the next rarely meets it.
_IDLE_S = 5.0
# Containers made and not freed since the last collection. Builds leave no cycles behind, so that this stays level; what
# does leave some is looked for once they may be this many.
_UNTIDY_MAX = 2_000_000
# Builds after which free pages are given back (1 ms).
_TRIM_EVERY = 100
_SETTLE_S = 0.1
_SETTLE_LOOKS = 5


class Builder:
    """What the process holds between two looks."""

    def __init__(self, state: State, paths: dict[str, list[Path]], settings: Settings, node: str | None) -> None:
        applied, attached = AppliedStore(state.applied), AttachmentStore(state.attached)
        self._sources = Sources(state.kept, paths, settings, node, applied, attached)
        self._transport: Transport = FileTransport(state.root)
        self._allocator = FileAllocator(state.identities)
        self._compiler = Compiler(self._allocator, revision=self._transport.revision)
        self._standing = Standing()
        self._services = ServiceWriter(state, node)
        self._digest = ""
        self._published = 0.0
        self._unfinished: set[str] = set()  # files that were still being written at the last look

    def build(self) -> dict[str, Any]:
        """
        Look at the sources and put in force what they say.

        Returns:
            The report the agent shows. Whatever failed is in it; the snapshot in force then stays.
        """
        looked, started, used = time.time(), time.monotonic(), time.process_time()
        view = self._look()
        read = time.monotonic()
        compiled = self._compiler.compile(view.world)
        done = time.monotonic()
        services = self._write_services(view.world.services)
        changed = self._publish(compiled)
        self._sources.persist(view)
        if services:
            raise services
        return {
            "revision": self._transport.revision,
            "digest": self._digest,
            "published": self._published,
            "looked": looked,
            "changed": changed,
            "read_ms": round((read - started) * 1000, 3),
            "compile_ms": round((done - read) * 1000, 3),
            "publish_ms": round((time.monotonic() - done) * 1000, 3),
            **self._findings(view, compiled),
            "cpu_ms": round((time.process_time() - used) * 1000, 3),
        }

    def rest(self) -> None:
        """Nothing changed for a while."""
        self._transport.rest()

    def _look(self) -> View:
        """A file that is bad and was written this moment may still be half written: it is given time."""
        view = self._sources.look()
        for _ in range(_SETTLE_LOOKS):
            fresh = {error.origin.file for error in view.errors if _fresh(error.origin.file)}
            if not (fresh | view.unfinished) - self._unfinished:
                break
            time.sleep(_SETTLE_S)
            view = self._sources.look()
        # Whoever writes for longer is waited for once: its end is told by an event.
        self._unfinished = view.unfinished
        return view

    def _write_services(self, services: Sequence[Service]) -> Exception | None:
        """Before the policies, for the kernel looks at both together; but no denial waits for a Service."""
        try:
            self._services.write(services)
        except Exception as error:
            return error
        return None

    def _publish(self, compiled: Compiled) -> bool:
        if compiled.digest == self._digest:
            return False
        self._confirm()
        # If this fails, nobody knows what is in force: then nothing is, and even what was before is published again.
        self._digest = ""
        self._digest = self._transport.publish(compiled.parts)
        self._published = time.time()
        return True

    def _confirm(self) -> None:
        """Numbers released before the revision that every reader has reached may be given again."""
        reached = [word.revision for word in self._transport.acknowledgements()]
        if reached:
            self._allocator.confirm(min(reached))

    def _findings(self, view: View, compiled: Compiled) -> dict[str, Any]:
        errors = [*view.errors, *compiled.errors]
        warnings = [*view.warnings, *compiled.warnings]
        world = view.world
        return {
            "sources": [asdict(source) for source in view.sources],
            "errors": [error.record() for error in errors[:_SHOWN_MAX]],
            "error_count": len(errors),
            "warnings": [warning.record() for warning in warnings[:_SHOWN_MAX]],
            "warning_count": len(warnings),
            "standing": self._standing.warnings(world)[:_SHOWN_MAX],
            "kept": view.kept,
            "closed": world.closed,
            "applied_errors": _applied_errors(view, errors),
            "attached_errors": _attached_errors(view, errors),
            "pressure": pressure(compiled.parts, self._allocator, view),
            "counts": {"policies": len(world.policies), "endpoints": len(world.endpoints), **view.counts},
        }


def _applied_errors(view: View, errors: list[PolicyError]) -> dict[str, list[str]]:
    """What is wrong with each source that was handed in, for whoever waits for the answer."""
    names = [source.path for source in view.sources if source.role == "applied"]
    found = {name: [error for error in errors if within(error.origin.file, name)] for name in names}
    return {name: [json.dumps(e.record()) for e in of[:_APPLIED_MAX]] for name, of in found.items()}


def _attached_errors(view: View, errors: list[PolicyError]) -> dict[str, list[str]]:
    """What is wrong with attached endpoints, by the file that keeps them."""
    folders = [source.path for source in view.sources if source.role == "attached"]
    found: dict[str, list[str]] = {}
    for error in errors:
        if any(within(error.origin.file, folder) for folder in folders):
            found.setdefault(error.origin.file, []).append(error.reason)
    return found


def _fresh(file: str) -> bool:
    try:
        return abs(time.time() - os.stat(file).st_mtime) < _SETTLE_S
    except OSError:
        return False


def serve(builder: Builder) -> None:
    """Answer each line of stdin; end with it. Nobody is kept waiting while memory is tidied."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints must not speak on our channel
    untidy, builds = False, 0
    gc.disable()
    while True:
        if untidy and not select.select([0], [], [], _IDLE_S)[0]:
            builder.rest()
            _tidy()
            untidy = False
        if not os.read(0, 4096):
            return
        try:
            report = builder.build()
        except Exception as error:
            event(log, logging.ERROR, "build failed, the last snapshot stays", error=True)
            report = {"failure": f"{type(error).__name__}: {error}"}
        out.write(json.dumps(report) + "\n")
        out.flush()
        bound_garbage()
        untidy, builds = True, builds + 1
        if builds % _TRIM_EVERY == 0:
            trim()


def bound_garbage() -> None:
    """A collection walks all lasting objects (300 ms at scale): where no pause comes, only for much."""
    if gc.get_count()[0] > _UNTIDY_MAX:
        _tidy()


def _tidy() -> None:
    gc.unfreeze()
    tidy()
    gc.freeze()


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="idmesh-builder")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--policies", type=Path, action="append", default=[])
    parser.add_argument("--endpoints", type=Path, action="append", default=[])
    parser.add_argument("--set", action="append", default=[], dest="pairs")
    parser.add_argument("--settings")
    parser.add_argument("--node")
    parser.add_argument("--log", default="INFO")
    return parser.parse_args(arguments)


def _be_the_only_one(state: State) -> None:
    """
    Two publishers would take the same revision: that of a killed agent must be gone before we begin.

    It ends with its agent; the lock waits for that.
    """
    agent = os.getppid()
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != agent:
        sys.exit(1)
    handle = os.open(state.root / "builder.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    logs.install(args.log)
    _be_the_only_one(State(args.state))
    give_up(OF_DATA_PATH)
    settings = parse_settings(args.pairs, args.settings)
    serve(Builder(State(args.state), {"policies": args.policies, "endpoints": args.endpoints}, settings, args.node))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
