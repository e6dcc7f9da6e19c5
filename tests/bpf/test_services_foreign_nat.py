# SPDX-License-Identifier: Apache-2.0
"""A host whose own NAT answers for Services (kube-proxy): it must not lead where policy denies."""

from __future__ import annotations

import errno
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ext_authz.play.network import End
from tests.bpf.net import Capture
from tests.bpf.service_rows import SERVICE, service_key
from tests.bpf.steered import Steered, http_server, policy
from tests.conftest import missing

VIP, VIP6, REMOTE, REMOTE6 = "10.96.0.10", "fd96::10", "10.9.0.2", "fd00:9::2"
PAIRS = [(VIP, REMOTE), (VIP6, REMOTE6)]
WORLD = policy("egress:\n- toEntities: [world]\n- toEndpoints: [{matchLabels: {app: other}}]", app="client")


@pytest.fixture
def site(folder: Path, cgroup: Path) -> Iterator[Steered]:
    if shutil.which("nft") is None:
        missing("nft is missing")
    with Steered(folder, cgroup) as made:
        made.add("client", "10.1.0.1", "fd00:1::1")
        # A pod of another host: known to policy, not attached here.
        remote = made.outside("remote", REMOTE, REMOTE6)
        made._pods["remote"] = remote.addresses
        for family, vip, target in (("ip", VIP, REMOTE), ("ip6", VIP6, f"[{REMOTE6}]")):
            made.host.run(["nft", f"add table {family} proxy"])
            made.host.run(["nft", f"add chain {family} proxy in {{ type nat hook prerouting priority -100; }}"])
            rule = f"{family} daddr {vip} tcp dport 80 dnat to {target}:8080"
            made.host.run(["nft", f"add rule {family} proxy in {rule}"])
            made.kernel.update("services", service_key((vip, 80)), SERVICE.pack(16, 1, 0, 1))
        yield made


def connects(end: End, target: str) -> int:
    """The error of a connection, 0 if it came about."""
    with end.socket(socket.AF_INET6 if ":" in target else socket.AF_INET) as line:
        line.settimeout(2)
        return line.connect_ex((target, 80))


@pytest.mark.parametrize(("vip", "remote"), PAIRS, ids=["ipv4", "ipv6"])
def test_the_world_is_no_way_to_a_pod_that_policy_denies(site: Steered, vip: str, remote: str) -> None:
    client, server = site.net.ends["client"], site.net.ends["remote"]
    site.apply(WORLD)
    with http_server(server, 8080) as seen, Capture(server) as frames:
        assert connects(client, vip) == errno.ECONNREFUSED
        assert not [one for one in frames.read() if one[12:14] != b"\x08\x06" and b"\x1f\x90" in one]
        site.kernel.delete("services", service_key((vip, 80)))
        assert connects(client, vip) == 0, "the host's NAT would lead there"
    assert not seen.seen


def test_a_workload_without_a_policy_of_egress_leaves_it_to_the_host(site: Steered) -> None:
    client, server = site.net.ends["client"], site.net.ends["remote"]
    site.apply(policy("ingress:\n- fromEntities: [host]", app="client"))
    with http_server(server, 8080):
        assert connects(client, VIP) == connects(client, VIP6) == 0
