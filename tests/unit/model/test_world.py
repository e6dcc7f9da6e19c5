# SPDX-License-Identifier: Apache-2.0
"""Context objects and how they join: labels, addresses, nodes, services, secrets."""

from __future__ import annotations

import pytest

from ext_authz.model.context import pod_labels
from ext_authz.model.load import Loaded, load_text
from ext_authz.model.types import Endpoint, NamedPort, Service

NS = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: core}}\n"


def read(*objects: str, node: str | None = None) -> Loaded:
    return load_text("\n---\n".join(objects), "x.yaml", node=node)


def pod(
    name: str = "p", spec: str = "{}", status: str = "{podIPs: [{ip: 10.0.0.1}]}", labels: str = "{app: web}"
) -> str:
    meta = f"{{name: {name}, namespace: shop, labels: {labels}}}"
    return f"apiVersion: v1\nkind: Pod\nmetadata: {meta}\nspec: {spec}\nstatus: {status}\n"


def node(name: str, address: str) -> str:
    status = f"{{addresses: [{{type: InternalIP, address: {address}}}, {{type: Hostname, address: h}}]}}"
    return f"apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{role: worker}}}}\nstatus: {status}\n"


def endpoint_object(
    labels: str, status: str = "networking: {addressing: [{ipv4: 10.0.0.9}], node: 192.168.0.1}"
) -> str:
    return (
        "apiVersion: cilium.io/v2\nkind: CiliumEndpoint\nmetadata: {name: e, namespace: shop}\n"
        f"status: {{identity: {{id: 1, labels: {labels}}}, {status}}}\n"
    )


def only(loaded: Loaded) -> Endpoint:
    assert not loaded.errors, loaded.errors
    (found,) = loaded.world.endpoints
    return found


class TestPods:
    def test_labels_are_complete(self) -> None:
        found = only(read(NS, pod(spec="{serviceAccountName: robot}")))
        assert found.labels == (
            "k8s:app=web",
            "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop",
            "k8s:io.cilium.k8s.namespace.labels.team=core",
            "k8s:io.cilium.k8s.policy.cluster=default",
            "k8s:io.cilium.k8s.policy.serviceaccount=robot",
            "k8s:io.kubernetes.pod.namespace=shop",
        )
        assert (found.name, found.kind, found.identity) == ("shop/p", "pod", None)

    def test_a_pod_cannot_claim_what_is_computed(self) -> None:
        labels = pod_labels(
            "shop",
            {"io.kubernetes.pod.namespace": "bank", "io.cilium.k8s.namespace.labels.team": "x", "a": "b"},
            {"kubernetes.io/metadata.name": "bank"},
            "",
            "c",
        )
        assert labels == (
            "k8s:a=b",
            "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop",
            "k8s:io.cilium.k8s.policy.cluster=c",
            "k8s:io.kubernetes.pod.namespace=shop",
        )
        loaded = read(pod(labels="{io.kubernetes.pod.namespace: bank}"))
        assert not any("bank" in label for label in only(loaded).labels)
        assert len(loaded.warnings) == 1

    @pytest.mark.parametrize(
        "label", ["'reserved:host': ''", "'$host': ''", "'container:a': b", "'k8s:a': b", "a: 'b c'", "'': x", "a: 1"]
    )
    def test_forged_and_bad_labels_are_refused(self, label: str) -> None:
        loaded = read(pod(labels=f"{{{label}}}"))
        assert len(loaded.errors) == 1
        assert loaded.errors[0].field.startswith("metadata.labels")
        assert not loaded.world.endpoints

    def test_addresses_and_named_ports(self) -> None:
        spec = """{containers: [{ports: [{name: HTTP, containerPort: 8080}, {containerPort: 1}]},
          {ports: [{name: dns, containerPort: 53, protocol: UDP}]}], initContainers: [
          {restartPolicy: Always, ports: [{name: side, containerPort: 7}]}, {ports: [{name: no, containerPort: 8}]}]}"""
        found = only(read(pod(spec=spec, status="{podIPs: [{ip: 10.0.0.1}, {ip: 'fd00:0::1'}], podIP: 10.0.0.1}")))
        assert found.addresses == ("10.0.0.1", "fd00::1")
        ports = (NamedPort("http", 8080, "TCP"), NamedPort("dns", 53, "UDP"), NamedPort("side", 7, "TCP"))
        assert found.named_ports == ports

    @pytest.mark.parametrize(
        ("spec", "status"),
        [
            ("{hostNetwork: true}", "{podIPs: [{ip: 192.168.0.1}]}"),
            ("{}", "{phase: Succeeded, podIPs: [{ip: 10.0.0.1}]}"),
        ],
    )
    def test_pods_of_the_host_and_finished_ones_are_no_endpoints(self, spec: str, status: str) -> None:
        loaded = read(pod(spec=spec, status=status))
        assert (loaded.errors, loaded.world.endpoints) == ([], ())

    def test_null_and_absent_are_the_same_and_other_fields_are_not_read(self) -> None:
        assert only(read(pod(spec="{containers: null, other: [x]}", status="{podIP: 10.0.0.1, podIPs: null, 1: 2}")))

    @pytest.mark.parametrize(
        ("spec", "status", "field"),
        [
            ("[]", "{}", "spec"),
            ("{containers: {}}", "{}", "spec.containers"),
            (
                "{containers: [{ports: [{name: a, containerPort: 0}]}]}",
                "{}",
                "spec.containers[0].ports[0].containerPort",
            ),
            ("{containers: [{ports: [{name: a b, containerPort: 1}]}]}", "{}", "spec.containers[0].ports[0].name"),
            ("{containers: [{ports: [{name: a}]}]}", "{}", "spec.containers[0].ports[0].containerPort"),
            ("{serviceAccountName: []}", "{}", "spec.serviceAccountName"),
            ("{}", "{podIPs: [10.0.0.1]}", "status.podIPs[0]"),
            ("{}", "{podIPs: [{ip: a}]}", "status.podIPs[0].ip"),
            ("{}", "{podIPs: [{ip: 'fe80::1%eth0'}]}", "status.podIPs[0].ip"),
        ],
    )
    def test_fields_that_are_read_are_checked(self, spec: str, status: str, field: str) -> None:
        assert [error.field for error in read(pod(spec=spec, status=status)).errors] == [field]

    def test_an_address_claimed_twice_belongs_to_nobody(self) -> None:
        loaded = read(pod("a"), pod("b"), pod("c", status="{podIPs: [{ip: 10.0.0.2}]}"))
        assert [error.ref.name for error in loaded.errors] == ["a", "b"]
        assert [endpoint.addresses for endpoint in loaded.world.endpoints] == [(), (), ("10.0.0.2",)]

    def test_pods_of_a_refused_namespace_are_left_out(self) -> None:
        loaded = read(NS.replace("core", "a b"), pod())
        assert loaded.errors
        assert not loaded.world.endpoints

    def test_only_pods_of_the_named_node_are_local(self) -> None:
        loaded = read(
            pod("a", "{nodeName: n1}", "{}"), pod("b", "{nodeName: n2}", "{}"), node("n1", "192.168.0.1"), node="n1"
        )
        assert [(e.name, e.kind, e.local) for e in loaded.world.endpoints] == [
            ("shop/a", "pod", True),
            ("shop/b", "pod", False),
            ("n1", "host", True),
        ]


class TestCiliumEndpoints:
    def test_labels_come_from_the_identity(self) -> None:
        found = only(read(NS, endpoint_object("['k8s:app=db', 'k8s:io.kubernetes.pod.namespace=shop']")))
        assert "k8s:app=db" in found.labels
        assert "k8s:io.cilium.k8s.namespace.labels.team=core" in found.labels
        assert found.addresses == ("10.0.0.9",)
        assert found.identity is None

    @pytest.mark.parametrize(
        "label",
        ["reserved:host", "k8s:io.kubernetes.pod.namespace=bank", "cidr:10.0.0.0/8=", "app=db", "k8s:a b=c", "fqdn:a="],
    )
    def test_forged_labels_are_refused(self, label: str) -> None:
        loaded = read(endpoint_object(f"['{label}']"))
        assert [error.field for error in loaded.errors] == ["status.identity.labels[0]"]
        assert not loaded.world.endpoints

    def test_the_pod_itself_wins(self) -> None:
        found = only(read(pod("e"), endpoint_object("['k8s:app=db']")))
        assert "k8s:app=web" in found.labels
        assert "k8s:app=db" not in found.labels

    def test_the_own_node_decides_what_is_local(self) -> None:
        loaded = read(endpoint_object("[]"), node("n1", "192.168.0.1"), node="n1")
        assert [endpoint.local for endpoint in loaded.world.endpoints] == [True, True]


class TestNodesAndServices:
    def test_nodes_are_remote_unless_named(self) -> None:
        found = read(node("n1", "192.168.0.1"), node("n2", "192.168.0.2"), node="n2").world.endpoints
        assert [(e.kind, e.node_labels, e.addresses) for e in found] == [
            ("remote-node", ("k8s:role=worker",), ("192.168.0.1",)),
            ("host", ("k8s:role=worker",), ("192.168.0.2",)),
        ]

    def test_an_unknown_own_node_warns(self) -> None:
        assert read(node("n1", "192.168.0.1"), node="n9").warnings

    def test_addresses_of_the_api_server(self) -> None:
        meta = "{name: kubernetes, namespace: default, labels: {kubernetes.io/service-name: kubernetes}}"
        slice_ = (
            f"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {meta}\naddressType: IPv4\nendpoints: "
        )
        loaded = read(node("n1", "192.168.0.1"), slice_ + "[{addresses: [192.168.0.1, 172.16.0.9]}]")
        assert [(e.kind, e.kube_apiserver, e.addresses) for e in loaded.world.endpoints] == [
            ("remote-node", True, ("192.168.0.1",)),
            ("external", True, ("172.16.0.9",)),
        ]

    def test_services_have_the_ready_backends_of_their_slices(self) -> None:
        meta = "{name: s-1, namespace: shop, labels: {kubernetes.io/service-name: s}}"
        slice_ = (
            f"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {meta}\naddressType: IPv4\n"
            "endpoints: [{addresses: [10.1.0.1]}, {addresses: [10.1.0.2], conditions: {ready: false}}]\n"
        )
        service = "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop, labels: {a: b}}\nspec: {}\n"
        assert read(service, slice_).world.services == (Service("shop", "s", {"a": "b"}, None, ("10.1.0.1",)),)

    def test_knative_services_are_another_thing(self) -> None:
        loaded = read("apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: s}\n")
        assert loaded.skipped == {"Service": 1}


class TestSecretsAndGroups:
    POLICY = (
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p, namespace: shop}\n"
        "spec: {endpointSelector: {}, egress: [{toPorts: [{ports: [{port: '443', protocol: TCP}], "
        "terminatingTLS: {secret: {name: cert}}, rules: {http: [{headerMatches: [{name: X, secret: "
        "{namespace: other, name: token}}]}]}}]}]}\n"
    )

    def secret(self, namespace: str, name: str, data: str = "{a: aGk=}") -> str:
        return f"apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: {namespace}}}\ndata: {data}\n"

    def test_missing_secrets_count_only_beside_given_ones(self) -> None:
        assert not read(self.POLICY).errors
        loaded = read(self.POLICY, self.secret("shop", "cert"))
        assert [error.field for error in loaded.errors] == [
            "spec.egress[0].toPorts[0].rules.http[0].headerMatches[0].secret"
        ]
        assert not loaded.world.policies
        assert loaded.world.isolated
        assert not read(self.POLICY, self.secret("shop", "cert"), self.secret("other", "token")).errors

    def test_secrets_are_decoded_and_never_shown(self) -> None:
        loaded = read(self.secret("shop", "s", "{a: c2VjcmV0}") + "stringData: {b: plain}\n")
        (secret,) = loaded.world.secrets
        assert secret.data == {"a": b"secret", "b": b"plain"}
        assert "secret'" not in repr(secret)
        assert "plain" not in repr(secret)

    def test_bad_base64_is_refused(self) -> None:
        (error,) = read(self.secret("shop", "s", "{a: 'not base64!'}")).errors
        assert error.field == "data.a"
        assert "not base64!" not in error.reason

    @pytest.mark.parametrize("version", ["v2", "v2alpha1"])
    def test_cidr_groups(self, version: str) -> None:
        text = f"apiVersion: cilium.io/{version}\nkind: CiliumCIDRGroup\nmetadata: {{name: g, labels: {{a: b}}}}\n"
        (group,) = read(text + "spec: {externalCIDRs: [10.0.0.0/8]}\n").world.cidr_groups
        assert (group.name, group.labels, [str(cidr) for cidr in group.cidrs]) == ("g", {"a": "b"}, ["10.0.0.0/8"])

    @pytest.mark.parametrize(
        ("spec", "field"),
        [
            ("{}", "spec.externalCIDRs"),
            ("{externalCIDRs: [10.0.0.1]}", "spec.externalCIDRs[0]"),
            ("{externalCIDRs: [], cidrs: []}", "spec.cidrs"),
            ("null", "spec"),
        ],
    )
    def test_bad_groups_take_denies_through_them_along(self, spec: str, field: str) -> None:
        group = f"apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {{name: g}}\nspec: {spec}\n"
        policy = (
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\n"
            "spec: {endpointSelector: {}, NAME: [{fromCIDRSet: [{cidrGroupRef: g}]}]}\n"
        )
        allowing = read(group, policy.replace("NAME", "ingress"))
        assert [error.field for error in allowing.errors] == [field]
        assert allowing.world.policies  # an allow through nothing allows nothing
        denying = read(group, policy.replace("NAME", "ingressDeny"))
        assert {error.field for error in denying.errors} == {field, "spec.ingressDeny[0]"}
        assert not denying.world.policies
        assert denying.world.isolated
