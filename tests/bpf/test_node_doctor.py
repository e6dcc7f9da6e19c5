# SPDX-License-Identifier: Apache-2.0
"""The doctor names what breaks a data path: each hop is really broken, in a node of the test's own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bpf.net import Network
from tests.bpf.node_run import NodeRun

POLICY = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress: [{fromEndpoints: [{matchLabels: {app: client}}]}]
"""
LISTENER = """\
import socket, sys
line = socket.create_server(("127.0.0.1", 15001))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def node(net: Network, folder: Path, cgroup: Path) -> Iterator[NodeRun]:
    """With one endpoint attached."""
    net.add("web", "10.0.0.3")
    made = NodeRun(net, folder, cgroup)
    made.write("policies/web.yaml", POLICY)
    try:
        made.start()
        made.attach("web", app="web")
        yield made
    finally:
        made.end()


def findings(node: NodeRun) -> list[str]:
    """What the doctor holds against the data path."""
    _, out, error = node.run("doctor", "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert {one["check"] for one in found} >= {"bpf", "datapath probe", "datapath here"}, error
    return [one["text"] for one in found if one["check"].startswith("datapath") and one["grade"] != "ok"]


def test_what_breaks_a_hop_is_named(node: NodeRun) -> None:
    assert findings(node) == []
    space, interface = node.net.node, node.net.ends["web"].veth
    page = node.state.datapath / "page.json"
    node.kill()  # or it would mend some of it

    space.ip(["rule del pref 9 fwmark 0x200/0xf00 lookup 2004", "rule add pref 5 fwmark 0x200/0xf00 lookup main"])
    for name in (f"ipv4.conf.{interface}.rp_filter", f"ipv4.conf.{interface}.src_valid_mark"):
        space.sysctl(name, 1)
    node.state.datapath_pins.chmod(0o755)
    subprocess.run(space.command(["tc", "qdisc", "add", "dev", interface, "clsact"]), check=True)
    page.write_text(json.dumps({**json.loads(page.read_text()), "proxy_port": 15001}))
    found = findings(node)
    for part in (
        "missing: ip -4 rule pref 9 fwmark 0x200/0xf00",
        "in front of ours: ip -4 rule priority 5",
        f"net.ipv4.conf.{interface}.rp_filter",
        "it must be 0700",
        f"{interface}: foreign clsact filters",
        "nobody listens at 127.0.0.1:15001",
    ):
        assert any(part in text for text in found), (part, found)
    # It was tried, and with the rule at pref 8 steering stands it: nobody is blamed without cause.
    assert not any("src_valid_mark" in text for text in found)

    listener = subprocess.Popen(
        space.command([sys.executable, "-c", LISTENER]), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert listener.stdout is not None
        listener.stdout.readline()
        assert any("is not transparent" in text for text in findings(node))
    finally:
        listener.communicate()
    node.state.datapath_pins.chmod(0o700)
