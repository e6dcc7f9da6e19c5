# SPDX-License-Identifier: Apache-2.0
"""
The churn set: the scale set's folder, and one change after another made to it by rename, the same for the same seed.

Three kinds of change, as benchmarks.md asks: an endpoint of this node (replaced by another of the same labels,
relabelled, or of labels nobody had before), addresses of other nodes' endpoints by the hundred, and a clusterwide
policy that selects everybody. Some endpoints are judged: what is right for their requests is known before and after.
"""

from __future__ import annotations

import os
import random
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from tests.load.generate import OBJECTS_PER_FILE, Object, Scale, scale, to_yaml

NODE = "near"
NAMESPACE = "judged"
SERVER = f"{NAMESPACE}/server"
GRANTED, REFUSED = "granted", "none"
OPEN, SHUT, WIDE, MOVING = "open", "shut", "wide", "moving0"
# Client: its address on loopback. Those with a number change sides again and again.
CLIENTS = {OPEN: "127.0.0.40", SHUT: "127.0.0.41", WIDE: "127.0.0.42"} | {
    f"moving{number}": f"127.0.0.{50 + number}" for number in range(4)
}
# Endpoints of other nodes: files at a time, endpoints in each, addresses of each.
FAR_FILES, FAR_ENDPOINTS, FAR_ADDRESSES = 20, 10, 10
# Endpoints that have labels of their own at once: later as many lose them as get some, so that the set stays as large.
OWN_LABELS = 200


@dataclass
class Churn:
    """A folder of sources that changes. `right` says of each client whether its requests pass now."""

    folder: Path
    size: Scale = field(default_factory=Scale)
    right: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.size.seed)
        self._staging = self.folder.parent.parent / "staging"
        self._pods: dict[Path, list[Object]] = {}
        self._texts: dict[Path, list[str]] = {}
        self._far: deque[Path] = deque()
        self._own: deque[tuple[Path, int]] = deque()
        self._made = 0
        self._wide_on = False

    def write(self) -> None:
        """Make the folder as it is before the first change."""
        self.folder.mkdir(parents=True)
        self._staging.mkdir()
        pods, rest = [], [_node(NODE, "127.0.0.1"), _node("far", "192.0.2.2")]
        for item in scale(self.size):
            (pods if item["kind"] == "Pod" else rest).append(item)
        for start in range(0, len(pods), OBJECTS_PER_FILE):
            path = self.folder / f"pods-{start // OBJECTS_PER_FILE:04}.yaml"
            self._pods[path] = [{**pod, "spec": {"nodeName": NODE}} for pod in pods[start : start + OBJECTS_PER_FILE]]
        for path, held in self._pods.items():
            self._texts[path] = [_pod_text(pod) for pod in held]
            self._replace(path, self._texts[path])
        for start in range(0, len(rest), OBJECTS_PER_FILE):
            path = self.folder / f"rest-{start // OBJECTS_PER_FILE:04}.yaml"
            path.write_text(to_yaml(rest[start : start + OBJECTS_PER_FILE]))
        (self.folder / "judged.yaml").write_text(to_yaml(_judged()))
        for client in CLIENTS:
            self.right[client] = client == OPEN
            self._put_client(client)
        self.change_wide()
        for _ in range(FAR_FILES):
            self.add_addresses()

    def change_endpoint(self) -> None:
        """
        One endpoint of this node is another one from now on.

        Of ten changes six are a replacement, three another workload's labels, one brings labels nobody had.
        """
        kind = self._random.randrange(10)
        if 6 <= kind < 9 and len(self._own) > OWN_LABELS:
            path, index = self._own.popleft()
        else:
            path = self._random.choice(list(self._pods))
            index = self._random.randrange(len(self._pods[path]))
        if kind == 9:
            self._own.append((path, index))
        held = self._pods[path]
        held[index] = self._changed(kind, held[index], held)
        self._texts[path][index] = _pod_text(held[index])
        self._replace(path, self._texts[path])

    def move_client(self, client: str) -> None:
        """A judged client changes its labels, and with them whether its requests pass."""
        self.right[client] = not self.right[client]
        self._put_client(client)

    def change_wide(self) -> None:
        """The policy for everybody lets the client WIDE pass, or no more."""
        self._wide_on = not self._wide_on
        self.right[WIDE] = self._wide_on
        self._replace(self.folder / "wide.yaml", [to_yaml([_wide(self._wide_on)])])

    def add_addresses(self) -> None:
        """A hundred addresses come, of ten endpoints of another node; the oldest hundred go."""
        chosen = [pod["metadata"] for pod in self._random.choice(list(self._pods.values()))[:FAR_ENDPOINTS]]
        path = self.folder / f"far-{self._made:08}.yaml"
        self._replace(path, [_pod_text(self._far_pod(metadata)) for metadata in chosen])
        self._far.append(path)
        if len(self._far) > FAR_FILES:
            self._far.popleft().unlink()

    def _changed(self, kind: int, pod: Object, near: list[Object]) -> Object:
        self._made += 1
        metadata = dict(pod["metadata"])
        place, own = metadata["namespace"], metadata["labels"]
        common = {key: value for key, value in own.items() if key != "version"}
        others = [m["labels"] for m in (one["metadata"] for one in near) if m["namespace"] == place]
        others = [labels for labels in (*others, common) if labels != own and "version" not in labels]
        if kind < 6 or (kind < 9 and not others):
            metadata["name"] = f"{metadata['labels']['app']}-r{self._made}"
            return {**pod, "metadata": metadata, "status": {"podIPs": [{"ip": self._address(12)}]}}
        labels = self._random.choice(others) if kind < 9 else {**own, "version": f"v{self._made}"}
        return {**pod, "metadata": {**metadata, "labels": labels}}

    def _far_pod(self, metadata: Object) -> Object:
        self._made += 1
        name = f"{metadata['labels']['app']}-f{self._made}"
        status = {"podIPs": [{"ip": self._address(64)} for _ in range(FAR_ADDRESSES)]}
        return {"metadata": {**metadata, "name": name}, "spec": {"nodeName": "far"}, "status": status}

    def _address(self, first: int) -> str:
        """One nobody has: they come round after four million."""
        self._made += 1
        number = self._made % (1 << 22)
        return f"10.{first + (number >> 16)}.{number >> 8 & 255}.{number & 255}"

    def _put_client(self, client: str) -> None:
        access = GRANTED if self.right[client] and client != WIDE else REFUSED
        metadata = {"name": client, "namespace": NAMESPACE, "labels": {"access": access, "client": client}}
        status = {"podIPs": [{"ip": CLIENTS[client]}]}
        pod = {"metadata": metadata, "spec": {"nodeName": NODE}, "status": status}
        # Others have both sets of labels all the time: to move is to become like a workload that is there.
        twins = [_twin(client, number, word) for number, word in enumerate((GRANTED, REFUSED))]
        self._replace(self.folder / f"client-{client}.yaml", [_pod_text(one) for one in (pod, *twins)])

    def _replace(self, path: Path, texts: list[str]) -> None:
        staged = self._staging / path.name
        staged.write_text("---\n".join(texts))
        os.replace(staged, path)


def _twin(client: str, number: int, access: str) -> Object:
    last = CLIENTS[client].rpartition(".")[2]
    metadata = {"name": f"{client}-{access}", "namespace": NAMESPACE, "labels": {"access": access, "client": client}}
    return {"metadata": metadata, "spec": {"nodeName": NODE}, "status": {"podIPs": [{"ip": f"198.51.{number}.{last}"}]}}


def _pod_text(pod: Object) -> str:
    """A pod as YAML; ten times faster than the library, so that making changes takes nothing from the node."""
    metadata = pod["metadata"]
    labels = "".join(f"    {key}: {value}\n" for key, value in metadata["labels"].items())
    addresses = "".join(f"  - ip: {item['ip']}\n" for item in pod["status"]["podIPs"])
    return (
        f"apiVersion: v1\nkind: Pod\nmetadata:\n  name: {metadata['name']}\n  namespace: {metadata['namespace']}\n"
        f"  labels:\n{labels}spec:\n  nodeName: {pod['spec']['nodeName']}\nstatus:\n  podIPs:\n{addresses}"
    )


def _node(name: str, address: str) -> Object:
    status = {"addresses": [{"type": "InternalIP", "address": address}]}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": status}


def _judged() -> list[Object]:
    """The server that judged clients call, and the policy that lets some of them pass."""
    metadata = {"name": "server", "namespace": NAMESPACE, "labels": {"app": "server"}}
    server = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"nodeName": NODE}}
    spec = {
        "endpointSelector": {"matchLabels": {"app": "server"}},
        "ingress": [
            {
                "fromEndpoints": [{"matchLabels": {"access": GRANTED}}],
                "toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"path": "/.*"}]}}],
            }
        ],
    }
    policy = {"name": "judged", "namespace": NAMESPACE}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {**server, "status": {"podIPs": [{"ip": "192.0.2.80"}]}},
        {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": policy, "spec": spec},
    ]


def _wide(is_on: bool) -> Object:
    peer = {"matchLabels": {"client": WIDE if is_on else "nobody", "io.kubernetes.pod.namespace": NAMESPACE}}
    ports = [{"ports": [{"port": "80", "protocol": "TCP"}]}]
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": "wide"},
        "spec": {"endpointSelector": {}, "ingress": [{"fromEndpoints": [peer], "toPorts": ports}]},
    }
