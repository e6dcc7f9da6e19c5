# SPDX-License-Identifier: Apache-2.0
"""A whole node in a namespace of its own: `idmesh run` with its data path, and every command beside it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ext_authz.agent.cgroups import BASE_VARIABLE
from ext_authz.process import find_processes
from ext_authz.state import State, read_json
from tests.bpf.net import Network, eventually
from tests.bpf.state import State as Found
from tests.bpf.state import namespace_state


def settled(net: Network) -> Found:
    """The node's namespace once the kernel has set up every link: it does so after they were made."""
    ways = ("anycast fe80:: dev", "multicast ff00::/8 dev", "local fe80::1 dev")

    def complete() -> bool:
        routes = namespace_state(net.node)["routes"]
        return all(any(f"{way} {end.veth} " in route for route in routes) for end in net.ends.values() for way in ways)

    eventually(complete, 10, "the links are never all up")
    return namespace_state(net.node)


NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n"


@dataclass
class NodeRun:
    """A node of the test's own. base: the cgroup that stands for all cgroups of the host."""

    net: Network
    folder: Path
    base: Path
    words: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    @property
    def state(self) -> State:
        return State(self.folder / "state")

    def write(self, name: str, text: str) -> None:
        """As editors do it: by rename."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f".{path.name}")
        staged.write_text(text)
        staged.rename(path)

    def command(self, *words: str) -> list[str]:
        """A command on this node, to be started by whoever wants to."""
        return [*self._command(*words)]

    def _environment(self) -> dict[str, str]:
        return os.environ | {BASE_VARIABLE: str(self.base)}

    def _command(self, *words: str) -> list[str]:
        return self.net.node.command([sys.executable, "-m", "ext_authz.cli", *words, "--state", str(self.state.root)])

    def start(self) -> None:
        """Wait until it answers."""
        self.launch()
        eventually(self._answers, 60, "the node does not start")

    def launch(self) -> None:
        """Start it, and wait for nothing."""
        for folder in ("policies", "endpoints"):
            (self.folder / folder).mkdir(exist_ok=True)
        if not (self.folder / "endpoints/namespace.yaml").exists():
            self.write("endpoints/namespace.yaml", NAMESPACE)
        words = ["--policies", str(self.folder / "policies"), "--endpoints", str(self.folder / "endpoints")]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                self._command("run", *words, *self.words), env=self._environment(), stdout=log, stderr=log
            )

    def _answers(self) -> bool:
        page = read_json(self.state.status) or {}
        if self.process is None or self.process.poll() is not None:
            raise AssertionError(self.log())
        return page.get("pid") == self.process.pid and self.state.admin.exists()

    def log(self) -> str:
        return (self.folder / "log").read_text()[-6000:]

    def run(self, *words: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a command on this node."""
        done = subprocess.run(
            self._command(*words), env=self._environment(), capture_output=True, text=True, check=False, timeout=120
        )
        return done.returncode, done.stdout, done.stderr

    def json(self, *words: str) -> Any:
        """What a command says with --json; it must not fail outright."""
        code, out, error = self.run(*words, "--json")
        assert code != 2, (error, self.log())
        return json.loads(out)

    def attach(self, name: str, **labels: str) -> Any:
        """An end of the network, by its name there."""
        given = ["--labels", ",".join(f"{key}={value}" for key, value in labels.items())] if labels else []
        where = ["--netns", self.net.ends[name].space.path]
        code, out, error = self.run("endpoint", "attach", name, *where, *given, "--json")
        assert code == 0, (error, self.log())
        return json.loads(out)

    def admin(self, call: str, name: str, **fields: Any) -> Any:
        """
        What `idmesh endpoint attach` and `detach` ask the node for, without the command's own start.

        Raises:
            ConnectionError: It does not answer, or refuses.
        """
        import grpc

        from ext_authz.pb.idmesh.v1 import node_pb2, node_pb2_grpc

        request = node_pb2.DetachRequest(namespace="default", name=name)
        if call == "attach":
            labels = fields.pop("labels")
            request = node_pb2.AttachRequest(namespace="default", name=name, interface="eth0", **fields)
            request.labels.labels.update(labels)
        with grpc.insecure_channel(f"unix:{self.state.admin}") as channel:
            try:
                reply = getattr(node_pb2_grpc.AdminStub(channel), call.capitalize())(request, timeout=120)
            except grpc.RpcError as error:
                raise ConnectionError(str(error)) from None
        if reply.failure:
            raise ConnectionError(reply.failure)
        return reply

    def kill(self) -> None:
        """As the kernel's out-of-memory killer does it."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def end(self) -> None:
        """Whatever state it is in: nothing of it is left."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        root = os.fsencode(self.state.root)
        for pid in find_processes(lambda words: any(root in word for word in words)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        code, _, error = self.run("run", "--cleanup")
        assert code == 0, error
