# SPDX-License-Identifier: Apache-2.0
"""Services of the model as rows: which front has which backends."""

from __future__ import annotations

import dataclasses

import pytest

from ext_authz.datapath.addresses import packed, unpacked
from ext_authz.datapath.services import (
    NODE_PORTS,
    Front,
    Place,
    Wanted,
    contested,
    wanted_rows,
)
from ext_authz.model.types import Service, ServicePort, ServiceTarget

TCP, UDP = 6, 17
SERVICE = Service(
    "shop", "web", {}, None, (), ("10.96.0.1", "fd96::1"), (ServicePort("http", 80), ServicePort("dns", 53, "UDP")),
    (
        ServiceTarget("http", "10.1.0.2", 8080, "TCP", "n2"),
        ServiceTarget("http", "10.1.0.1", 8080, "TCP", "n1"),
        ServiceTarget("http", "fd00::1", 8080, "TCP", "n1"),
        ServiceTarget("dns", "10.1.0.1", 5353, "UDP", "n1"),
    ),
)  # fmt: skip


def front(address: str, port: int, protocol: int = TCP) -> Front:
    return Front(packed(address), port, protocol)


def places(*texts: str, port: int = 8080) -> tuple[Place, ...]:
    return tuple(Place(packed(text), port) for text in texts)


def changed(**fields: object) -> Service:
    return dataclasses.replace(SERVICE, **fields)


def test_every_address_and_port_has_the_targets_of_its_port_and_ip_version() -> None:
    assert wanted_rows([SERVICE]) == {
        front("10.96.0.1", 80): Wanted(places("10.1.0.1", "10.1.0.2"), 0, "shop/web"),
        front("fd96::1", 80): Wanted(places("fd00::1"), 0, "shop/web"),
        front("10.96.0.1", 53, UDP): Wanted(places("10.1.0.1", port=5353), 0, "shop/web"),
        front("fd96::1", 53, UDP): Wanted((), 0, "shop/web"),
    }


def test_a_node_port_has_a_row_for_each_ip_version_of_the_service() -> None:
    rows = wanted_rows([changed(ports=(ServicePort("http", 80, "TCP", 30080),))])
    assert rows[Front(NODE_PORTS[0], 30080, TCP)].backends == places("10.1.0.1", "10.1.0.2")
    assert rows[Front(NODE_PORTS[1], 30080, TCP)].backends == places("fd00::1")
    single = wanted_rows([changed(addresses=("10.96.0.1",), ports=(ServicePort("http", 80, "TCP", 30080),))])
    assert Front(NODE_PORTS[1], 30080, TCP) not in single


def test_a_service_without_targets_has_rows_that_refuse() -> None:
    assert all(not wanted.backends for wanted in wanted_rows([changed(targets=())]).values())


def test_a_service_without_addresses_has_no_rows() -> None:
    assert wanted_rows([changed(addresses=())]) == {}


def test_local_services_have_only_targets_of_the_own_node() -> None:
    assert wanted_rows([changed(local=True)], "n2")[front("10.96.0.1", 80)].backends == places("10.1.0.2")
    assert not wanted_rows([changed(local=True)])[front("10.96.0.1", 80)].backends


def test_a_front_that_two_services_claim_refuses_for_both() -> None:
    rows = wanted_rows([SERVICE, changed(name="other", addresses=("10.96.0.1",))])
    assert rows[front("10.96.0.1", 80)] == Wanted((), 0, "")
    assert rows[front("fd96::1", 80)].backends
    assert contested(rows) == [front("10.96.0.1", 80), front("10.96.0.1", 53, UDP)]


def test_a_third_claim_does_not_open_a_contested_front() -> None:
    rows = wanted_rows([SERVICE, changed(name="b"), changed(name="c")])
    assert all(not wanted.backends for wanted in rows.values())


def test_the_order_of_targets_does_not_matter() -> None:
    assert wanted_rows([SERVICE]) == wanted_rows([changed(targets=SERVICE.targets[::-1])])


@pytest.mark.parametrize("text", ["10.96.0.1", "fd96::1"])
def test_addresses_come_back_as_they_went(text: str) -> None:
    assert unpacked(packed(text)) == text
    assert Front.unpack(front(text, 80).pack()) == front(text, 80)
