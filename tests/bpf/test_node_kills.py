# SPDX-License-Identifier: Apache-2.0
"""
The agent is killed at any moment of load, update, attach and detach: nothing passes unjudged, and the next goes on.

IDMESH_KILLS says how often; few times by default.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bpf.net import Network, connects, eventually, serve_greeting
from tests.bpf.node_run import NodeRun, settled
from tests.bpf.state import difference, namespace_state

KILLS = int(os.environ.get("IDMESH_KILLS", "3"))
WEB = ("10.0.0.3", 80)
ENDS = {"client": "10.0.0.1", "other": "10.0.0.2", "web": "10.0.0.3", "more": "10.0.0.4"}
POLICY = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: default}
spec:
  description: version %d
  endpointSelector: {matchLabels: {app: web}}
  ingress: [{fromEndpoints: [{matchLabels: {app: client}}], toPorts: [{ports: [{port: "%d"}, {port: "80"}]}]}]
"""


@pytest.fixture
def node(net: Network, folder: Path, cgroup: Path) -> Iterator[NodeRun]:
    for name, address in ENDS.items():
        net.add(name, address)
    made = NodeRun(net, folder, cgroup)
    made.write("policies/web.yaml", POLICY % (0, 1000))
    before = settled(net)
    try:
        yield made
    finally:
        made.end()
        assert difference(before, namespace_state(net.node)) == []


class Intruder:
    """Tries to get in all the time; whatever succeeds was not judged."""

    def __init__(self, node: NodeRun) -> None:
        self._node = node
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.tried = 0
        self.got_in: list[float] = []

    def _run(self) -> None:
        while not self._ending.is_set():
            self.tried += 1
            if connects(self._node.net.ends["other"], WEB, 0.05):
                self.got_in.append(time.monotonic())

    def __enter__(self) -> Intruder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()


def busy(node: NodeRun, turn: int, chance: random.Random) -> subprocess.Popen[bytes] | None:
    """Something that the agent is in the middle of when it is killed."""
    node.write("policies/web.yaml", POLICY % (turn, 1000 + turn))
    kind = chance.choice(["update", "attach", "detach"])
    if kind == "update":
        return None
    words = ["endpoint", kind, "more"]
    if kind == "attach":
        words += ["--netns", node.net.ends["more"].space.path, "--labels", "app=more"]
    return subprocess.Popen(node.command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_a_killed_agent_leaves_nothing_unjudged_and_is_followed_cleanly(node: NodeRun) -> None:
    chance = random.Random(4)
    node.start()
    for name in ("client", "other", "web"):
        node.attach(name, app=name)
    with serve_greeting(node.net.ends["web"], *WEB) as listener, Intruder(node) as intruder:
        for turn in range(1, KILLS + 1):
            request = busy(node, turn, chance)
            time.sleep(chance.uniform(0, 0.6))
            node.kill()
            if request is not None:
                request.wait(30)
            assert connects(node.net.ends["client"], WEB, 2.0), node.log()
            node.start()
            revision = node.json("status")["revision"]
            eventually(lambda at=revision: node.json("datapath", "status")["revision"] >= at, 30)
            assert connects(node.net.ends["client"], WEB, 2.0), node.log()
            with contextlib.suppress(OSError):
                listener.settimeout(0)
                while True:
                    listener.accept()[0].close()
        assert intruder.tried > KILLS
        assert intruder.got_in == []
    stages = {one["stage"] for one in node.json("datapath", "status")["attached"]}
    assert stages == {"attached"}
