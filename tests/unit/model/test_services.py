# SPDX-License-Identifier: Apache-2.0
"""What the data path reads of a Service and its EndpointSlices."""

from __future__ import annotations

import pytest

from ext_authz.model.load import Loaded, load_text
from ext_authz.model.types import Service, ServicePort, ServiceTarget

SLICE = (
    "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n"
    "metadata: {name: NAME, namespace: shop, labels: {kubernetes.io/service-name: s}}\naddressType: IPv4\n"
)


def read(*texts: str) -> Loaded:
    return load_text("\n---\n".join(texts), "x.yaml")


def service(spec: str) -> str:
    return f"apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: shop}}\nspec: {spec}\n"


def slice_(rest: str, name: str = "s-1") -> str:
    return SLICE.replace("NAME", name) + rest


def only(loaded: Loaded) -> Service:
    assert not loaded.errors, loaded.errors
    (found,) = loaded.world.services
    return found


class TestAddresses:
    def test_both_versions_and_the_single_field_are_read(self) -> None:
        assert only(read(service("{clusterIP: 10.96.0.1}"))).addresses == ("10.96.0.1",)
        both = "{clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 'fd96::1']}"
        assert only(read(service(both))).addresses == ("10.96.0.1", "fd96::1")

    @pytest.mark.parametrize(
        "spec", ["{clusterIP: None}", "{clusterIP: ''}", "{}", "{type: ExternalName, clusterIP: 10.96.0.1}"]
    )
    def test_headless_and_external_services_have_none(self, spec: str) -> None:
        assert only(read(service(spec))).addresses == ()

    @pytest.mark.parametrize("text", ["127.0.0.1", "0.0.0.0", "169.254.0.1", "224.0.0.1", "::1", "::ffff:10.0.0.1"])
    def test_addresses_that_no_service_may_have_are_left_out(self, text: str) -> None:
        loaded = read(service(f"{{clusterIP: '{text}'}}"))
        assert only(loaded).addresses == ()
        assert "left out" in loaded.warnings[0].reason

    def test_what_is_no_address_is_an_error(self) -> None:
        assert [error.field for error in read(service("{clusterIP: ten}")).errors] == ["spec.clusterIP"]


class TestPorts:
    def test_protocol_defaults_to_tcp_and_node_port_to_none(self) -> None:
        found = only(read(service("{ports: [{port: 80}, {name: dns, port: 53, protocol: UDP, nodePort: 30053}]}")))
        assert found.ports == (ServicePort("", 80), ServicePort("dns", 53, "UDP", 30053))

    def test_a_port_out_of_range_is_an_error(self) -> None:
        assert read(service("{ports: [{port: 65536}]}")).errors


class TestAffinity:
    @pytest.mark.parametrize(
        ("spec", "seconds"),
        [
            ("{}", 0),
            ("{sessionAffinity: None}", 0),
            ("{sessionAffinity: ClientIP}", 10800),
            ("{sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}}", 60),
        ],
    )
    def test_only_client_ip_keeps_clients(self, spec: str, seconds: int) -> None:
        assert only(read(service(spec))).affinity_s == seconds


class TestTargets:
    def test_every_ready_endpoint_has_every_port_of_its_slice(self) -> None:
        rest = (
            "ports: [{name: web, port: 8080}, {name: dns, port: 53, protocol: UDP}]\n"
            "endpoints: [{addresses: [10.1.0.1], nodeName: n1}, {addresses: [10.1.0.2], conditions: {ready: false}}]\n"
        )
        assert only(read(service("{}"), slice_(rest))).targets == (
            ServiceTarget("web", "10.1.0.1", 8080, "TCP", "n1"),
            ServiceTarget("dns", "10.1.0.1", 53, "UDP", "n1"),
        )

    def test_slices_add_up_and_repeat_nothing(self) -> None:
        one = "ports: [{port: 80}]\nendpoints: [{addresses: [10.1.0.1]}]\n"
        two = "ports: [{port: 80}]\nendpoints: [{addresses: [10.1.0.1]}, {addresses: [10.1.0.2]}]\n"
        found = only(read(service("{}"), slice_(one), slice_(two, "s-2")))
        assert [target.address for target in found.targets] == ["10.1.0.1", "10.1.0.2"]

    def test_the_addresses_of_one_endpoint_are_one_target(self) -> None:
        rest = "ports: [{port: 80}]\nendpoints: [{addresses: [10.1.0.1, 10.1.0.9]}]\n"
        assert [t.address for t in only(read(service("{}"), slice_(rest))).targets] == ["10.1.0.1"]

    def test_a_port_without_a_number_gives_no_target(self) -> None:
        rest = "ports: [{name: web}]\nendpoints: [{addresses: [10.1.0.1]}]\n"
        assert only(read(service("{}"), slice_(rest))).targets == ()

    @pytest.mark.parametrize("text", ["127.0.0.1", "169.254.1.1"])
    def test_a_target_on_the_hosts_own_loopback_is_left_out(self, text: str) -> None:
        loaded = read(service("{}"), slice_(f"ports: [{{port: 80}}]\nendpoints: [{{addresses: [{text}]}}]\n"))
        assert only(loaded).targets == ()
        assert loaded.warnings
