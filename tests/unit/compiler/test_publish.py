# SPDX-License-Identifier: Apache-2.0
"""Laws of publishing: whole or not at all, private, and revisions that only rise."""

import json
import os
import stat

import pytest

from ext_authz.compiler.pack import Packer, pack
from ext_authz.compiler.publish import FileTransport, PublishError, read_head
from ext_authz.files import replace_file
from tests.unit.compiler.handmade import changed, entry, ingress, resolved

WORLD = resolved({300: ingress(entry("a"))})
OTHER = changed(WORLD, subjects={300: ingress(entry("a", 443))})


def test_a_published_snapshot_is_what_was_packed(tmp_path):
    packed = pack(WORLD)
    digest = FileTransport(tmp_path).publish(packed.snapshot)
    assert (tmp_path / "snapshot").read_bytes() == packed.snapshot
    assert digest == packed.digest.hex() == read_head(packed.snapshot).digest


def test_a_snapshot_in_parts_is_published_whole(tmp_path):
    packed = pack(WORLD)
    assert FileTransport(tmp_path).publish(packed.parts) == packed.digest.hex()
    assert (tmp_path / "snapshot").read_bytes() == packed.snapshot


def test_parts_that_are_no_whole_snapshot_are_refused(tmp_path):
    for parts in ((), pack(WORLD).parts[:-2]):
        with pytest.raises(PublishError):
            FileTransport(tmp_path).publish(parts)


def test_a_published_snapshot_is_private(tmp_path):
    before = os.umask(0)
    try:
        FileTransport(tmp_path).publish(pack(WORLD).snapshot)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "snapshot").stat().st_mode) == 0o600


def test_revisions_rise_over_a_restart(tmp_path):
    FileTransport(tmp_path).publish(pack(WORLD, revision=5).snapshot)
    again = FileTransport(tmp_path)
    assert again.revision == 5
    assert Packer(again.revision).pack(WORLD).revision == 6


def test_revisions_rise_even_if_the_snapshot_was_taken_away(tmp_path):
    FileTransport(tmp_path).publish(pack(WORLD, revision=5).snapshot)
    (tmp_path / "snapshot").unlink()
    assert FileTransport(tmp_path).revision == 5


def test_an_older_revision_is_refused(tmp_path):
    transport = FileTransport(tmp_path)
    transport.publish(pack(WORLD, revision=5).snapshot)
    with pytest.raises(PublishError, match="older"):
        transport.publish(pack(OTHER, revision=4).snapshot)
    assert read_head((tmp_path / "snapshot").read_bytes()).revision == 5


def test_one_revision_never_names_two_contents(tmp_path):
    FileTransport(tmp_path).publish(pack(WORLD, revision=5).snapshot)
    with pytest.raises(PublishError, match="other content"):
        FileTransport(tmp_path).publish(pack(OTHER, revision=5).snapshot)


@pytest.mark.parametrize("data", [b"", b"IDMSNAP\0", bytes(200)])
def test_what_is_no_snapshot_is_not_published(tmp_path, data):
    with pytest.raises(PublishError):
        FileTransport(tmp_path).publish(data)
    assert list(tmp_path.iterdir()) == []


def test_a_cut_snapshot_is_not_published(tmp_path):
    with pytest.raises(PublishError):
        FileTransport(tmp_path).publish(pack(WORLD).snapshot[:-8])


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "snapshot"
    replace_file(path, b"old")

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["snapshot"]


def test_readers_are_believed_one_by_one(tmp_path):
    readers = tmp_path / "readers"
    readers.mkdir()
    (readers / "1.json").write_text(json.dumps({"revision": 3, "digest": "ab", "error": None}))
    (readers / "2.json").write_text('{"revision":')
    (readers / "3.json").write_text(json.dumps({"revision": 2, "digest": None, "error": "damaged"}))
    (readers / "4.json.part").write_text("{}")
    found = FileTransport(tmp_path).acknowledgements()
    assert [(a.reader, a.revision, a.digest) for a in found] == [("1", 3, "ab"), ("2", 0, ""), ("3", 2, "")]
    assert found[2].error == "damaged"
    assert "unreadable" in found[1].error
