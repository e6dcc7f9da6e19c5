# SPDX-License-Identifier: Apache-2.0
"""Attached endpoints: what may be claimed, how they are kept, and what they count as."""

from __future__ import annotations

import errno
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from sourcing import POD, policy

from ext_authz.agent.attachments import (
    AttachError,
    Attachment,
    AttachmentStore,
    Stage,
    check_addresses,
    check_free,
    check_name,
    parse_labels,
    read_record,
)
from ext_authz.agent.places import find_cgroup, gone
from ext_authz.agent.sources import Sources, View
from ext_authz.boot import boot_id
from ext_authz.model.types import Settings

ONE = Attachment("default", "web", ("10.0.0.3",), 1, {"app": "web"}, ifindex=7, peer_ifindex=2, interface="eth0")


def look(tmp_path: Path, store: AttachmentStore, pods: str = "", node: str | None = None) -> View:
    kept, policies, endpoints = tmp_path / "kept", tmp_path / "policies", tmp_path / "endpoints"
    for folder in (kept, policies, endpoints):
        folder.mkdir(exist_ok=True)
    (policies / "p.yaml").write_text(policy())
    (endpoints / "e.yaml").write_text("apiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n" + pods)
    paths = {"policies": [policies], "endpoints": [endpoints]}
    return Sources(kept, paths, Settings(), node, None, store).look()


@pytest.fixture
def store(tmp_path: Path) -> AttachmentStore:
    return AttachmentStore(tmp_path / "attached")


def test_labels_are_keys_and_values_with_commas_between() -> None:
    assert parse_labels(["app=web,tier=front", "k8s:zone=a", "alone"]) == {
        "app": "web", "tier": "front", "zone": "a", "alone": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["reserved:host", "reserved:host=", "cidr:10.0.0.0/8", "fqdn:a.b", "container:app=web", "any:app=web", ":a=b",
     "k8s:reserved:host", "io.kubernetes.pod.namespace=kube-system", "k8s:io.cilium.k8s.policy.cluster=x",
     "io.cilium.k8s.namespace.labels.team=a", "io.cilium.k8s.policy.serviceaccount=admin", "$x=1", "a b=c", "a=b c",
     "app=web,app=db", f"{'a' * 64}=b"],
)  # fmt: skip
def test_labels_that_nobody_may_claim_are_refused(text: str) -> None:
    with pytest.raises(AttachError):
        parse_labels([text])


@pytest.mark.parametrize("text", ["", "x", "127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.1", "fe80::1", "fe80::1%eth0",
                                  "169.254.3.4", "::ffff:10.0.0.1", "10.0.0.0/24"])  # fmt: skip
def test_addresses_that_are_no_workloads_own_are_refused(text: str) -> None:
    with pytest.raises(AttachError):
        check_addresses([text])


def test_addresses_are_canonical_and_each_once() -> None:
    assert check_addresses(["10.0.0.1", "FD00::0001", "10.0.0.1"]) == ("10.0.0.1", "fd00::1")


@pytest.mark.parametrize(("namespace", "name"), [("", "a"), ("a", ""), ("a", "B"), ("a/b", "c"), ("a", "../x")])
def test_names_are_as_in_kubernetes(namespace: str, name: str) -> None:
    with pytest.raises(AttachError):
        check_name(namespace, name)


def test_an_address_an_interface_and_a_cgroup_have_one_owner() -> None:
    other = replace(ONE, name="other")
    for mine in (other, replace(other, ifindex=8), replace(other, addresses=("10.0.0.9",))):
        with pytest.raises(AttachError):
            check_free(mine, [ONE])
    check_free(replace(other, ifindex=8, addresses=("10.0.0.9",)), [ONE])
    check_free(replace(ONE, addresses=("10.0.0.4",)), [ONE])
    grouped = replace(ONE, ifindex=0, cgroup="/x", cgroup_id=5)
    with pytest.raises(AttachError):
        check_free(replace(grouped, name="b", addresses=()), [grouped])


def test_what_was_kept_reads_back_whole(store: AttachmentStore) -> None:
    store.put(ONE)
    assert store.all() == [ONE]
    assert store.find("default/web") == ONE
    assert store.free_number() == 2
    assert store.remove("default/web")
    assert not store.remove("default/web")
    assert store.all() == []
    assert read_record(json.loads(json.dumps(ONE.record()))) == ONE


def test_an_attached_endpoint_is_a_pod_of_this_node(tmp_path: Path, store: AttachmentStore) -> None:
    store.put(ONE)
    view = look(tmp_path, store, node="here")
    (endpoint,) = view.world.endpoints
    assert (endpoint.name, endpoint.addresses, endpoint.local) == ("default/web", ("10.0.0.3",), True)
    assert "k8s:app=web" in endpoint.labels
    assert "k8s:io.kubernetes.pod.namespace=default" in endpoint.labels
    assert [source.role for source in view.sources] == ["policies", "endpoints", "attached"]
    assert not view.errors


@pytest.mark.parametrize("stage", [Stage.COMING, Stage.LEAVING])
def test_who_comes_or_leaves_has_no_identity(stage: Stage, tmp_path: Path, store: AttachmentStore) -> None:
    store.put(replace(ONE, stage=stage))
    assert not look(tmp_path, store).world.endpoints


def test_without_labels_the_sources_say_who_it_is(tmp_path: Path, store: AttachmentStore) -> None:
    store.put(replace(ONE, labels=None))
    view = look(tmp_path, store, POD % {"name": "web", "ip": "10.0.0.3"})
    assert [endpoint.name for endpoint in view.world.endpoints] == ["default/web"]
    assert not view.errors


def test_two_words_on_one_endpoint_leave_it_to_nobody(tmp_path: Path, store: AttachmentStore) -> None:
    store.put(ONE)
    view = look(tmp_path, store, POD % {"name": "web", "ip": "10.0.0.3"})
    assert not view.world.endpoints
    assert any(store.folder.name in error.origin.file for error in view.errors)


def test_a_damaged_file_leaves_the_endpoint_as_it_was(tmp_path: Path, store: AttachmentStore) -> None:
    store.put(ONE)
    kept, policies = tmp_path / "kept", tmp_path / "policies"
    for folder in (kept, policies):
        folder.mkdir()
    (policies / "p.yaml").write_text(policy())
    sources = Sources(kept, {"policies": [policies]}, Settings(), None, None, store)
    sources.persist(sources.look())
    Path(store.path(ONE.key)).write_text("{")
    view = sources.look()
    assert [endpoint.name for endpoint in view.world.endpoints] == ["default/web"]
    assert view.kept == ["Pod default/web"]
    assert view.errors


def test_beside_an_attachment_that_cannot_be_read_no_number_is_free(store: AttachmentStore) -> None:
    """Links are found by it: programs of the one that has it would be taken off where they judge."""
    store.put(ONE)
    store.put(replace(ONE, name="other", number=2))
    Path(store.path("default/other")).write_text("{")
    with pytest.raises(AttachError, match="cannot be read"):
        store.free_number()
    store.remove("default/other")
    assert store.free_number() == 2


def test_a_record_that_claims_too_much_is_none(store: AttachmentStore) -> None:
    record = ONE.record()
    for change in ({"labels": {"reserved:host": ""}}, {"addresses": ["127.0.0.1"]}, {"stage": "x"}, {"format": 9}):
        with pytest.raises(ValueError, match=r".*"):
            read_record(record | change)


def test_what_was_attached_before_the_host_was_started_anew_is_gone() -> None:
    """Its numbers may be those of somebody else's interface by now."""
    assert gone(replace(ONE, boot="an earlier one")) == "the host was started anew since"
    assert gone(replace(ONE, ifindex=2**31 - 1, boot=boot_id())) == "interface 2147483647 is gone"


def test_the_cgroup_in_which_the_node_runs_is_no_workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would deny itself, and whoever could undo it."""
    for name in ("slice", "slice/node", "slice/unit"):
        (tmp_path / name).mkdir()
        for file in ("cgroup.procs", "cgroup.type"):
            (tmp_path / name / file).touch()
    monkeypatch.setattr("ext_authz.agent.cgroups.mounted", lambda: tmp_path)
    monkeypatch.setattr("ext_authz.agent.places._cgroup_path", lambda _: "/slice/node")
    for name in ("slice", "slice/node"):
        with pytest.raises(AttachError, match="itself runs in it"):
            find_cgroup(str(tmp_path / name))
    assert find_cgroup(str(tmp_path / "slice/unit"))[0] == str(tmp_path / "slice/unit")


def test_a_file_is_read_again_only_when_it_is_another_one(
    store: AttachmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand of them are asked for every second."""
    for number in (1, 2, 3):
        store.put(replace(ONE, name=f"web{number}", number=number))
    long_ago = time.time() - 60
    for path in (*store.folder.iterdir(), store.folder):
        os.utime(path, (long_ago, long_ago))
    assert len(store.all()) == 3
    monkeypatch.setattr("ext_authz.agent.attachments._read", lambda path: pytest.fail(f"{path} was read"))
    assert [one.number for one in store.all()] == [1, 2, 3]
    monkeypatch.undo()
    store.put(replace(ONE, name="web2", number=9))
    assert [one.number for one in store.all()] == [1, 3, 9]
    store.put(replace(ONE, name="web2", number=8))  # in the same tick of the clock
    assert [one.number for one in store.all()] == [1, 3, 8]
    assert store.remove("default/web1")
    assert [one.number for one in store.all()] == [3, 8]


def test_a_file_that_could_not_be_read_is_read_the_next_time(
    store: AttachmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no damage that a process had too many files open."""
    store.put(ONE)
    long_ago = time.time() - 60
    for path in (*store.folder.iterdir(), store.folder):
        os.utime(path, (long_ago, long_ago))

    def refused(_: Path) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as failing:
        failing.setattr(Path, "read_bytes", refused)
        assert [bool(file.problem) for file in store.files()] == [True]
    assert store.all() == [ONE]
