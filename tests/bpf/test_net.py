# SPDX-License-Identifier: Apache-2.0
"""The ground that tests of the data path stand on: it forwards, it is seen whole, and it goes without a trace."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from tests.bpf.net import Capture, Network, connects, serve_greeting
from tests.bpf.state import difference, machine_state, namespace_state


@pytest.mark.parametrize("version", [4, 6])
def test_workloads_reach_each_other_through_the_node(net: Network, version: int) -> None:
    client, server = net.add("client", "10.1.0.1", "fd00:1::1"), net.add("server", "10.1.0.2", "fd00:1::2")
    target = (server.address(version), 80)
    assert not connects(client, target)
    with serve_greeting(server, *target) as listener:
        assert connects(client, target)
        assert listener.accept()[1][0] == client.address(version)


def test_a_capture_sees_what_arrives_and_only_that(net: Network) -> None:
    client, server = net.add("client", "10.1.0.1"), net.add("server", "10.1.0.2")
    with Capture(server) as there, Capture(client) as here:
        client.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"hello there", ("10.1.0.2", 9))
        assert there.wait(b"hello there")[:6] == bytes.fromhex(server.mac.replace(":", ""))
        # The port unreachable that comes back quotes it; the datagram itself did not come here.
        assert all(frame[23] == socket.IPPROTO_ICMP for frame in here.having(b"hello there"))


def test_whatever_changes_in_a_namespace_is_seen(net: Network) -> None:
    end = net.add("one", "10.1.0.1")
    before = namespace_state(net.node)
    assert difference(before, namespace_state(net.node)) == []
    net.node.ip([f"address add 10.9.9.9/32 dev {end.veth}", "rule add pref 9 fwmark 0x200/0xf00 lookup 2004"])
    net.node.ip(["route add local default dev lo table 2004"])
    net.node.sysctl("ipv4.tcp_fwmark_accept", 1)
    subprocess.run(net.node.command(["/sbin/tc", "qdisc", "add", "dev", end.veth, "clsact"]), check=True)
    parts = {line.split(":")[0] for line in difference(before, namespace_state(net.node))}
    assert parts == {"addresses", "rules", "routes", "sysctls", "tc"}


def test_mounts_pins_and_cgroups_are_seen(bpffs: Path, cgroup: Path) -> None:
    (bpffs / "below").mkdir()
    found = machine_state()
    assert str(bpffs) in found["mounts"]
    assert str(bpffs / "below") in found["pins"]
    assert any(str(cgroup) in one for one in found["cgroups"])


def test_a_removed_workload_is_gone_from_the_node(net: Network) -> None:
    before = namespace_state(net.node)
    net.add("one", "10.1.0.1", "fd00:1::1")
    net.remove("one")
    left = [line for line in difference(before, namespace_state(net.node)) if not line.startswith("sysctls")]
    assert left == []
