# SPDX-License-Identifier: Apache-2.0
"""Rules, routes and sysctls of a host that steers: set, found missing, put back exactly."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from ext_authz.agent.attachments import Attachment
from ext_authz.agent.datapath_host import Host
from ext_authz.datapath.routing import Routing, RoutingError
from ext_authz.state import State
from tests.bpf.net import Network
from tests.bpf.state import difference, namespace_state

T = TypeVar("T")
_BREAKS = {
    "ip rule del pref 8": "pref 8",
    "ip -6 rule del pref 9": "pref 9",
    "ip route flush table 2004": "table 2004",
    "ip rule add pref 5 from 10.0.0.0/8 lookup main": "in front",
    "sysctl -qw net.ipv4.ip_forward=0": "ip_forward",
    "sysctl -qw net.ipv4.tcp_early_demux=1": "early_demux",
}


def run(net: Network, line: str) -> None:
    subprocess.run(net.node.command(line.split()), check=True, capture_output=True)


def inside(net: Network, call: Callable[[], T]) -> T:
    with net.node.inside():
        return call()


def test_everything_is_as_before_when_it_is_restored(net: Network, folder: Path) -> None:
    for name in ("ipv4.ip_forward", "ipv6.conf.all.forwarding", "ipv4.conf.all.rp_filter"):
        net.node.sysctl(name, int(name.endswith("rp_filter")))
    end = net.add("client", "10.1.0.1")
    before = namespace_state(net.node)
    routing = Routing(folder / "routing.json")
    inside(net, routing.set)
    inside(net, lambda: routing.add(end.veth))
    assert inside(net, routing.check) == inside(net, lambda: routing.check_interface(end.veth)) == []
    assert difference(before, namespace_state(net.node))
    assert inside(net, routing.restore) == []
    assert difference(before, namespace_state(net.node)) == []
    assert not (folder / "routing.json").exists()


def test_who_comes_after_a_crash_can_still_restore(net: Network, folder: Path) -> None:
    net.node.sysctl("ipv4.ip_forward", 0)
    before = namespace_state(net.node)
    inside(net, Routing(folder / "routing.json").set)
    inside(net, Routing(folder / "routing.json").set)
    assert inside(net, Routing(folder / "routing.json").restore) == []
    assert difference(before, namespace_state(net.node)) == []


def test_what_was_there_before_stays(net: Network, folder: Path) -> None:
    run(net, "ip rule add pref 9 fwmark 0x200/0xf00 lookup 2004")
    before = namespace_state(net.node)
    routing = Routing(folder / "routing.json")
    inside(net, routing.set)
    assert inside(net, routing.restore) == []
    assert difference(before, namespace_state(net.node)) == []


def test_what_somebody_else_set_since_is_left_alone(net: Network, folder: Path) -> None:
    end = net.add("client", "10.1.0.1")
    net.node.sysctl("ipv4.conf.all.rp_filter", 1)
    routing = Routing(folder / "routing.json")
    inside(net, lambda: routing.add(end.veth))
    net.node.sysctl(f"ipv4.conf.{end.veth}.rp_filter", 0)
    problems = inside(net, lambda: routing.remove(end.veth))
    assert len(problems) == 1
    assert "rp_filter" in problems[0]
    with net.node.inside():
        conf = Path(f"/proc/sys/net/ipv4/conf/{end.veth}")
        assert (conf / "rp_filter").read_text().strip() == "0"
        assert (conf / "accept_local").read_text().strip() == "0"


def test_nothing_is_remembered_of_an_interface_that_went(net: Network, folder: Path) -> None:
    """Workloads come and go: the record is written whole, and the next interface of a name is another one."""
    end = net.add("client", "10.1.0.1")
    state = State(folder)
    state.datapath.mkdir(parents=True)
    host, record = Host(state), state.datapath / "routing.json"
    attachment = Attachment("default", "client", ("10.1.0.1",), 1, ifindex=end.ifindex)
    inside(net, lambda: host.add(attachment))
    assert list(json.loads(record.read_text())["sysctls"]) == [f"ipv4/conf/{end.veth}/accept_local"]
    run(net, f"ip link del {end.veth}")
    assert inside(net, lambda: host.remove(attachment)) == []
    assert json.loads(record.read_text())["sysctls"] == {}


@pytest.mark.parametrize("line", _BREAKS)
def test_whatever_breaks_steering_is_named(line: str, net: Network, folder: Path) -> None:
    routing = Routing(folder / "routing.json")
    inside(net, routing.set)
    run(net, line)
    found = inside(net, routing.check)
    assert len(found) == 1
    assert _BREAKS[line] in found[0]


def test_a_table_of_somebody_else_is_not_taken(net: Network, folder: Path) -> None:
    net.add("client", "10.1.0.1")
    run(net, "ip route add 10.9.0.0/16 dev lxc1 table 2004")
    before = namespace_state(net.node)
    routing = Routing(folder / "routing.json")
    with pytest.raises(RoutingError, match="in use"):
        inside(net, routing.set)
    assert inside(net, routing.restore) == []
    assert difference(before, namespace_state(net.node)) == []


def test_what_somebody_flushed_is_put_back_and_undone_once(net: Network, folder: Path) -> None:
    before = namespace_state(net.node)
    routing = Routing(folder / "routing.json")
    inside(net, routing.set)
    for _ in range(3):
        for line in ("ip rule del pref 8", "ip -6 rule del pref 9", "ip route flush table 2004"):
            run(net, line)
        inside(net, routing.mend)
        assert inside(net, routing.check) == []
    record = json.loads((folder / "routing.json").read_text())
    assert (len(record["rules"]), len(record["routes"])) == (6, 2)
    assert inside(net, routing.restore) == []
    assert difference(before, namespace_state(net.node)) == []


def test_what_was_changed_before_the_host_was_started_anew_is_not_put_back(net: Network, folder: Path) -> None:
    net.node.sysctl("ipv4.ip_forward", 0)
    path = folder / "routing.json"
    inside(net, Routing(path).set)
    path.write_text(json.dumps({**json.loads(path.read_text()), "boot": "an earlier one"}))
    # As whoever starts this host now wants it.
    before = namespace_state(net.node)
    assert inside(net, Routing(path).restore) == []
    assert difference(before, namespace_state(net.node)) == []


def test_a_record_that_cannot_be_read_is_said(folder: Path) -> None:
    (folder / "routing.json").write_text("{")
    with pytest.raises(RoutingError, match=r"routing\.json"):
        Routing(folder / "routing.json")
