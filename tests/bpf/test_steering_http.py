# SPDX-License-Identifier: Apache-2.0
"""Requests that policy wants judged one by one: through this host's Envoy, and seen as the client's own."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest

from ext_authz.envoy_binary import find_envoy
from ext_authz.play.network import End
from tests.bpf.net import eventually
from tests.bpf.steered import Steered, http_server, policy

pytestmark = pytest.mark.needs_envoy

HTTP = """
  toPorts:
  - ports: [{{port: '8080', protocol: TCP}}]
    rules: {{http: [{{path: '{path}'}}]}}
"""
PAIRS = [("10.1.0.1", "10.1.0.2"), ("fd00:1::1", "fd00:1::2")]
both_versions = pytest.mark.parametrize("addresses", PAIRS, ids=["ipv4", "ipv6"])


def ingress(path: str, peers: str = "fromEndpoints: [{matchLabels: {app: client}}]", app: str = "server") -> str:
    return policy(f"ingress:\n- {peers}{HTTP.format(path=path)}", f"in-{app}", app)


def egress(path: str, peers: str = "toEndpoints: [{matchLabels: {app: server}}]") -> str:
    return policy(f"egress:\n- {peers}{HTTP.format(path=path)}", "out", "client")


def url(address: str, path: str) -> str:
    return f"http://[{address}]:8080{path}" if ":" in address else f"http://{address}:8080{path}"


@pytest.fixture
def site(folder: Path, cgroup: Path) -> Iterator[Steered]:
    with Steered(folder, cgroup) as made:
        yield made


def answers(line: http.client.HTTPConnection, path: str) -> bool:
    try:
        line.request("GET", path)
        return bool(line.getresponse().status)
    except OSError:
        return False


@both_versions
@pytest.mark.parametrize(
    ("policies", "passes"),
    [(ingress("/a"), "/a"), (egress("/a"), "/a"), (egress("/[ab]") + ingress("/[bc]"), "/b")],
    ids=["ingress", "egress", "both"],
)
def test_each_request_is_judged_once_and_comes_from_its_client(
    addresses: tuple[str, str], policies: str, passes: str, site: Steered
) -> None:
    client, server = site.add("client", addresses[0]), site.add("server", addresses[1])
    site.apply(policies)
    site.start(find_envoy())
    with http_server(server, 8080) as seen:
        answers = {path: site.get(client, url(addresses[1], path)).status for path in ("/a", "/b", "/c")}
        assert answers == {path: 200 if path == passes else 403 for path in ("/a", "/b", "/c")}
        assert [(one.peer, one.path) for one in seen.seen] == [(addresses[0], passes)]
    assert (site.stat("idmesh.allowed"), site.stat("idmesh.denied")) == (1, 2)


def test_the_server_reads_what_the_client_wrote(site: Steered) -> None:
    """No header is ours, and those by which proxies among the workloads speak pass unchanged."""
    client, server = site.add("client", "10.1.0.1"), site.add("server", "10.1.0.2")
    site.apply(ingress("/a"))
    site.start(find_envoy())
    sent = {"Host": "shop.test", "X-Forwarded-For": "192.0.2.9", "X-Forwarded-Proto": "https", "X-Request-Id": "mine"}
    with http_server(server, 8080) as seen:
        line = site.client(client, url("10.1.0.2", "/a"))
        line.request("GET", "/a", headers=sent)
        assert line.getresponse().status == 200
        line.close()
    got = {name.lower(): value for name, value in seen.seen[0].headers.items()}
    assert got == {name.lower(): value for name, value in sent.items()} | {"accept-encoding": "identity"}


@both_versions
def test_the_world_comes_in_by_the_workloads_own_interface(addresses: tuple[str, str], site: Steered) -> None:
    server = site.add("server", addresses[1])
    outside = site.outside("outside", "203.0.113.7", "2001:db8::7")
    site.apply(ingress("/a", "fromEntities: [world]"))
    site.start(find_envoy())
    with http_server(server, 8080) as seen:
        assert site.get(outside, url(addresses[1], "/a")).status == 200
        assert site.get(outside, url(addresses[1], "/b")).status == 403
    assert [one.peer for one in seen.seen] == [outside.address(6 if ":" in addresses[1] else 4)]


@both_versions
def test_answers_of_the_world_find_back_to_envoy(addresses: tuple[str, str], site: Steered) -> None:
    client = site.add("client", addresses[0])
    outside = site.outside("outside", "203.0.113.7", "2001:db8::7")
    target = outside.address(6 if ":" in addresses[0] else 4)
    site.apply(egress("/a", "toEntities: [world]"))
    site.start(find_envoy())
    with http_server(outside, 8080) as seen:
        assert site.get(client, url(target, "/a")).status == 200
        assert site.get(client, url(target, "/b")).status == 403
    assert [one.peer for one in seen.seen] == [addresses[0]]


@both_versions
def test_a_process_of_this_host_is_the_host(addresses: tuple[str, str], site: Steered) -> None:
    server = site.add("server", addresses[1])
    site.apply(ingress("/a", "fromEntities: [host]"))
    site.start(find_envoy())
    with http_server(server, 8080) as seen:
        assert site.get(site.host, url(addresses[1], "/a")).status == 200
        assert site.get(site.host, url(addresses[1], "/b")).status == 403
    assert len(seen.seen) == 1


def test_a_cidr_is_never_the_host(site: Steered) -> None:
    """Its number, 2^24 and 1, would read as the host's where 24 bits are kept."""
    server = site.add("server", "10.1.0.2")
    site.add("other", "10.1.0.3")
    outside = site.outside("outside", "203.0.113.7")
    host_only = ingress("/a", "fromEntities: [host]")
    named = ingress("/a", "fromCIDR: [203.0.113.0/24]", "other")
    site.apply(host_only + named)
    assert site.identity("203.0.113.7") == (1 << 24) + 1
    site.start(find_envoy())
    with http_server(server, 8080) as seen:
        assert site.get(outside, url("10.1.0.2", "/a"), timeout_s=1).status == 0
        site.wait_for(site.apply(ingress("/a", "fromCIDR: [203.0.113.0/24]")))
        assert site.get(outside, url("10.1.0.2", "/a")).status == 200
        assert site.get(outside, url("10.1.0.2", "/b")).status == 403
    assert [one.peer for one in seen.seen] == ["203.0.113.7"]


def test_no_two_clients_share_a_connection_to_the_server(site: Steered) -> None:
    first, second = site.add("client", "10.1.0.1"), site.add("other", "10.1.0.3")
    server = site.add("server", "10.1.0.2")
    site.apply(ingress("/.*", "fromEndpoints: [{}]"))
    site.start(find_envoy(), concurrency=1)
    with http_server(server, 8080) as seen:
        for _ in range(5):
            assert site.get(first, url("10.1.0.2", "/first")).status == 200
            assert site.get(second, url("10.1.0.2", "/second")).status == 200
    assert {(one.peer, one.path) for one in seen.seen} == {("10.1.0.1", "/first"), ("10.1.0.3", "/second")}
    assert site.stat("cluster.upstream.upstream_cx_total") == 2


def test_a_connection_that_stays_follows_the_policy(site: Steered) -> None:
    client, server = site.add("client", "10.1.0.1"), site.add("server", "10.1.0.2")
    site.apply(ingress("/a"))
    site.start(find_envoy())
    with http_server(server, 8080):
        line = site.client(client, url("10.1.0.2", "/"))

        def status(path: str) -> int:
            line.request("GET", path)
            answer = line.getresponse()
            answer.read()
            return answer.status

        assert (status("/a"), status("/b")) == (200, 403)
        site.wait_for(site.apply(ingress("/b")))
        assert (status("/a"), status("/b")) == (403, 200)
        line.sock.settimeout(1)
        site.wait_for(site.apply(ingress("/b", "fromEndpoints: [{matchLabels: {app: nobody}}]")))
        with pytest.raises(OSError):
            status("/b")
        line.close()


@both_versions
def test_without_envoy_clients_are_refused_and_nothing_leaks(addresses: tuple[str, str], site: Steered) -> None:
    client, server = site.add("client", addresses[0]), site.add("server", addresses[1])
    site.apply(ingress("/a"))
    site.start(find_envoy())
    with http_server(server, 8080) as seen:
        stays = site.client(client, url(addresses[1], "/a"))
        stays.request("GET", "/a")
        assert stays.getresponse().read() == b"server"
        site.stop(kill=True)
        assert "Refused" in site.get(client, url(addresses[1], "/a")).body
        assert not answers(stays, "/a")
        stays.close()
        assert len(seen.seen) == 1
        site.start(find_envoy())
        eventually(lambda: site.get(client, url(addresses[1], "/a")).status == 200)


def test_whoever_was_not_steered_is_closed(site: Steered) -> None:
    """The listener takes nobody's word, from whatever place on this host."""
    site.add("client", "10.1.0.1")
    site.apply(ingress("/a"))
    site.start(find_envoy())
    for address in ("127.0.0.1", "::1"):
        answer = site.get(site.host, f"http://[{address}]:15001/a" if ":" in address else f"http://{address}:15001/a")
        assert answer.status == 0
    assert site.stat("idmesh.allowed") == site.stat("idmesh.denied") == 0


@both_versions
@pytest.mark.parametrize("where", ["local", "elsewhere", "host"])
def test_envoys_connection_to_a_server_goes_on_without_its_row(
    addresses: tuple[str, str], where: str, site: Steered
) -> None:
    """Forgotten, or idle for longer than rows live."""
    client, server = site.add("client", addresses[0]), site.add("server", addresses[1])
    outside = site.outside("outside", "203.0.113.7", "2001:db8::7")
    own = "fd00:9::1" if ":" in addresses[0] else "10.9.0.1"
    site.host.ip([f"address add {own} dev lo"])
    site.kernel.locals((own,))
    ends = {"local": server, "elsewhere": outside, "host": End("host", site.host, (own,), "", 0, 0, "", "")}
    target = ends[where].address(6 if ":" in addresses[0] else 4)
    site.apply(egress("/[ab]", "toEntities: [all]"))
    site.start(find_envoy(), concurrency=1)
    with http_server(ends[where], 8080):
        for path in ("/a", "/b"):
            assert site.get(client, url(target, path)).status == 200
            for key in site.kernel.rows("connections", 40, 72):
                site.kernel.delete("connections", key)
        assert site.get(client, url(target, "/a")).status == 200
    assert site.stat("cluster.upstream.upstream_cx_total") == 1


@both_versions
def test_a_process_of_this_host_is_a_server_as_any(addresses: tuple[str, str], site: Steered) -> None:
    """What it answers comes in nowhere: it leaves for the client, at whose interface it turns to Envoy."""
    client = site.add("client", addresses[0])
    own = "fd00:9::1" if ":" in addresses[0] else "10.9.0.1"
    site.host.ip([f"address add {own} dev lo"])
    site.kernel.locals((own,))
    site.apply(egress("/a", "toEntities: [host]"))
    site.start(find_envoy())
    with http_server(End("host", site.host, (own,), "", 0, 0, "", ""), 8080) as seen:
        assert site.get(client, url(own, "/a")).status == 200
        assert site.get(client, url(own, "/b")).status == 403
        site.wait_for(site.apply(egress("/a", "toEntities: [host]")))
        assert site.get(client, url(own, "/a")).status == 200
    assert [(one.peer, one.path) for one in seen.seen] == [(addresses[0], "/a")] * 2
