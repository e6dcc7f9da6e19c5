# SPDX-License-Identifier: Apache-2.0
"""A real node with a real Envoy: requests judged without the workloads knowing, cgroups, Services, a full map."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bpf.net import End, Network, eventually, serve_greeting
from tests.bpf.node_run import NodeRun, settled
from tests.bpf.state import difference, namespace_state

ENDS = {"client": ("10.0.0.1", "fd00::1"), "other": ("10.0.0.2", "fd00::2"), "web": ("10.0.0.3", "fd00::3")}
HTTP = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET, path: "/public.*"}]}}]
"""
L4 = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress: [{fromEndpoints: [{matchLabels: {app: unit}}], toPorts: [{ports: [{port: "80", protocol: TCP}]}]}]
"""
SERVICE = """\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {clusterIP: 10.96.0.1, ports: [{port: 8080, targetPort: 80, protocol: TCP}], selector: {app: web}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 80, protocol: TCP}]
endpoints: [{addresses: [10.0.0.3], conditions: {ready: true}}]
"""
SERVER = """\
import http.server, socket, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.client_address[0].encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
server = Server((sys.argv[1], 80), Handler)
print("ready", flush=True)
server.serve_forever()
"""
CONNECT = """\
import os, socket, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
with socket.create_connection((sys.argv[2], int(sys.argv[3])), 1.0) as line:
    print(line.getpeername()[0])
"""


@pytest.fixture
def node(net: Network, folder: Path, cgroup: Path) -> Iterator[NodeRun]:
    """Not started."""
    for name, addresses in ENDS.items():
        net.add(name, *addresses)
    made = NodeRun(net, folder, cgroup)
    before = settled(net)
    try:
        yield made
    finally:
        made.end()
        assert difference(before, namespace_state(net.node)) == []


def served(end: End, address: str) -> subprocess.Popen[str]:
    server = subprocess.Popen(end.command([sys.executable, "-c", SERVER, address]), stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    return server


def fetch(end: End, url: str) -> tuple[str, str]:
    """Status and body as an unmodified client sees them; 000: no answer."""
    words = ["curl", "-s", "-m", "2", "-w", "\n%{http_code}", url]
    done = subprocess.run(end.command(words), capture_output=True, text=True, check=False)
    body, _, status = done.stdout.rpartition("\n")
    return status, body


@pytest.mark.needs_envoy
def test_requests_are_judged_between_ends_that_know_nothing_of_it(node: NodeRun) -> None:
    node.words = ["--datapath", "on", "--door", "module", "--concurrency", "1"]
    node.write("policies/web.yaml", HTTP)
    servers = [served(node.net.ends["web"], address) for address in ENDS["web"]]
    try:
        node.start()
        for name in ENDS:
            node.attach(name, app=name)
        client, other = node.net.ends["client"], node.net.ends["other"]
        eventually(lambda: fetch(client, "http://10.0.0.3/public/a")[0] == "200", 20)
        assert fetch(client, "http://10.0.0.3/public/a") == ("200", "10.0.0.1")
        assert fetch(client, "http://[fd00::3]/public/a") == ("200", "fd00::1")
        assert fetch(client, "http://10.0.0.3/secret") == ("403", "Access denied\n")
        assert fetch(other, "http://10.0.0.3/public/a")[0] == "000"
        lines = [json.loads(line)["flow"] for line in node.run("flows", "--json", "--last", "100")[1].splitlines()]
        steered = [one for one in lines if one["verdict"] == "REDIRECTED"]
        assert {one["extensions"]["value"]["door"] for one in steered} == {"bpf"}
        denied = next(one for one in lines if one["verdict"] == "DROPPED" and one["Type"] == "L7")
        assert denied["source"]["pod_name"] == "client"
        assert denied["extensions"]["value"]["rule"].endswith("policies/web.yaml:8")
        # With Envoy gone what must be judged by it is refused, not let through.
        envoy = node.json("status")["envoy"]
        node.kill()
        os.kill(envoy, 9)
        assert fetch(client, "http://10.0.0.3/public/a")[0] == "000"
    finally:
        for server in servers:
            server.kill()
            server.communicate()


@pytest.mark.needs_envoy
def test_an_envoy_older_than_the_maps_is_found(node: NodeRun) -> None:
    """Maps are made anew for other sizes, and for another identity domain; Envoy stays, and must still be asked."""
    node.words = ["--datapath", "on", "--door", "module", "--concurrency", "2"]
    node.write("policies/web.yaml", HTTP)
    servers = [served(node.net.ends["web"], address) for address in ENDS["web"]]
    client = node.net.ends["client"]

    def served_by_both() -> bool:
        return all(fetch(client, f"http://{host}/public/a")[0] == "200" for host in ("10.0.0.3", "[fd00::3]"))

    try:
        node.start()
        for name in ENDS:
            node.attach(name, app=name)
        eventually(served_by_both, 20)
        envoy = node.json("status")["envoy"]
        for change in ("size", "domain"):
            node.kill()
            if change == "size":
                node.words += ["--map-size", "peers=1024"]
            else:
                node.state.identities.unlink()
            node.start()
            # Envoy is looked for once the new maps are in force.
            eventually(lambda: node.json("status")["envoy"], 20, node.log())
            assert node.json("status")["envoy"] == envoy
            eventually(served_by_both, 20, change)
            assert fetch(client, "http://10.0.0.3/secret")[0] == "403"
            assert fetch(node.net.ends["other"], "http://10.0.0.3/public/a")[0] == "000"
    finally:
        for server in servers:
            server.kill()
            server.communicate()


def test_a_cgroup_is_a_workload_and_services_lead_to_their_backends(node: NodeRun) -> None:
    node.write("policies/web.yaml", L4)
    node.write("endpoints/service.yaml", SERVICE)
    unit = node.base / "unit"
    unit.mkdir()
    node.start()
    node.attach("web", app="web")
    code, _, error = node.run("endpoint", "attach", "unit", "--cgroup", str(unit), "--labels", "app=unit")
    assert code == 0, (error, node.log())

    def reached(address: str, port: int) -> str:
        words = [sys.executable, "-c", CONNECT, str(unit), address, str(port)]
        done = subprocess.run(node.net.node.command(words), capture_output=True, text=True, check=False)
        return done.stdout.strip()

    with serve_greeting(node.net.ends["web"], "10.0.0.3", 80), serve_greeting(node.net.ends["web"], "10.0.0.3", 81):
        assert reached("10.0.0.3", 80) == "10.0.0.3"
        assert reached("10.0.0.3", 81) == ""
        eventually(lambda: reached("10.96.0.1", 8080) == "10.96.0.1", 10)
    assert node.run("endpoint", "detach", "unit")[0] == 0


def test_a_process_brings_its_cgroup_so_that_services_work_in_its_namespace(node: NodeRun) -> None:
    node.write("policies/web.yaml", L4)
    node.write("endpoints/service.yaml", SERVICE)
    pod = node.base / "pod"
    pod.mkdir()
    client = node.net.ends["client"]
    sleeper = subprocess.Popen(client.command(["sh", "-c", f"echo $$ > {pod}/cgroup.procs; echo; exec sleep 100"]),
                               stdout=subprocess.PIPE)  # fmt: skip
    try:
        assert sleeper.stdout is not None
        sleeper.stdout.readline()
        node.start()
        node.attach("web", app="web")
        words = ["endpoint", "attach", "client", "--pid", str(sleeper.pid), "--labels", "app=unit"]
        code, _, error = node.run(*words)
        assert code == 0, (error, node.log())
        words = client.command([sys.executable, "-c", CONNECT, str(pod), "10.96.0.1", "8080"])
        with serve_greeting(node.net.ends["web"], "10.0.0.3", 80) as listener:
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            assert done.stdout.strip() == "10.96.0.1", done.stderr
            assert listener.accept()[1][0] == "10.0.0.1"
    finally:
        sleeper.kill()
        sleeper.wait()


def test_what_does_not_fit_leaves_the_revision_before_in_force(node: NodeRun) -> None:
    node.words = ["--datapath", "on", "--map-size", "peers=4"]
    node.write("policies/web.yaml", HTTP)
    node.start()
    for name in ENDS:
        node.attach(name, app=name)
    before = node.json("datapath", "status")
    assert before["warnings"] == []
    pods = "".join(
        f"---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p{n}, labels: {{app: client, n: '{n}'}}}}\n"
        f"status: {{podIPs: [{{ip: 10.0.1.{n}}}]}}\n"
        for n in range(1, 20)
    )
    more = node.folder / "more.yaml"
    more.write_text(pods)
    code, _, error = node.run("apply", str(more), "--wait", "--timeout", "3")
    assert (code, "(bpf) has revision" in error) == (1, True), error
    eventually(lambda: node.json("datapath", "status")["warnings"], 10)
    after = node.json("datapath", "status")
    assert after["revision"] == before["revision"]
    assert "a newer one was refused" in after["warnings"][0]
    assert any("a newer one was refused" in warning["reason"] for warning in node.json("status")["standing"])
    assert node.run("apply", str(more), "--remove", "--wait")[0] == 0
    eventually(lambda: not node.json("datapath", "status")["warnings"], 20)


def test_two_agents_do_not_drive_one_data_path(node: NodeRun) -> None:
    node.words = ["--datapath", "on"]
    node.write("policies/web.yaml", L4)
    node.start()
    code, _, error = node.run("run", "--policies", str(node.folder / "policies"))
    assert (code, "another node runs" in error) == (2, True), error
    code, _, error = node.run("run", "--cleanup")
    assert (code, "another node runs" in error) == (2, True), error
