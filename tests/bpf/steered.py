# SPDX-License-Identifier: Apache-2.0
"""
A node that steers: the data path loaded, a real Envoy in a cgroup of its own, servers that say whom they saw.

    with Steered(folder, cgroup) as site:
        client, server = site.add("client", "10.1.0.1"), site.add("server", "10.1.0.2")
        site.apply(policy)
        site.start(envoy)
        assert site.get(client, "http://10.1.0.2:8080/a").status == 200

A policy reaches the kernel's maps and Envoy alike. `outside` ends are not attached: the world.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any

from ext_authz.compiler.compile import Compiler
from ext_authz.datapath.routing import Routing
from ext_authz.engine.engine import Engine
from ext_authz.envoy_binary import MODULE, EnvoyBinary
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.model.load import load_text
from ext_authz.play.network import End, Network, Space
from ext_authz.state import write_atomic
from ext_authz.xds.bootstrap import render
from ext_authz.xds.setup import Door, Setup, Steering, Target
from tests.bpf.net import eventually
from tests.bpf.steered_kernel import Kernel

PROXY = 15001
_NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n"
_POD = """---
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: default, labels: {app: %s}}
status: {podIPs: %s}
"""


@dataclass(frozen=True)
class Answer:
    """status 0: the connection came to nothing, and body says why."""

    status: int
    body: str = ""


@dataclass(frozen=True)
class Seen:
    """What a server saw of a request."""

    peer: str
    path: str
    headers: dict[str, str]


@dataclass
class Server:
    """An HTTP server of an end, on all its addresses."""

    seen: list[Seen] = field(default_factory=list)


class Steered:
    """cgroup: a folder for Envoy's and the guard's; folder: for everything else, bpffs included."""

    def __init__(self, folder: Path, cgroup: Path) -> None:
        self._stack = contextlib.ExitStack()
        self._folder, self.guard = folder, cgroup
        self.state = folder / "state"
        self.state.mkdir(mode=0o755)
        self.envoy_cgroup = cgroup / "envoy"
        self.envoy_cgroup.mkdir()
        self._compiler, self._revision = Compiler(MemoryAllocator()), 0
        self._pods: dict[str, tuple[str, ...]] = {}
        self.engine: Engine | None = None
        self.envoy: subprocess.Popen[bytes] | None = None
        try:
            self.net = self._stack.enter_context(Network())
            self.kernel = self._stack.enter_context(Kernel(self.net.node, folder / "bpf"))
            self.kernel.config(PROXY, os.stat(self.envoy_cgroup).st_ino)
            self.kernel.steer(self.envoy_cgroup, self.guard)
            self.routing = Routing(folder / "routing.json")
            with self.net.node.inside():
                self.routing.set()
            self._stack.callback(self.stop)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Steered:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    # ---- what there is ----

    def add(self, name: str, *addresses: str) -> End:
        """A pod with the label app: NAME, attached."""
        end = self.net.add(name, *addresses)
        self._pods[name] = end.addresses
        with self.net.node.inside():
            self.routing.add(end.veth)
        self.kernel.attach(end)
        return end

    def outside(self, name: str, *addresses: str) -> End:
        """Somebody who is no pod."""
        return self.net.add(name, *addresses)

    def apply(self, policies: str) -> int:
        """Put policies in force, in the kernel and for Envoy; the revision."""
        pods = "".join(
            _POD % (name, name, json.dumps([{"ip": one} for one in ips])) for name, ips in self._pods.items()
        )
        loaded = load_text(f"{_NAMESPACE}{pods}---\n{policies}", "policy.yaml")
        assert not loaded.errors, loaded.errors
        made = self._compiler.compile(loaded.world)
        assert not made.errors, made.errors
        self._revision = made.revision
        self.engine = Engine.open(made.snapshot)
        self.kernel.publish(made.snapshot)
        write_atomic(self.state / "snapshot", made.snapshot)
        return self._revision

    def identity(self, address: str) -> int:
        assert self.engine is not None
        return self.engine.resolve(address)[0]

    @property
    def host(self) -> Space:
        """Processes of the node itself."""
        return self.net.node

    def other_pins(self) -> Path:
        """A name for a folder of pins, of maps that no program knows."""
        other, link = self._folder / "bpf/other", self._folder / "live"
        other.mkdir()
        self.kernel.empty_maps(other)
        link.symlink_to(other)
        return link

    def repoint_pins(self) -> None:
        """That name, for the maps in force."""
        staged = self._folder / "next"
        staged.symlink_to(self._folder / "bpf")
        staged.rename(self._folder / "live")

    # ---- Envoy ----

    def setup(self, **more: object) -> Setup:
        fields: dict[str, object] = {
            "listen": Target("127.0.0.1", PROXY),
            "upstreams": (),
            "state": self.state,
            "module": MODULE,
            "admin": Target(path=str(self._folder / "admin.sock")),
            "access_log": str(self._folder / "access.log"),
            "steering": Steering(self._folder / "bpf"),
            **more,
        }
        return Setup(door=Door.MODULE, **fields)  # type: ignore[arg-type]

    def start(
        self,
        envoy: EnvoyBinary,
        *,
        concurrency: int = 2,
        edit: Callable[[dict[str, Any]], None] = lambda _: None,
        **more: object,
    ) -> None:
        """
        Start Envoy in its cgroup and wait until it listens and decides by the policies in force.

        Args:
            edit: Changes the configuration before Envoy reads it.
            more: Fields of the Setup.
        """
        config, self.log = self._folder / "envoy.json", self._folder / "envoy.log"
        wanted = json.loads(render(self.setup(**more)))
        edit(wanted)
        config.write_text(json.dumps(wanted))
        command = [str(envoy.path), "-c", str(config), "--concurrency", str(concurrency), "--disable-hot-restart"]
        procs = self.envoy_cgroup / "cgroup.procs"
        with self.log.open("wb") as said:
            self.envoy = subprocess.Popen(
                ["sh", "-c", f'echo $$ >{procs} && exec "$@"', "sh", *self.net.node.command([*command, "-l", "info"])],
                env=envoy.environment(MODULE),
                stderr=said,
            )
        eventually(self._listens, what="Envoy does not listen")
        self.wait_for(self._revision)

    def wait_for(self, revision: int) -> None:
        """Until Envoy decides by it."""
        eventually(lambda: revision in self._revisions(), what=f"Envoy never came to revision {revision}")

    def _revisions(self) -> list[int]:
        return [json.loads(path.read_text())["revision"] for path in (self.state / "readers").glob("*.json")]

    def _listens(self) -> bool:
        assert self.envoy is not None
        assert self.envoy.poll() is None, self.log.read_text()[-3000:]
        with self.net.node.inside():
            return all(
                any(
                    f":{PROXY:04X} " in line and line.split()[3] == "0A" for line in Path(path).read_text().splitlines()
                )
                for path in ("/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6")
            )

    def stat(self, name: str) -> int:
        """A counter or gauge of Envoy; 0 if there is none of that name."""
        admin = http.client.HTTPConnection("admin")
        admin.sock = socket.socket(socket.AF_UNIX)
        try:
            admin.sock.connect(str(self._folder / "admin.sock"))
            admin.request("GET", f"/stats?filter=^{name}$")
            lines = admin.getresponse().read().decode().splitlines()
        finally:
            admin.close()
        return sum(int(line.rpartition(": ")[2]) for line in lines)

    def stop(self, *, kill: bool = False) -> None:
        """End Envoy; its cgroup is empty afterwards."""
        if self.envoy is None:
            return
        self.envoy.kill() if kill else self.envoy.terminate()
        try:
            self.envoy.wait(10)
        except subprocess.TimeoutExpired:
            self.envoy.kill()
            self.envoy.wait()
        self.envoy = None

    # ---- traffic ----

    def get(self, end: End | Space, url: str, source: str = "", timeout_s: float = 5.0) -> Answer:
        """One request on a connection of its own."""
        client = self.client(end, url, source, timeout_s)
        try:
            client.request("GET", "/" + url.split("/", 3)[3])
            answer = client.getresponse()
            return Answer(answer.status, answer.read().decode(errors="replace"))
        except (OSError, http.client.HTTPException) as error:
            return Answer(0, f"{type(error).__name__}: {error}")
        finally:
            client.close()

    def client(
        self, end: End | Space, url: str, source: str = "", timeout_s: float = 5.0
    ) -> http.client.HTTPConnection:
        """A client that keeps its connection."""
        host, _, port = url.split("/")[2].rpartition(":")
        host = host.strip("[]")

        def connect(*_: object, **__: object) -> socket.socket:
            line = end.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            line.settimeout(timeout_s)
            if source:
                line.bind((source, 0))
            line.connect((host, int(port)))
            return line

        made = http.client.HTTPConnection(host, int(port))
        made._create_connection = connect  # type: ignore[attr-defined]
        return made


@contextlib.contextmanager
def http_server(end: End, port: int, address: str = "::") -> Iterator[Server]:
    """Answers everything with the name of its end."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            peer = ip_address(self.client_address[0])
            mapped = getattr(peer, "ipv4_mapped", None)
            server.seen.append(Seen(str(mapped or peer), self.path, dict(self.headers)))
            body = end.name.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Both(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        request_queue_size = 128

    with end.space.inside():
        made = Both((address, port), Handler)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        made.shutdown()
        thread.join()
        made.server_close()


def policy(spec: str, name: str = "p", app: str = "server") -> str:
    """A policy of `app` from the inside of its spec, as YAML."""
    body = "\n".join(f"  {line}" for line in spec.strip("\n").splitlines())
    return (
        "---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\n"
        f"metadata: {{name: {name}, namespace: default}}\n"
        f"spec:\n  endpointSelector: {{matchLabels: {{app: {app}}}}}\n{body}\n"
    )


def run(argv: Sequence[str]) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
