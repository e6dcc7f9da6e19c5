# SPDX-License-Identifier: Apache-2.0
"""Real certificates, and doors of every kind behind a listener that asks for them."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envoy_backend import Backend, http_backend
from envoy_harness import CLIENT, NEWEST, Envoy, Node, envoy_of, missing, pods, running_config, setup_for, snapshot
from envoy_worker import worker

from ext_authz.engine import Engine
from ext_authz.xds.bootstrap import render
from ext_authz.xds.setup import Door, Evidence, Mode, Target, Tls

TRUST_DOMAIN = "td.test"
UNKNOWN = "127.3.0.1"  # no pod's address
WORLD = pods(
    ("client", "client", "walker", (CLIENT,)),
    ("other", "other", "talker", ("127.1.0.12",)),
    ("twin", "twin", "talker", ("127.1.0.13",)),
    ("server", "server", "server", ("127.1.0.21",)),
)
# Everybody may: whoever is denied is denied for what he says of himself.
ANYBODY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: anybody, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: server}}
  ingress: [{fromEntities: [all]}]
"""
_CA = """
[ca]
default_ca = it
[it]
database = {folder}/index.txt
new_certs_dir = {folder}
rand_serial = yes
unique_subject = no
default_md = sha256
policy = any
copy_extensions = none
email_in_dn = no
[any]
commonName = supplied
"""


def _openssl(*words: str | Path) -> None:
    if shutil.which("openssl") is None:
        missing("openssl is not there (package openssl)")
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _quoted(text: str) -> str:
    """As a value of an openssl configuration, in which # and $ and outer spaces mean something."""
    return '"' + "".join(f"\\{char}" if char in '"\\$' else char for char in text) + '"'


@dataclass
class Pki:
    """A CA of the mesh, a stranger's CA, and leaves of either."""

    folder: Path
    made: dict[tuple[str, ...], Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("ca", "stranger"):
            folder = self.folder / name
            folder.mkdir(parents=True)
            (folder / "index.txt").touch()
            (folder / "ca.cnf").write_text(_CA.format(folder=folder))
            _openssl(
                *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
                *("-subj", f"/CN={name}", "-keyout", folder / "ca.key", "-out", folder / "ca.pem"),
                *("-addext", "keyUsage=critical,keyCertSign"),
            )
        _openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=leaf"),
            *("-keyout", self.key, "-out", self.folder / "leaf.csr"),
        )

    @property
    def key(self) -> Path:
        return self.folder / "leaf.key"

    @property
    def authority(self) -> Path:
        return self.folder / "ca/ca.pem"

    def leaf(self, *sans: str, ca: str = "ca", seconds: int = 3600) -> Path:
        """A certificate with these SANs ("URI:...") that ends after so many seconds."""
        found = self.made.get((ca, str(seconds), *sans))
        if found is not None:
            return found
        folder, path = self.folder / ca, self.folder / f"leaf{len(self.made)}.pem"
        lines = [f"{name.partition(':')[0]}.{i} = {_quoted(name.partition(':')[2])}" for i, name in enumerate(sans)]
        wanted = ["subjectAltName = @names", "[names]", *lines] if sans else ["keyUsage = digitalSignature"]
        (self.folder / "leaf.ext").write_text("\n".join(wanted) + "\n")
        now = datetime.datetime.now(datetime.UTC)
        start, end = (now + datetime.timedelta(seconds=at) for at in (-86400, seconds))
        _openssl(
            *("ca", "-batch", "-notext", "-config", folder / "ca.cnf", "-cert", folder / "ca.pem"),
            *("-keyfile", folder / "ca.key", "-in", self.folder / "leaf.csr", "-out", path),
            *("-extfile", self.folder / "leaf.ext"),
            *("-startdate", f"{start:%y%m%d%H%M%SZ}", "-enddate", f"{end:%y%m%d%H%M%SZ}"),
        )
        self.made[ca, str(seconds), *sans] = path
        return path

    def context(self, certificate: Path | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.authority))
        context.check_hostname = False
        if certificate is not None:
            context.load_cert_chain(certificate, self.key)
        return context


@dataclass
class Guarded:
    """A door behind TLS, and who may be who."""

    envoy: Envoy
    pki: Pki
    node: Node
    backend: Backend
    numbers: dict[str, int]

    def id_of(self, address: str) -> str:
        return f"spiffe://{TRUST_DOMAIN}/identity/{self.numbers[address]}"

    def certificate(self, *ids: str, **more: Any) -> Path:
        return self.pki.leaf(*(f"URI:{name}" for name in ids), **more)

    def connect(
        self,
        certificate: Path | None,
        source: str = CLIENT,
        *,
        context: ssl.SSLContext | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLSocket:
        to = (self.envoy.listen.host, self.envoy.listen.port)
        raw = socket.create_connection(to, 10, source_address=(source, 0))
        return (context or self.pki.context(certificate)).wrap_socket(raw, session=session)

    def ask(self, certificate: Path | None, source: str = CLIENT, headers: dict[str, str] | None = None) -> int:
        """The status of a request on a connection of its own; 0 if there is no answer."""
        connection = http.client.HTTPConnection("server")
        try:
            connection.sock = self.connect(certificate, source)
            connection.request("GET", "/a", headers=headers or {})
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def read(self, certificate: Path | None, source: str = CLIENT) -> bytes:
        """What a connection reads first, of itself or in answer to a line."""
        try:
            with self.connect(certificate, source) as connection:
                connection.sendall(b"hello\n")
                return connection.recv(100)
        except OSError:
            return b""


def weaken(config: dict[str, Any]) -> None:
    """A listener that asks for certificates but refuses nobody, so that only the door is left to."""
    chain = config["staticResources"]["listeners"][0]["filterChains"][0]
    chain["filters"] = [each for each in chain["filters"] if each["name"] != "envoy.filters.network.rbac"]
    context = chain["transportSocket"]["typedConfig"]
    context.pop("requireClientCertificate")
    context["commonTlsContext"]["validationContext"].pop("matchTypedSubjectAltNames")


@contextlib.contextmanager
def guarded(
    door: Door,
    folder: Path,
    *,
    policies: str = ANYBODY,
    version: str = NEWEST,
    weak: bool = False,
    backend: Backend | None = None,
    require: tuple[Evidence, ...] = (Evidence.CERTIFICATE,),
    mode: Mode = Mode.HTTP,
    change: Callable[[dict[str, Any]], None] = lambda config: None,
    **wanted: Any,
) -> Iterator[Guarded]:
    """That door behind mTLS, with these policies in force; weak, change: what is done to its configuration first."""
    node = Node(folder / "state")
    (node.state / "readers").mkdir(mode=0o755, parents=True)
    data = snapshot(policies, world=WORLD, revision=1)
    node.publish_bytes(data)
    engine = Engine.open(data)
    pki = Pki(folder / "pki")
    with contextlib.ExitStack() as stack:
        behind = backend or stack.enter_context(http_backend())
        if door != Door.MODULE:
            service = stack.enter_context(worker(node, folder / "a.sock"))
            wanted["authz"] = (Target(path=str(service.socket)),)
        setup = setup_for(
            door,
            behind.address,
            state=node.state,
            tls=Tls(pki.leaf("IP:127.1.0.21"), pki.key, pki.authority),
            trust_domain=TRUST_DOMAIN,
            require=require,
            mode=mode,
            **wanted,
        )
        config = json.loads(render(setup))
        if weak:
            weaken(config)
        change(config)
        (folder / "envoy.json").write_text(json.dumps(config))
        started = stack.enter_context(running_config(folder / "envoy.json", folder, envoy_of(version)))
        addresses = (CLIENT, "127.1.0.12", "127.1.0.13", "127.1.0.21")
        yield Guarded(started, pki, node, behind, {each: engine.resolve(each)[0] for each in addresses})
