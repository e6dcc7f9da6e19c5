# SPDX-License-Identifier: Apache-2.0
"""Services of workloads without a namespace: translated and judged, by the backend's port."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from ext_authz.datapath.service_table import ServiceTable
from ext_authz.datapath.services import wanted_rows
from ext_authz.model.types import Service, ServicePort, ServiceTarget
from tests.bpf.cgroup_site import CgroupSite, allow
from tests.bpf.net import serve_greeting

SERVER, VIP = "10.1.0.2", "10.96.0.1"
NO_BACKEND, EGRESS = 158, 1


@pytest.fixture
def site(folder: Path, cgroup: Path) -> Iterator[CgroupSite]:
    with CgroupSite(folder, cgroup) as made:
        made.pod("server", SERVER)
        yield made


def put(site: CgroupSite, *targets: tuple[str, int], affinity_s: int = 0) -> None:
    behind = tuple(ServiceTarget("", text, port) for text, port in targets)
    service = Service("shop", "web", {}, None, (), (VIP,), (ServicePort("", 80),), behind, affinity_s)
    ServiceTable(site.path, 1024, site.path.grace).apply(wanted_rows([service]))


def connect() -> tuple[str, int]:
    """Whom the socket believes to talk to."""
    with socket.create_connection((VIP, 80), timeout=2) as line:
        where = line.getpeername()
        return where[0], where[1]


@pytest.mark.parametrize("addresses", [("10.2.0.1",), ()], ids=["own", "shared"])
def test_policy_names_the_backends_port_and_never_the_services(site: CgroupSite, addresses: tuple[str, ...]) -> None:
    site.workload("unit", *addresses)
    put(site, (SERVER, 8080))
    with serve_greeting(site.net.ends["server"], SERVER, 8080):
        site.apply(allow("unit", "server", 8080, egress=True))
        assert site.run("unit", connect) == (VIP, 80)
        site.apply(allow("unit", "server", 80, egress=True))
        with pytest.raises(PermissionError):
            site.run("unit", connect)


def test_a_service_without_backends_refuses(site: CgroupSite) -> None:
    site.workload("unit", "10.2.0.1")
    put(site)
    site.apply()
    with pytest.raises(ConnectionRefusedError):
        site.run("unit", connect)
    assert site.drops()[NO_BACKEND, EGRESS] == 1


def test_workloads_that_share_a_namespace_have_an_affinity_each(site: CgroupSite) -> None:
    site.workload("unit")
    site.workload("other")
    put(site, (SERVER, 8080), affinity_s=60)
    site.apply()
    with serve_greeting(site.net.ends["server"], SERVER, 8080):
        for name in ("unit", "unit", "other"):
            site.run(name, connect)
    rows = list(site.path.read("affinity"))
    assert {struct.unpack("=QQI", key)[1] for key, _ in rows} == {2, 3}
