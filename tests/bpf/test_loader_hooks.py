# SPDX-License-Identifier: Apache-2.0
"""Programs on their hooks: tcx links and clsact filters, replaced under traffic, gone after a clean-up."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ext_authz.datapath import Datapath, DatapathError
from ext_authz.datapath.hooks import EGRESS, INGRESS
from ext_authz.datapath.syscall import AttachType
from tests.bpf.loader_objects import DROP, UNSPEC, build
from tests.bpf.net import GATEWAY4, INTERFACE, End, Network, eventually
from tests.bpf.state import difference, namespace_state

SIZES = {"endpoints": 64, "prefixes": 64, "sides": 16, "peers": 64, "spans": 64, "connections": 64}
PORT = 5353
UPGRADES = int(os.environ.get("IDMESH_UPGRADES", "20"))
KILLS = int(os.environ.get("IDMESH_LOADER_KILLS", "5"))
STEER = 'SEC("sk_lookup") int choose(struct bpf_sk_lookup *context) { return 1; }'
SOCKETS = 'SEC("cgroup_skb/egress") int keep(struct __sk_buff *skb) { return 1; }'
CGROUP_EGRESS = 1


@pytest.fixture(scope="module")
def passing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("passing"), answer=UNSPEC, more=STEER + SOCKETS)


@pytest.fixture(scope="module")
def dropping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("dropping"), answer=DROP)


@pytest.fixture(params=[False, True], ids=["tcx", "clsact"])
def opened(request: pytest.FixtureRequest, net: Network, folder: Path) -> Iterator[Callable[[Path], Datapath]]:
    """Opens the data path on the node; cleaned up at the end, and then the node is as it was before."""
    made: list[Datapath] = []

    def open_path(objects: Path) -> Datapath:
        made.append(Datapath.open(folder / "bpf", objects, SIZES, clsact=request.param))
        return made[-1]

    yield open_path
    made[-1].cleanup(net.node.descriptor)
    assert not (folder / "bpf").exists()


def arrivals(net: Network, end: End, send: Callable[[], object]) -> int:
    """How many of a workload's datagrams reach its node while something is done; one every millisecond or so."""
    with (
        net.node.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        end.socket(socket.AF_INET, socket.SOCK_DGRAM) as line,
    ):
        server.bind(("0.0.0.0", PORT))
        server.settimeout(1.0)
        done, sent = threading.Event(), 0

        def run() -> None:
            send()
            done.set()

        worker = threading.Thread(target=run)
        worker.start()
        count = 0
        while not done.is_set():
            line.sendto(b"x", (GATEWAY4, PORT))
            sent += 1
            time.sleep(0.001)
            count += _drain(server)
        worker.join()
        count += _drain(server)
    return count - sent


def _drain(server: socket.socket) -> int:
    server.setblocking(False)
    count = 0
    while True:
        try:
            server.recv(64)
        except BlockingIOError:
            return count
        count += 1


def reaches(net: Network, end: End) -> bool:
    return arrivals(net, end, lambda: time.sleep(0.02)) == 0


def test_programs_judge_from_attach_to_detach(net: Network, opened: Callable[[Path], Datapath], dropping: Path) -> None:
    end, other = net.add("client", "10.1.0.1"), net.add("other", "10.1.0.2")
    before = namespace_state(net.node)
    assert reaches(net, end)
    datapath = opened(dropping)
    datapath.attach(end.ifindex, end.addresses, netns=net.node.descriptor)
    assert datapath.attached(net.node.descriptor) == {end.ifindex}
    assert not reaches(net, end)
    assert reaches(net, other)
    datapath.detach(end.ifindex, netns=net.node.descriptor)
    assert reaches(net, end)
    assert datapath.attached(net.node.descriptor) == set()
    assert not difference(before, namespace_state(net.node))


def test_attaching_again_changes_nothing(net: Network, opened: Callable[[Path], Datapath], dropping: Path) -> None:
    end = net.add("client", "10.1.0.1")
    datapath = opened(dropping)
    for _ in range(3):
        datapath.attach(end.ifindex, end.addresses, netns=net.node.descriptor)
    state = namespace_state(net.node)
    assert len(state["tcx"]) + len([line for line in state["tc"] if "bpf" in line and "chain 0 handle" in line]) == 2
    assert not reaches(net, end)


def test_an_upgrade_loses_no_packet(net: Network, opened: Callable[[Path], Datapath], passing: Path) -> None:
    end = net.add("client", "10.1.0.1")
    datapath = opened(passing)
    datapath.attach(end.ifindex, end.addresses, netns=net.node.descriptor)

    def upgrade() -> None:
        with net.node.inside():
            assert [datapath.upgrade() for _ in range(UPGRADES)] == [2] * UPGRADES

    assert arrivals(net, end, upgrade) == 0


def test_an_upgrade_lets_no_packet_past(net: Network, opened: Callable[[Path], Datapath], dropping: Path) -> None:
    end = net.add("client", "10.1.0.1")
    _know_the_gateway(end)
    datapath = opened(dropping)
    datapath.attach(end.ifindex, end.addresses, netns=net.node.descriptor)
    with (
        net.node.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        end.socket(socket.AF_INET, socket.SOCK_DGRAM) as line,
    ):
        server.bind(("0.0.0.0", PORT))
        stop = threading.Event()
        sender = threading.Thread(target=_flood, args=(line, stop, 0.0))
        sender.start()
        with net.node.inside():
            for _ in range(UPGRADES):
                datapath.upgrade()
        stop.set()
        sender.join()
        assert _drain(server) == 0


def test_programs_stay_when_the_agent_dies_and_are_taken_up(
    net: Network, opened: Callable[[Path], Datapath], dropping: Path, passing: Path
) -> None:
    end = net.add("client", "10.1.0.1")
    datapath = opened(dropping)
    datapath.attach(end.ifindex, end.addresses, netns=net.node.descriptor)
    links = {link.name: link.id for link in datapath.hooks.links()}
    datapath.close()
    assert not reaches(net, end)
    with net.node.inside():
        again = opened(passing)
    assert again.attached(net.node.descriptor) == {end.ifindex}
    assert {link.name: link.id for link in again.hooks.links()} == links
    # Neighbours were not found meanwhile, and are asked for again only after a while.
    eventually(lambda: reaches(net, end))


AGENT = """
import sys
from pathlib import Path
from ext_authz.datapath import Datapath
root, objects, ifindex, clsact = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "True"
while True:
    with Datapath.open(root, objects, {sizes}, clsact=clsact) as datapath:
        datapath.attach(ifindex, ["10.1.0.1"])
        print("attached", flush=True)
        for _ in range(3):
            datapath.upgrade()
            datapath.attach(ifindex, ["10.1.0.1", "10.1.0.9"])
"""


@pytest.mark.parametrize("clsact", [False, True], ids=["tcx", "clsact"])
def test_killed_while_opening_attaching_and_upgrading_nothing_gets_past(
    net: Network, folder: Path, dropping: Path, clsact: bool
) -> None:
    end = net.add("client", "10.1.0.1")
    _know_the_gateway(end)
    words = [sys.executable, "-c", AGENT.format(sizes=SIZES), folder / "bpf", dropping, end.ifindex, clsact]
    with (
        net.node.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        end.socket(socket.AF_INET, socket.SOCK_DGRAM) as line,
    ):
        server.bind(("0.0.0.0", PORT))
        stop = threading.Event()
        for number in range(KILLS):
            agent = subprocess.Popen(net.node.command([str(word) for word in words]), stdout=subprocess.PIPE)
            assert agent.stdout is not None
            assert agent.stdout.readline() == b"attached\n"
            if not number:
                sender = threading.Thread(target=_flood, args=(line, stop))
                sender.start()
            time.sleep(random.Random(number).random() * 0.2)
            agent.kill()
            agent.wait()
            agent.stdout.close()
        with net.node.inside(), Datapath.open(folder / "bpf", dropping, SIZES, clsact=clsact) as datapath:
            assert datapath.attached() == {end.ifindex}
            stop.set()
            sender.join()
            assert _drain(server) == 0
            datapath.cleanup()
    eventually(lambda: reaches(net, end))


def _know_the_gateway(end: End) -> None:
    """Without asking: who waits for an answer to ARP sends nothing that could slip through a gap."""
    words = ["ip", "neigh", "replace", GATEWAY4, "lladdr", end.host_mac, "dev", INTERFACE, "nud", "permanent"]
    end.space.run(words)


def _flood(line: socket.socket, stop: threading.Event, pause_s: float = 0.0002) -> None:
    while not stop.is_set():
        line.sendto(b"x", (GATEWAY4, PORT))
        time.sleep(pause_s)


def test_an_interface_that_is_gone_is_forgotten(
    net: Network, opened: Callable[[Path], Datapath], dropping: Path
) -> None:
    end = net.add("client", "10.1.0.1")
    datapath = opened(dropping)
    datapath.attach(end.ifindex, end.addresses, netns=net.node.descriptor)
    datapath.close()
    net.remove("client")
    with net.node.inside():
        again = opened(dropping)
    assert again.attached(net.node.descriptor) == set()
    assert not again.hooks.links()


def test_ours_is_asked_before_a_foreign_program_that_lets_everything_pass(
    net: Network, folder: Path, dropping: Path, passing: Path
) -> None:
    """TC_ACT_OK ends the chain: whoever stands behind is never asked."""
    end = net.add("client", "10.1.0.1")
    foreign = build(folder / "foreign", answer=0)
    with (
        Datapath.open(folder / "first", foreign, SIZES) as first,
        Datapath.open(folder / "bpf", dropping, SIZES) as ours,
    ):
        first.attach(end.ifindex, end.addresses, netns=net.node.descriptor)
        assert reaches(net, end)
        ours.attach(end.ifindex, end.addresses, netns=net.node.descriptor)
        assert not reaches(net, end)
        ours.cleanup()
        first.cleanup()


def test_an_interface_that_is_not_there_is_no_reason_for_filters(net: Network, folder: Path, dropping: Path) -> None:
    datapath = Datapath.open(folder / "bpf", dropping, SIZES)
    with pytest.raises(DatapathError, match=r"from_workload cannot be attached .*No such device"):
        datapath.attach(4711, netns=net.node.descriptor)
    assert datapath.attached(net.node.descriptor) == set()
    datapath.cleanup()


def test_other_hooks_are_pinned_replaced_and_detached(net: Network, folder: Path, cgroup: Path, passing: Path) -> None:
    datapath = Datapath.open(folder / "bpf", passing, SIZES)
    descriptor = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    before = namespace_state(net.node)
    datapath.link("choose-node", "choose", net.node.descriptor, AttachType.SK_LOOKUP)
    datapath.link("keep-envoy", "keep", descriptor, CGROUP_EGRESS)
    os.close(descriptor)
    assert "new: sk_lookup" in " ".join(difference(before, namespace_state(net.node)))
    found = {link.name: link for link in datapath.hooks.links()}
    assert found["keep-envoy"].target == cgroup.stat().st_ino
    assert found["choose-node"].attach_type == AttachType.SK_LOOKUP
    programs = {name: link.program for name, link in found.items()}
    assert datapath.upgrade() == 2
    assert not set(programs.values()) & {link.program for link in datapath.hooks.links()}
    datapath.unlink("keep-envoy")
    datapath.cleanup()
    assert not difference(before, namespace_state(net.node))


def test_a_link_follows_its_name_to_another_cgroup(net: Network, folder: Path, cgroup: Path, passing: Path) -> None:
    """A cgroup that was removed lives on in its sockets, and a link to it, too: that must not pass for a new one's."""
    datapath = Datapath.open(folder / "bpf", passing, SIZES)
    places = [cgroup / "first", cgroup / "second"]
    for place in places:
        place.mkdir()
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        datapath.link("keep-1", "keep", descriptor, CGROUP_EGRESS)
        os.close(descriptor)
        (link,) = datapath.hooks.links()
        assert link.target == place.stat().st_ino
        assert datapath.enforced().links == {"keep-1"}
    datapath.link("choose", "choose", net.node.descriptor, AttachType.SK_LOOKUP)
    other = net.add("other", "10.1.0.1")
    datapath.link("choose", "choose", other.space.descriptor, AttachType.SK_LOOKUP)
    (link,) = [one for one in datapath.hooks.links() if one.name == "choose"]
    assert link.target == os.fstat(other.space.descriptor).st_ino
    datapath.cleanup()


def test_a_program_that_somebody_took_off_is_missed(
    net: Network, opened: Callable[[Path], Datapath], dropping: Path
) -> None:
    end = net.add("client", "10.1.0.1")
    datapath = opened(dropping)
    datapath.attach(end.ifindex, end.addresses, netns=net.node.descriptor)
    assert datapath.attached(net.node.descriptor) == {end.ifindex}
    if datapath.hooks.links():
        datapath.unlink(f"to_workload-{end.ifindex}")
    else:
        net.node.run(["tc", "filter", "del", "dev", end.veth, "egress"])
    assert datapath.attached(net.node.descriptor) == set()
    datapath.attach(end.ifindex, end.addresses, netns=net.node.descriptor)
    assert datapath.attached(net.node.descriptor) == {end.ifindex}


def test_both_directions_are_links_of_their_own(net: Network, folder: Path, dropping: Path) -> None:
    end = net.add("client", "10.1.0.1")
    datapath = Datapath.open(folder / "bpf", dropping, SIZES)
    datapath.attach(end.ifindex, end.addresses, netns=net.node.descriptor)
    types = {link.name: link.attach_type for link in datapath.hooks.links()}
    assert types == {f"from_workload-{end.ifindex}": INGRESS, f"to_workload-{end.ifindex}": EGRESS}
    datapath.cleanup()


def test_ip_netns_exec_does_not_hide_the_pins(folder: Path, dropping: Path) -> None:
    """It mounts /sys anew, where others keep theirs."""
    datapath = Datapath.open(folder / "bpf", dropping, SIZES)
    hidden = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"umount -l /sys 2>/dev/null; ls {datapath.pins}/state"], check=False
    )
    assert hidden.returncode == 0
    datapath.cleanup()
