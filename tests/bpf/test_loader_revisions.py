# SPDX-License-Identifier: Apache-2.0
"""
Revisions over time: what stays in force when one does not fit, what a new process finds, when a set of maps must not be
used again, and that no program ever sees half of anything.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ext_authz.casefile import Case, Document
from ext_authz.compiler.compile import Compiler
from ext_authz.datapath import Datapath, MapFull
from ext_authz.datapath.addresses import packed
from ext_authz.datapath.hooks import EGRESS
from ext_authz.datapath.layout import NO_INDEX, row
from ext_authz.engine import Engine
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.play.prepare import Prepared, prepare
from tests.bpf.loader_objects import WORD, build
from tests.bpf.loader_tables import Tables, engine_says, policy_of, questions
from tests.bpf.net import Network
from tests.bpf.site import SETTINGS, allow, pod

SIZES = {"endpoints": 512, "prefixes": 256, "sides": 64, "peers": 256, "spans": 512, "connections": 64}
KILLS = int(os.environ.get("IDMESH_LOADER_KILLS", "5"))
REVISIONS = int(os.environ.get("IDMESH_LOADER_REVISIONS", "12"))
Raw = dict[str, Any]
# Reads an endpoint's row and an interface's, looks away for a while, and reads them again. 1: an endpoint's has become
# another identity's, 2: an interface's another MAC's.
SLOW = """
static long slow_wait(uint32_t turn, uint64_t *until)
{
	return bpf_ktime_get_ns() > *until;
}

SEC("tc") int look_slowly(struct __sk_buff *skb)
{
	uint32_t ifindex = skb->ifindex, identity, mac;
	struct idm_state *word = bpf_map_lookup_elem(&state, &(uint32_t){0});
	struct idm_address key = {.bytes = {[10] = 0xff, [11] = 0xff, [12] = 10, [13] = 1, [14] = 0, [15] = 1}};
	struct idm_attachment *place = bpf_map_lookup_elem(&attachments, &ifindex);
	uint64_t until = bpf_ktime_get_ns() + 3000000;
	volatile struct idm_endpoint_row *row;

	if (!word || !place)
		return 4;
	row = word->generation & 1 ? bpf_map_lookup_elem(&endpoints_1, &key) : bpf_map_lookup_elem(&endpoints_0, &key);
	if (!row)
		return 4;
	identity = row->identity;
	mac = *(volatile uint32_t *)&place->mac[2];
	for (int i = 0; i < 8; i++)
		bpf_loop(1 << 23, slow_wait, &until, 0);
	return (identity != row->identity) | (mac != *(volatile uint32_t *)&place->mac[2]) << 1;
}
"""


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("objects"), more=WORD + SLOW)


@pytest.fixture
def datapath(folder: Path, objects: Path) -> Iterator[Datapath]:
    made = Datapath.open(folder / "bpf", objects, SIZES)
    yield made
    made.cleanup()


class World:
    """Snapshots of one identity domain, one after the other."""

    def __init__(self, domain: int = 1) -> None:
        self._compiler = Compiler(MemoryAllocator(domain))

    def snapshot(self, pods: int = 3, ports: range = range(80, 83)) -> bytes:
        """A server that everybody but itself may reach on these ports, and clients."""
        ends = {"server": pod("server", "10.1.0.1", "fd00:1::1")}
        ends |= {f"client{n}": pod(f"client{n}", f"10.2.{n >> 8}.{n & 255}") for n in range(pods)}
        policies = [_numbered(allow("server", f"client{n}", port), n, port) for n in range(pods) for port in ports]
        fixtures: Raw = {"endpoints": ends, "namespaces": {"default": {}}, "dns_cache": {}, "services": []}
        fixtures |= {"cidr_groups": {}, "secrets": {}}
        documents = tuple(Document(yaml.safe_dump(policy), policy) for policy in policies)
        made = prepare(Case("world", "world.yaml", fixtures, SETTINGS, documents, ()), self._compiler)
        assert isinstance(made, Prepared), made
        return made.snapshot


def _numbered(policy: Raw, number: int, port: int) -> Raw:
    policy["metadata"]["name"] = f"policy-{number}-{port}"
    return policy


def agrees(datapath: Datapath, snapshot: bytes, slot: int | None = None) -> bool:
    """True if a slot (None: the live one) says of everything what the engine says of this snapshot."""
    engine, tables = Engine.open(snapshot), Tables(datapath, slot)
    policies = {index: policy_of(tables, index) for index in range(len(engine.endpoints))}
    return tables.state[f"revision_{tables.slot}"] == engine.revision and all(
        tables.judge(policies[one.endpoint], one.direction, one.identity, one.protocol, one.port)
        == engine_says(engine, one)
        for one in questions(engine)
    )


# ---- what does not fit ----


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("endpoints", {"pods": 600}), ("peers", {"pods": 280}), ("spans", {"pods": 6, "ports": range(1, 400, 2)})],
)
def test_what_does_not_fit_leaves_the_revision_before_in_force(
    datapath: Datapath, name: str, wanted: dict[str, Any]
) -> None:
    world = World()
    small = world.snapshot()
    datapath.publish(small)
    with pytest.raises(MapFull, match=rf"map {name}(_\d)?: revision \d+ needs \d+ rows.*stays in force"):
        datapath.publish(world.snapshot(**wanted))
    assert agrees(datapath, small)
    assert name in datapath.trouble
    again = world.snapshot(pods=4)
    datapath.publish(again)
    assert agrees(datapath, again)
    assert datapath.trouble == ""


def test_a_map_fills_up_where_people_can_see_it(datapath: Datapath) -> None:
    datapath.publish(World().snapshot(pods=100, ports=range(80, 81)))
    infos = {info.name: info for info in datapath.maps()}
    live = infos[f"peers_{datapath.generation & 1}"]
    assert live.rows == 101  # and the host, which may always
    assert live.full == pytest.approx(101 / 256)
    assert infos["endpoints_1"].rows == datapath.rows("endpoints_1") == 102
    assert infos["connections"].rows is None
    assert all(info.bytes > 0 for info in infos.values() if info.type != 11)  # a trie's memory comes with its rows


# ---- two slots and a word ----


def test_every_packet_sees_the_generation_in_force(datapath: Datapath, net: Network) -> None:
    world = World()
    with net.node.inside():
        assert datapath.run("look", bytes(64), ifindex=1).answer == 0
        for number in range(1, 6):
            datapath.publish(world.snapshot(pods=number))
            assert datapath.run("look", bytes(64), ifindex=1).answer == number == datapath.generation


def test_the_live_slot_is_never_written(datapath: Datapath) -> None:
    """A revision is built, and one that does not fit refused, without a change to what programs read meanwhile."""
    world = World()
    datapath.publish(world.snapshot())
    before = Tables(datapath)
    seen, stop = [], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            state = row("idm_state").unpack_from(datapath.lookup("state", bytes(4)))
            if state["generation"] == 1:
                now = Tables(datapath)
                after = row("idm_state").unpack_from(datapath.lookup("state", bytes(4)))["generation"]
                seen.append(
                    after != 1
                    or (now.peers, now.endpoints, now.sides) == (before.peers, before.endpoints, before.sides)
                )

    watcher = threading.Thread(target=watch)
    watcher.start()
    with pytest.raises(MapFull):
        datapath.publish(world.snapshot(pods=280))
    datapath.publish(world.snapshot(pods=50, ports=range(80, 81)))
    stop.set()
    watcher.join()
    assert seen
    assert all(seen)


def test_lists_of_the_live_slot_are_not_written_over(datapath: Datapath) -> None:
    """
    The array of spans is shared: many revisions move through it. When the next one is in force, the one before must
    still be whole, for packets that began under it.
    """
    world, before = World(), b""
    for number in range(REVISIONS):
        snapshot = world.snapshot(pods=2 + number % 5, ports=range(80 + number, 80 + number + 2 * (1 + number % 7), 2))
        datapath.publish(snapshot)
        assert agrees(datapath, snapshot)
        assert not before or agrees(datapath, before, slot=~datapath.generation & 1)
        before = snapshot


# ---- workloads ----


def test_a_workload_is_found_behind_its_interface_in_every_revision(datapath: Datapath, net: Network) -> None:
    end, world = net.add("client", "10.2.0.0"), World()
    datapath.publish(world.snapshot())
    datapath.attach(end.ifindex, ["10.2.0.0", "10.2.0.1"], end.mac, netns=net.node.descriptor)
    for pods in (3, 4, 5):
        tables = Tables(datapath)
        found = {address: one["ifindex"] for address, one in tables.endpoints.items() if one["ifindex"]}
        assert found == {packed("10.2.0.0"): end.ifindex, packed("10.2.0.1"): end.ifindex}
        datapath.publish(world.snapshot(pods=pods))
    attachment = row("idm_attachment").unpack_from(datapath.lookup("attachments", end.ifindex.to_bytes(4, "little")))
    assert attachment["mac"].hex(":") == end.mac
    datapath.attach(end.ifindex, ["10.2.0.1"], netns=net.node.descriptor)
    assert [key for key, one in Tables(datapath).endpoints.items() if one["ifindex"]] == [packed("10.2.0.1")]
    datapath.detach(end.ifindex, netns=net.node.descriptor)
    assert not [one for one in Tables(datapath).endpoints.values() if one["ifindex"]]
    with pytest.raises(KeyError):
        datapath.lookup("attachments", end.ifindex.to_bytes(4, "little"))


def test_a_move_of_an_address_has_every_connection_asked_again(datapath: Datapath, net: Network) -> None:
    """Their rows name the interface of before, and packets would go there for as long as the revision holds."""
    first, second, world = net.add("first", "10.2.0.0"), net.add("second", "10.2.0.1"), World()
    for revision in (1, 2):  # in either slot
        datapath.publish(world.snapshot())
        before = datapath.state()
        for end, addresses, moves in (
            (first, ["10.2.0.0", "10.2.0.1"], True),
            (first, ["10.2.0.0", "10.2.0.1"], False),
            (second, ["10.2.0.1"], True),
            (first, ["10.2.0.0"], False),
        ):
            datapath.attach(end.ifindex, addresses, end.mac, netns=net.node.descriptor)
            now = datapath.state()
            assert (now.generation, now.revision) == (before.generation + 2 * moves, before.revision), revision
            before = now
        for end in (first, second):
            datapath.detach(end.ifindex, netns=net.node.descriptor)
        assert datapath.state().generation == before.generation + 4
        assert datapath.state().revision == before.revision


def test_addresses_that_no_revision_has_yet_are_found_once_one_has(datapath: Datapath, net: Network) -> None:
    end, world = net.add("client", "10.2.0.7"), World()
    datapath.publish(world.snapshot())
    datapath.attach(end.ifindex, ["10.2.0.7"], netns=net.node.descriptor)
    datapath.publish(world.snapshot(pods=8))
    assert Tables(datapath).endpoints[packed("10.2.0.7")]["ifindex"] == end.ifindex


def test_locals_are_exactly_those_told(datapath: Datapath) -> None:
    datapath.locals(["192.0.2.1", "fd00::1"])
    datapath.locals(["192.0.2.2", "fd00::1", "192.0.2.2"])
    assert {key for key, _ in datapath.read("locals")} == {packed("192.0.2.2"), packed("fd00::1")}


def test_config_keeps_what_is_not_named(datapath: Datapath) -> None:
    datapath.config(proxy_port=15001, flags=2)
    datapath.config(envoy_cgroup=77)
    assert datapath.config() == {
        "envoy_cgroup": 77, "proxy_port": 15001, "proxy_port6": 0, "flags": 2, "host_identity": 1,
    }  # fmt: skip
    with pytest.raises(TypeError, match="config has no port"):
        datapath.config(port=1)


def test_a_policy_of_nobody_here_is_not_expanded(datapath: Datapath) -> None:
    datapath.publish(World().snapshot())
    node = [one for one in Tables(datapath).endpoints.values() if one["endpoint"] == NO_INDEX]
    assert all(one["policy"] == NO_INDEX and not one["flags"] for one in node)


# ---- after a death ----


def test_a_new_process_goes_on_where_the_old_one_was(folder: Path, objects: Path, net: Network) -> None:
    end, world = net.add("client", "10.2.0.1"), World()
    first = Datapath.open(folder / "bpf", objects, SIZES)
    snapshot = world.snapshot()
    first.publish(snapshot)
    first.attach(end.ifindex, end.addresses, netns=net.node.descriptor)
    ids = {info.name: info.id for info in first.maps()}
    first.close()
    again = Datapath.open(folder / "bpf", objects, SIZES)
    assert {info.name: info.id for info in again.maps()} == ids
    assert again.generation == 3  # the address moved in since
    assert agrees(again, snapshot)
    report = again.publish(snapshot)
    assert report.generation == 4
    assert Tables(again).endpoints[packed("10.2.0.1")]["ifindex"] == end.ifindex
    assert again.publish(snapshot).written == 0
    again.cleanup()


PUBLISHER = """
import sys
from pathlib import Path
from ext_authz.datapath import Datapath
datapath = Datapath.open(Path(sys.argv[1]), Path(sys.argv[2]), {sizes})
snapshots = [Path(name).read_bytes() for name in sys.argv[3:]]
print("ready", flush=True)
while True:
    for snapshot in snapshots:
        datapath.publish(snapshot)
"""


def test_killed_at_any_moment_a_whole_revision_is_in_force(folder: Path, objects: Path) -> None:
    world = World()
    snapshots = [
        world.snapshot(pods, ports) for pods, ports in ((3, range(80, 90, 2)), (40, range(80, 82)), (9, range(7, 9)))
    ]
    files = [folder / f"snapshot{number}" for number in range(len(snapshots))]
    for file, snapshot in zip(files, snapshots, strict=True):
        file.write_bytes(snapshot)
    revisions = {Engine.open(snapshot).revision: snapshot for snapshot in snapshots}
    program = [sys.executable, "-c", PUBLISHER.format(sizes=SIZES), folder / "bpf", objects, *files]
    for number in range(KILLS):
        child = subprocess.Popen(program, stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(0.05 + number * 0.0013)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        with Datapath.open(folder / "bpf", objects, SIZES) as datapath:
            assert agrees(datapath, revisions[datapath.revision])
            datapath.publish(snapshots[number % 3])
            assert agrees(datapath, snapshots[number % 3])
    with Datapath.open(folder / "bpf", objects, SIZES) as datapath:
        datapath.cleanup()


class Killed(BaseException):
    """Here the process would be gone."""


def test_killed_between_programs_and_name_the_newer_revision_stays(
    folder: Path, objects: Path, net: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The programs are over the new set already: whoever comes next must not put them back over the one before."""
    end, first = net.add("client", "10.2.0.1"), Datapath.open(folder / "bpf", objects, SIZES)
    with net.node.inside():
        first.publish(World(1).snapshot())
        first.attach(end.ifindex, end.addresses)
        upgrade = first.hooks.upgrade

        def upgrade_and_die() -> int:
            upgrade()
            raise Killed

        monkeypatch.setattr(first.hooks, "upgrade", upgrade_and_die)
        snapshot = World(2).snapshot(pods=5)
        with pytest.raises(Killed):
            first.publish(snapshot)
        in_force = ids(first)
        first.close()
        with Datapath.open(folder / "bpf", objects, SIZES) as second:
            assert ids(second) == in_force
            assert agrees(second, snapshot)
            assert [one.name for one in second.pins.parent.iterdir() if one.name == "next"] == []
            second.cleanup()


# ---- sets that must not be used again ----


def ids(datapath: Datapath) -> dict[str, int]:
    return {info.name: info.id for info in datapath.maps()}


def test_another_identity_domain_gets_maps_of_its_own(datapath: Datapath, net: Network) -> None:
    """A number of the domain before means somebody else: not one row of it may be met."""
    end = net.add("client", "10.2.0.1")
    with net.node.inside():
        datapath.publish(World(1).snapshot())
        datapath.attach(end.ifindex, end.addresses)
        datapath.config(proxy_port=15001)
        before = ids(datapath)
        other = World(2).snapshot(pods=5)
        datapath.publish(other)
        assert not set(before.values()) & set(ids(datapath).values())
        assert agrees(datapath, other)
        assert datapath.state().domain == 2
        assert datapath.config()["proxy_port"] == 15001
        assert Tables(datapath).endpoints[packed("10.2.0.1")]["ifindex"] == end.ifindex
        assert datapath.attached() == {end.ifindex}
        assert len(list((datapath.pins.parent / "sets").iterdir())) == 1
        pinned = (datapath.pins / "connections").stat()
        assert pinned.st_ino


def test_another_identity_domain_knows_workloads_that_no_revision_had(datapath: Datapath, net: Network) -> None:
    end = net.add("client", "10.2.0.7")
    with net.node.inside():
        datapath.publish(World(1).snapshot(pods=3))
        datapath.attach(end.ifindex, end.addresses)
        datapath.publish(World(2).snapshot(pods=3))
        datapath.publish(World(3).snapshot(pods=8))
        assert Tables(datapath).endpoints[packed("10.2.0.7")]["ifindex"] == end.ifindex


@pytest.mark.parametrize("change", ["size", "layout"])
def test_maps_of_another_shape_stay_in_force_until_the_new_ones_are_filled(
    folder: Path, objects: Path, net: Network, change: str
) -> None:
    end, world = net.add("client", "10.2.0.1"), World()
    first = Datapath.open(folder / "bpf", objects, SIZES)
    first.publish(world.snapshot())
    first.attach(end.ifindex, end.addresses, netns=net.node.descriptor)
    links = {link.name: (link.id, link.program) for link in first.hooks.links()}
    before = ids(first)
    if change == "layout":
        state = row("idm_state")
        held = state.unpack_from(first.lookup("state", bytes(4)))
        first.update("state", bytes(4), state.pack(**{**held, "layout": 99}))
    first.close()
    sizes = SIZES | {"peers": 1024} if change == "size" else SIZES
    with net.node.inside():
        second = Datapath.open(folder / "bpf", objects, sizes)
        assert {link.name: (link.id, link.program) for link in second.hooks.links()} == links
        assert not set(before.values()) & set(ids(second).values())
        second.attach(end.ifindex, end.addresses)
        second.link(f"to_workload-{end.ifindex}", "to_workload", end.ifindex, EGRESS)
        assert {link.name: (link.id, link.program) for link in second.hooks.links()} == links
        snapshot = world.snapshot(pods=4)
        second.publish(snapshot)
        now = {link.name: (link.id, link.program) for link in second.hooks.links()}
    assert {name: number for name, (number, _) in now.items()} == {name: number for name, (number, _) in links.items()}
    assert not {program for _, program in now.values()} & {program for _, program in links.values()}
    assert agrees(second, snapshot)
    assert Tables(second).endpoints[packed("10.2.0.1")]["ifindex"] == end.ifindex
    assert len(list((second.pins.parent / "sets").iterdir())) == 1
    second.close()
    with Datapath.open(folder / "bpf", objects, sizes) as third:
        assert agrees(third, snapshot)
        third.cleanup()


def test_an_engine_is_published_as_its_bytes_are(datapath: Datapath) -> None:
    snapshot = World().snapshot()
    datapath.publish(Engine.open(snapshot))
    assert agrees(datapath, snapshot)


# ---- rows that are replaced ----


@pytest.mark.parametrize("turns", [1, 2], ids=["again", "moving"])
def test_who_reads_an_endpoints_row_reads_no_other_endpoints(datapath: Datapath, net: Network, turns: int) -> None:
    """The kernel gives the memory of a row that is replaced to the next one: a start attaches every endpoint anew."""
    ends = [net.add("server", "10.1.0.1"), net.add("client", "10.2.0.1"), net.add("other", "10.2.0.2")]
    datapath.publish(World().snapshot())
    addresses = [["10.1.0.1", "10.2.0.0"], ["10.2.0.1"], ["10.2.0.2"]]
    answers: list[int] = []
    done = threading.Event()

    def attach(turn: int) -> None:
        for end, own in zip(ends, addresses, strict=True):
            mac = bytes([turn, *bytes.fromhex(end.mac.replace(":", ""))[1:]])
            datapath.attach(end.ifindex, [] if turn else own, mac, netns=net.node.descriptor)

    def read() -> None:
        while not done.is_set():
            found = datapath.run("look_slowly", bytes(64), ifindex=ends[0].ifindex, netns=net.node.descriptor)
            answers.append(found.answer)

    attach(0)
    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    until, turn = time.monotonic() + 2, 0
    while time.monotonic() < until:
        turn += 1
        attach(turn % turns)
    done.set()
    for reader in readers:
        reader.join()
    assert len(answers) > 5
    assert set(answers) == {0}
