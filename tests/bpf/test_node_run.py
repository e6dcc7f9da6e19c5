# SPDX-License-Identifier: Apache-2.0
"""A real node judges real traffic in the kernel: attach, detach, kill, restart, clean up."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ext_authz.state import read_json
from tests.bpf.conftest import lacks_bpf
from tests.bpf.net import Network, Space, connects, eventually, own_cgroup, serve_greeting, unmount
from tests.bpf.node_run import NodeRun, settled
from tests.bpf.state import CGROUPS, PREFIX, difference, namespace_state
from tests.conftest import missing

ENDS = {"client": ("10.0.0.1", "fd00::1"), "other": ("10.0.0.2", "fd00::2"), "web": ("10.0.0.3", "fd00::3")}
WEB = ("10.0.0.3", 80)
POLICY = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress: [{fromEndpoints: [{matchLabels: {app: %s}}], toPorts: [{ports: [{port: "80", protocol: TCP}]}]}]
"""


def prepared(net: Network, folder: Path, cgroup: Path) -> Iterator[NodeRun]:
    """Not started; `client` may reach `web` at port 80. Afterwards the host must be as it was."""
    for name, addresses in ENDS.items():
        net.add(name, *addresses)
    made = NodeRun(net, folder, cgroup)
    made.write("policies/web.yaml", POLICY % "client")
    before = settled(net)
    try:
        yield made
    finally:
        made.end()
        if set(net.ends) == set(ENDS):
            assert difference(before, namespace_state(net.node)) == []


@pytest.fixture
def node(net: Network, folder: Path, cgroup: Path) -> Iterator[NodeRun]:
    yield from prepared(net, folder, cgroup)


@pytest.fixture
def attached(node: NodeRun) -> NodeRun:
    return with_all(node)


@pytest.fixture(scope="module")
def shared() -> Iterator[NodeRun]:
    """One node for all that change nothing."""
    if reason := lacks_bpf():
        missing(reason)
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    try:
        with Network() as net, own_cgroup(CGROUPS, f"{folder.name}-cgroup") as cgroup:
            for node in prepared(net, folder, cgroup):
                yield with_all(node)
    finally:
        unmount(folder)
        shutil.rmtree(folder)


def with_all(node: NodeRun) -> NodeRun:
    node.start()
    for name in ENDS:
        node.attach(name, app=name)
    return node


def reaches(node: NodeRun, name: str, target: tuple[str, int] = WEB) -> bool:
    return connects(node.net.ends[name], target, 0.5)


def names(node: NodeRun) -> list[str]:
    return [one["endpoint"] for one in node.json("datapath", "status")["attached"]]


def test_attached_endpoints_are_judged_and_their_verdicts_seen(shared: NodeRun) -> None:
    node = shared
    web = node.net.ends["web"]
    with serve_greeting(web, *WEB), serve_greeting(web, "fd00::3", 80):
        assert reaches(node, "client")
        assert reaches(node, "client", ("fd00::3", 80))
        assert not reaches(node, "other")
        assert not reaches(node, "other", ("fd00::3", 80))
    eventually(lambda: "POLICY_DENIED" in node.run("flows", "--last", "50")[1], 10)
    lines = [json.loads(line)["flow"] for line in node.run("flows", "--door", "bpf", "--json")[1].splitlines()]
    allowed = next(line for line in lines if line["verdict"] == "FORWARDED")
    assert (allowed["source"]["pod_name"], allowed["destination"]["pod_name"]) == ("client", "web")
    denied = next(line for line in lines if line["verdict"] == "DROPPED")
    assert (denied["source"]["pod_name"], denied["drop_reason_desc"]) == ("other", "POLICY_DENIED")
    assert denied["extensions"]["value"]["revision"] == node.json("datapath", "status")["revision"]


def test_the_kernels_policy_is_shown_with_the_line_it_comes_from(shared: NodeRun) -> None:
    shown = shared.json("datapath", "policy", "default/web")
    ingress, egress = shown["sides"]
    assert (ingress["direction"], ingress["otherwise"]["verdict"]) == ("ingress", "DROPPED")
    (entry,) = ingress["entries"]
    assert (entry["protocol"], entry["first_port"], entry["verdict"]) == ("TCP", 80, "FORWARDED")
    assert entry["rule"].endswith("policies/web.yaml:6")
    assert entry["peer"] == shared.json("datapath", "policy", "10.0.0.1")["places"][0]["identity"]
    assert egress["open"]


def test_connections_are_shown_from_who_opened_them(shared: NodeRun) -> None:
    with serve_greeting(shared.net.ends["web"], *WEB):
        assert reaches(shared, "client")
    code, out, _ = shared.run("datapath", "connections", "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    allowed = {(one["source"], one["destination"], one["destination_port"]) for one in found if one["judged"]}
    assert ("10.0.0.1", "10.0.0.3", 80) in allowed
    assert "10.0.0.3" not in {one["source"] for one in found}


def test_nothing_of_the_host_changes_before_the_first_endpoint(node: NodeRun) -> None:
    before = namespace_state(node.net.node)
    node.start()
    assert difference(before, namespace_state(node.net.node)) == []
    assert not node.state.datapath_pins.exists()
    assert node.run("datapath", "status")[0] == 2
    node.attach("web", app="web")
    assert node.state.datapath_pins.exists()


def test_enforcement_outlives_a_killed_agent_and_the_next_goes_on(attached: NodeRun) -> None:
    node = attached
    with serve_greeting(node.net.ends["web"], *WEB):
        node.kill()
        assert reaches(node, "client")
        assert not reaches(node, "other")
        code, out, _ = node.run("datapath", "status")
        assert (code, "no node runs" in out) == (1, True)
        node.write("policies/web.yaml", POLICY % "other")
        node.start()
        eventually(lambda: node.run("datapath", "status")[0] == 0, 20)
        assert reaches(node, "other")
        assert not reaches(node, "client")


def test_the_process_of_the_data_path_may_die_and_comes_back(attached: NodeRun) -> None:
    node = attached
    pid = node.json("datapath", "status")["pid"]

    os.kill(pid, signal.SIGKILL)
    with serve_greeting(node.net.ends["web"], *WEB):
        assert reaches(node, "client")
        assert not reaches(node, "other")
        eventually(lambda: (read_json(node.state.status) or {})["datapath"]["pid"] not in (None, pid), 20)
        node.write("policies/web.yaml", POLICY % "other")
        eventually(lambda: reaches(node, "other"), 20)
        assert not reaches(node, "client")


def test_programs_that_somebody_took_off_are_put_back(attached: NodeRun) -> None:
    node = attached
    links = node.state.datapath_pins / "links"
    index = next(one for one in node.json("datapath", "status")["attached"] if one["endpoint"] == "default/web")[
        "ifindex"
    ]
    with serve_greeting(node.net.ends["web"], *WEB):
        for name in (f"to_workload-{index}", f"from_workload-{index}", "choose_listener", "keep_marks"):
            (links / name).unlink()
        eventually(lambda: {f"to_workload-{index}", f"from_workload-{index}", "choose_listener", "keep_marks"}
                   <= {one.name for one in links.iterdir()}, 10)  # fmt: skip
        assert not reaches(node, "other")
        assert reaches(node, "client")
    assert "took programs off" in node.log()


def test_a_host_has_one_node_whatever_its_state_directory(node: NodeRun, folder: Path) -> None:
    node.words = ["--datapath", "on"]
    node.start()
    other = NodeRun(node.net, folder / "other", node.base)
    other.folder.mkdir()
    words = ["--policies", str(node.folder / "policies"), "--datapath", "on"]
    code, _, error = other.run("run", *words)
    assert (code, "another node drives the data path of this network namespace (process" in error) == (2, True), error
    assert node.run("datapath", "status")[0] == 0


def test_what_is_detached_is_judged_no_more(attached: NodeRun) -> None:
    node = attached
    with serve_greeting(node.net.ends["web"], *WEB):
        assert not reaches(node, "other")
        code, _, error = node.run("endpoint", "detach", "web")
        assert code == 0, error
        eventually(lambda: names(node) == ["default/client", "default/other"], 20)
        assert reaches(node, "other")
    code, _, error = node.run("endpoint", "detach", "web")
    assert (code, "is not attached" in error) == (1, True)


def test_a_workload_that_is_gone_is_let_go(attached: NodeRun) -> None:
    attached.net.remove("web")
    eventually(lambda: names(attached) == ["default/client", "default/other"], 20)
    assert "default/web" not in attached.run("endpoint", "list")[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--labels", "reserved:host"], "reserved labels are given by the node alone"),
        (["--labels", "container:app=web"], "only k8s: may be named"),
        (["--labels", "io.kubernetes.pod.namespace=kube-system"], "is computed"),
        ([], "no source names it"),
        (["--labels", "app=x", "--ip", "127.0.0.1"], "can be no workload's own address"),
        (["--labels", "app=x", "--interface", "eth7"], "has no interface eth7"),
    ],
)
def test_who_claims_too_much_is_not_attached(shared: NodeRun, words: list[str], said: str) -> None:
    name = f"more-{len(shared.net.ends)}"
    space = Space()
    try:
        shared.net.node.ip([f"link add {name} type veth peer name eth0 netns {space.path}"])
        space.ip(["address add 10.0.9.9/32 dev eth0", "link set eth0 up"])
        code, _, error = shared.run("endpoint", "attach", "more", "--netns", space.path, *words)
        assert (code, said in error) == (1, True), error
        assert not shared.run("endpoint", "list")[1].count("default/more")
    finally:
        shared.net.node.ip([f"link del {name}"])
        space.close()


def test_a_workload_is_attached_once(shared: NodeRun) -> None:
    where = ["--netns", shared.net.ends["other"].space.path, "--ip", "10.0.0.3", "--labels", "app=thief"]
    code, _, error = shared.run("endpoint", "attach", "thief", *where)
    assert (code, "default/other is attached there" in error) == (1, True), error


def test_the_hosts_own_namespace_is_no_workload(shared: NodeRun) -> None:
    code, _, error = shared.run("endpoint", "attach", "me", "--netns", shared.net.node.path, "--labels", "app=me")
    assert (code, "is the host's own namespace" in error) == (1, True), error


def test_a_pod_of_the_sources_is_attached_by_its_name(node: NodeRun) -> None:
    pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: default, labels: {app: web}}\n"
    node.write("endpoints/web.yaml", f"{pod}status: {{podIPs: [{{ip: 10.0.0.3}}, {{ip: 'fd00::3'}}]}}\n")
    node.start()
    assert node.attach("web")["addresses"] == ["10.0.0.3", "fd00::3"]
    assert node.json("datapath", "policy", "default/web")["places"][0]["ifindex"]


POD = """\
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: default, labels: {app: %s}}
status: {podIPs: [{ip: 10.0.0.2}, {ip: 'fd00::2'}]}
"""


def test_a_workload_whose_address_became_anothers_does_not_speak_for_that_one(node: NodeRun) -> None:
    """Sources give an address to the next Pod while the one before is still there: nobody has taken it off."""
    node.write("endpoints/pod.yaml", POD % ("other", "other"))
    node.start()
    node.attach("web", app="web")
    node.attach("other")
    with serve_greeting(node.net.ends["web"], *WEB):
        assert not reaches(node, "other")
        node.write("endpoints/pod.yaml", POD % ("next", "client"))
        eventually(lambda: node.run("datapath", "policy", "default/next")[0] == 0, 10)
        assert not reaches(node, "other")
        # Its own again, and policy allows it.
        node.write("endpoints/pod.yaml", POD % ("other", "client"))
        eventually(lambda: reaches(node, "other"), 10)


def test_a_node_without_its_data_path_says_so(node: NodeRun) -> None:
    node.words = ["--datapath", "off"]
    node.start()
    where = ["--netns", node.net.ends["web"].space.path, "--labels", "app=web"]
    code, _, error = node.run("endpoint", "attach", "web", *where)
    assert (code, "--datapath off" in error) == (2, True), error
    assert "datapath  off" in node.run("status")[1]
