# SPDX-License-Identifier: Apache-2.0
"""Files and folders: what is found, what is kept between loads, what a bad file does to the rest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ext_authz.model import load as load_module
from ext_authz.model.load import Loader, find_files, load, load_text
from ext_authz.model.nodes import Document
from ext_authz.model.objects import read_document
from ext_authz.model.settings import parse_settings
from ext_authz.model.types import Settings, World

GOOD = """apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: {name}}}
spec:
  endpointSelector: {{matchLabels: {{app: {name}}}}}
  ingress:
  - toPorts:
    - ports: [{{port: "80", protocol: TCP}}]
      rules:
        http:
        - path: /a
"""
POD = """apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, labels: {{app: web}}}}
spec: {{nodeName: node-a}}
status: {{podIPs: [{{ip: {ip}}}]}}
"""


def good(name: str) -> str:
    return GOOD.format(name=name)


def names(world: World) -> list[str]:
    return [policy.ref.name for policy in world.policies]


class TestFiles:
    def test_folders_are_read_in_order_and_hidden_names_passed_over(self, tmp_path: Path) -> None:
        for name in ("b.yaml", "a.yml", "c/d.json", ".hidden/x.yaml", ".x.yaml", "note.txt", "c/..data/y.yaml"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("")
        found = [os.path.relpath(name, tmp_path) for name, _ in find_files([tmp_path])]
        assert found == ["a.yml", "b.yaml", "c/d.json"]

    def test_a_file_named_twice_is_read_once(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text(good("a"))
        assert names(load([tmp_path, str(tmp_path / "a.yaml")]).world) == ["a"]

    def test_a_named_file_may_have_any_suffix(self, tmp_path: Path) -> None:
        (tmp_path / "policy").write_text(good("a"))
        assert names(load([tmp_path / "policy"]).world) == ["a"]

    def test_a_missing_path_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            load([tmp_path / "none"])

    def test_an_unreadable_file_closes_the_node_and_stops_no_other(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").symlink_to(tmp_path / "gone")
        (tmp_path / "b.yaml").write_text(good("b"))
        loaded = load([tmp_path])
        assert names(loaded.world) == ["b"]
        assert [error.reason for error in loaded.errors] == ["cannot be read: No such file or directory"]
        assert loaded.world.closed

    def test_a_pipe_in_a_folder_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "a.yaml")
        (error,) = load([tmp_path]).errors
        assert error.reason == "is no regular file"

    def test_a_huge_file_is_not_read(self, tmp_path: Path) -> None:
        with (tmp_path / "a.yaml").open("wb") as file:
            file.truncate(load_module.MAX_FILE + 1)
        (error,) = load([tmp_path]).errors
        assert "larger than" in error.reason

    def test_text_that_is_not_utf8_is_placed(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_bytes(b"a: b\nc: \xff\n")
        (error,) = load([tmp_path]).errors
        assert (error.origin.line, error.origin.column) == (2, 4)
        assert "UTF-8" in error.reason

    def test_a_byte_order_mark_is_passed_over(self) -> None:
        assert names(load_text("\ufeff" + good("a"), "a.yaml").world) == ["a"]


class TestBadDocuments:
    def test_a_bad_document_stops_no_other(self) -> None:
        loaded = load_text(f"{good('a')}---\na: [\n---\n{good('b')}", "x.yaml")
        assert names(loaded.world) == ["a", "b"]
        (error,) = loaded.errors
        assert error.origin.line == 14
        assert loaded.world.closed  # nobody knows what it was

    def test_a_bad_policy_isolates_whom_it_selects_and_stops_no_other(self) -> None:
        bad = good("b").replace("http", "https")
        loaded = load_text(f"{good('a')}---\n{bad}", "x.yaml")
        assert names(loaded.world) == ["a"]
        assert not loaded.world.closed
        (isolated,) = loaded.world.isolated
        assert isolated.ref.name == "b"
        assert isolated.selector.requirements[0].values == ("b",)
        assert isolated.subject_kind == "endpoint"
        assert "https" in isolated.reason
        assert [(entry.ref.name, entry.ok, entry.line) for entry in loaded.objects] == [
            ("a", True, 1),
            ("b", False, 13),
        ]

    def test_an_unreadable_selector_closes_the_node(self) -> None:
        loaded = load_text(good("a").replace("matchLabels", "matchLabel"), "x.yaml")
        assert loaded.world.closed
        assert not loaded.world.isolated

    @pytest.mark.parametrize(
        "text",
        ["- a\n", "just text\n", "a: b\n", "kind: 1\n", "kind: CiliumNetworkPolicyX\napiVersion: cilium.io/v2\n"],
    )
    def test_what_might_be_a_policy_closes_the_node(self, text: str) -> None:
        loaded = load_text(text, "x.yaml")
        assert loaded.errors
        assert loaded.world.closed

    def test_a_bad_context_object_closes_nothing(self) -> None:
        loaded = load_text(POD.format(name="p", ip="10.0.0.300"), "x.yaml")
        assert [error.field for error in loaded.errors] == ["status.podIPs[0].ip"]
        assert not loaded.world.closed
        assert not loaded.world.endpoints


class TestKinds:
    @pytest.mark.parametrize(
        ("api", "kind"),
        [
            ("cilium.io/v1", "CiliumNetworkPolicy"),
            ("cilium.io/v3", "CiliumClusterwideNetworkPolicy"),
            ("extensions/v1beta1", "NetworkPolicy"),
            ("crd.projectcalico.org/v1", "NetworkPolicy"),
            ("cilium.io/v2beta1", "CiliumCIDRGroup"),
            ("v2", "Pod"),
            ("discovery.k8s.io/v1beta1", "EndpointSlice"),
        ],
    )
    def test_an_unknown_version_of_our_kinds_is_refused(self, api: str, kind: str) -> None:
        loaded = load_text(f"apiVersion: {api}\nkind: {kind}\nmetadata: {{name: a}}\n", "x.yaml")
        assert "apiVersion" in {error.field for error in loaded.errors}

    def test_a_missing_version_is_refused(self) -> None:
        loaded = load_text("kind: Pod\nmetadata: {name: a}\n", "x.yaml")
        assert [error.field for error in loaded.errors] == ["apiVersion"]

    def test_cluster_network_policy_is_refused(self) -> None:
        text = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: a}\n"
        loaded = load_text(text, "x.yaml")
        assert ["not supported" in error.reason for error in loaded.errors] == [True]
        assert loaded.world.closed

    def test_kinds_in_wrong_case_are_refused(self) -> None:
        loaded = load_text("apiVersion: cilium.io/v2\nkind: Ciliumnetworkpolicy\nmetadata: {name: a}\n", "x.yaml")
        assert "CiliumNetworkPolicy" in loaded.errors[0].reason
        assert loaded.world.closed

    def test_other_kinds_are_counted_and_refused_when_strict(self) -> None:
        text = (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n---\nkind: Deployment\napiVersion: apps/v1\n"
        )
        loaded = load_text(text, "x.yaml")
        assert (loaded.skipped, loaded.errors, loaded.objects) == ({"Deployment": 2}, [], [])
        assert len(load_text(text, "x.yaml", strict=True).errors) == 2

    def test_lists_are_unpacked_and_items_keep_their_place(self) -> None:
        body = "\n".join("  " + line for line in POD.format(name="p", ip="10.0.0.300").splitlines())
        loaded = load_text(f"apiVersion: v1\nkind: List\nitems:\n-{body[1:]}\n", "x.yaml")
        assert [(error.ref.name, error.origin.line) for error in loaded.errors] == [("p", 8)]

    def test_an_item_of_a_list_reads_alone(self) -> None:
        loaded = load_text(f'{{"apiVersion": "v1", "kind": "List", "items": [{_json_policy("a")}]}}', "x.yaml")
        (entry,) = loaded.objects
        assert load_text(entry.text, "y.json").world.policies[0].ref == loaded.world.policies[0].ref

    def test_typed_lists_say_what_their_items_are(self) -> None:
        text = "apiVersion: v1\nkind: NamespaceList\nitems:\n- metadata: {name: a}\n- metadata: {name: b}\n"
        assert [entry.ref.kind for entry in load_text(text, "x.yaml").objects] == ["Namespace", "Namespace"]

    def test_a_namespaced_object_defaults_to_default(self) -> None:
        assert load_text(good("a"), "x.yaml").world.policies[0].ref.namespace == "default"

    def test_a_clusterwide_object_has_no_namespace(self) -> None:
        text = good("a").replace("CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy")
        loaded = load_text(text.replace("name: a}", "name: a, namespace: b}"), "x.yaml")
        assert loaded.world.policies[0].ref.namespace == ""
        assert [warning.field for warning in loaded.warnings] == ["metadata.namespace"]

    @pytest.mark.parametrize("metadata", ["{}", "{name: ''}", "{name: A_b}", "{name: a, namespace: a.b}", "[]", "null"])
    def test_bad_names_are_refused(self, metadata: str) -> None:
        text = good("a").replace("{name: a}", metadata)
        assert load_text(text, "x.yaml").errors[0].field.startswith("metadata")

    def test_unknown_fields_beside_spec_are_refused(self) -> None:
        assert [error.field for error in load_text(good("a") + "ingress: []\n", "x.yaml").errors] == ["ingress"]


def _json_policy(name: str) -> str:
    import json

    import yaml

    return json.dumps(yaml.safe_load(good(name)))


class TestDuplicates:
    def test_two_objects_of_one_name_are_refused_and_each_names_the_other(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text(good("x"))
        (tmp_path / "b.yaml").write_text(f"# note\n{good('x')}---\n{good('y')}")
        loaded = load([tmp_path])
        assert names(loaded.world) == ["y"]
        places = {(Path(error.origin.file).name, error.origin.line) for error in loaded.errors}
        assert places == {("a.yaml", 1), ("b.yaml", 2)}
        assert "b.yaml:2" in loaded.errors[0].reason
        assert "a.yaml:1" in loaded.errors[1].reason
        assert [isolated.ref.name for isolated in loaded.world.isolated] == ["x", "x"]
        assert [entry.ok for entry in loaded.objects] == [False, False, True]

    def test_twice_in_one_file(self) -> None:
        loaded = load_text(f"{good('x')}---\n{good('x')}", "x.yaml")
        assert len(loaded.errors) == 2
        assert not loaded.world.policies

    def test_other_kinds_and_namespaces_are_other_objects(self) -> None:
        other = good("x").replace("name: x}", "name: x, namespace: b}")
        clusterwide = good("x").replace("CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy")
        assert not load_text(f"{good('x')}---\n{other}---\n{clusterwide}", "x.yaml").errors


class TestCaching:
    def write(self, folder: Path, count: int) -> None:
        (folder / "pods.yaml").write_text(
            "---\n".join(POD.format(name=f"p{n}", ip=f"10.0.0.{n}") for n in range(count))
        )
        (folder / "policies.yaml").write_text("---\n".join(good(f"x{n}") for n in range(count)))

    def count_reads(self, monkeypatch: pytest.MonkeyPatch) -> list[Document]:
        read: list[Document] = []

        def counting(document: Document, file: str, settings: Settings) -> object:
            read.append(document)
            return read_document(document, file, settings)

        monkeypatch.setattr(load_module, "read_document", counting)
        return read

    def test_one_changed_object_costs_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.write(tmp_path, 50)
        loader = Loader()
        before = loader.load([tmp_path]).world
        read = self.count_reads(monkeypatch)
        file = tmp_path / "policies.yaml"
        file.write_text(file.read_text().replace("name: x7}", "name: x7}\n# moved"))
        after = loader.load([tmp_path])
        assert len(read) == 1
        assert after.world.endpoints == before.endpoints
        assert after.world.policies[6] is before.policies[6]
        assert after.world.policies[8].origin.line == before.policies[8].origin.line + 1

    def test_a_moved_object_equals_one_read_there(self, tmp_path: Path) -> None:
        self.write(tmp_path, 5)
        loader = Loader()
        loader.load([tmp_path])
        for name in ("pods.yaml", "policies.yaml"):
            (tmp_path / f"new-{name}").write_text("# one\n# two\n---\n" + (tmp_path / name).read_text())
            (tmp_path / name).unlink()
        again = loader.load([tmp_path])
        fresh = load([tmp_path])
        assert repr(again.world) == repr(fresh.world)  # repr: places that do not take part in ==
        assert repr(again.objects) == repr(fresh.objects)

    def test_a_moved_error_equals_one_read_there(self, tmp_path: Path) -> None:
        file = tmp_path / "a.yaml"
        file.write_text("a: 1\na: 2\n")
        loader = Loader()
        loader.load([tmp_path])
        file.write_text("\n---\na: 1\na: 2\n")
        (error,) = loader.load([tmp_path]).errors
        assert error.origin.line == 4
        assert "line 3" in error.reason

    def test_what_is_gone_is_gone(self, tmp_path: Path) -> None:
        self.write(tmp_path, 3)
        loader = Loader()
        loader.load([tmp_path])
        (tmp_path / "pods.yaml").unlink()
        assert not loader.load([tmp_path]).world.endpoints

    def test_namespace_labels_reach_pods_that_did_not_change(self, tmp_path: Path) -> None:
        self.write(tmp_path, 2)
        loader = Loader()
        loader.load([tmp_path])
        (tmp_path / "ns.yaml").write_text(
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: a}}\n"
        )
        for endpoint in loader.load([tmp_path]).world.endpoints:
            assert "k8s:io.cilium.k8s.namespace.labels.team=a" in endpoint.labels

    def test_a_bad_setting_in_the_config_map_is_refused(self) -> None:
        text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: cilium-config}\ndata: {enable-ipv6: maybe}\n"
        (error,) = load_text(text, "x.yaml").errors
        assert (error.field, error.origin.line) == ("data.enable-ipv6", 4)

    def test_settings_of_the_config_map_are_used_and_stated_ones_win(self, tmp_path: Path) -> None:
        text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: cilium-config, namespace: kube-system}\ndata: "
        (tmp_path / "a.yaml").write_text(text + '{cluster-name: one, enable-node-selector-labels: "true", other: x}\n')
        (tmp_path / "p.yaml").write_text(good("p").replace("- toPorts:", "- fromNodes: [{}]\n    toPorts:"))
        loader = Loader()
        for _ in range(2):
            loaded = loader.load([tmp_path])
            assert not loaded.errors
            assert (loaded.world.settings.cluster_name, loaded.world.settings.node_selector_labels) == ("one", True)
        stated = load([tmp_path], settings=parse_settings(["cluster-name=two"]))
        assert stated.world.settings.cluster_name == "two"
        (tmp_path / "a.yaml").unlink()
        assert loader.load([tmp_path]).errors
