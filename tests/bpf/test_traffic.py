# SPDX-License-Identifier: Apache-2.0
"""What counts in other tests counts: everything passes where nobody judges, and each counter sees it."""

from __future__ import annotations

from tests.bpf.net import Network, eventually
from tests.bpf.traffic import Datagrams, Exchange, Knocking, Opening, Requests, Watch, pages, running

SERVER = "10.0.0.2"


def test_every_flow_is_counted_at_both_ends(net: Network) -> None:
    client, server = net.add("client", "10.0.0.1"), net.add("server", SERVER)
    said, opening = Datagrams(client, server, (SERVER, 80)), Opening(client, server, (SERVER, 81))
    knocking, lasting = Knocking(client, (SERVER, 83)), Exchange(client, server, (SERVER, 82))
    with pages(server, (SERVER, 83)) as asked:
        asking = Requests(client, (SERVER, 83), "/path")
        with Watch(server, "10.0.0.9", "10.0.0.1") as seen, Watch(server, "10.0.0.9", SERVER) as others:
            flows = (said, opening, knocking, lasting, asking)
            with running(*flows):
                eventually(lambda: min(one.times for one in flows) > 40)
            assert [one.broken for one in flows] == [""] * 5
            assert seen.count() > said.sent
            assert said.sent == said.arrived
            assert others.count() == 0
    assert asking.answers == {200: asked["/path"]}
    assert 0 < knocking.came <= knocking.times


def test_what_goes_nowhere_is_told(net: Network) -> None:
    client, server = net.add("client", "10.0.0.1"), net.add("server", SERVER)
    said, lasting = Datagrams(client, server, (SERVER, 80)), Exchange(client, server, (SERVER, 82))
    lasting._server.settimeout(0.2)
    with running(said, lasting):
        eventually(lambda: said.times > 5)
        net.node.ip([f"link set {server.veth} down"])
        eventually(lambda: lasting.broken)
        assert said.arrived < said.sent
        net.node.ip([f"link set {server.veth} up", f"route add {SERVER}/32 dev {server.veth}"])
    assert "TimeoutError" in lasting.broken
