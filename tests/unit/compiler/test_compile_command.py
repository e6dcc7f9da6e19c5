# SPDX-License-Identifier: Apache-2.0
"""Laws of `idmesh compile`: a whole file or none, and nothing secret in what is shown."""

import json
import stat

import pytest

from ext_authz import cli
from ext_authz.engine.engine import Engine
from tests.unit.compiler.test_explain import EMPIRE


@pytest.fixture
def empire(tmp_path):
    path = tmp_path / "empire.yaml"
    path.write_text(EMPIRE)
    return path


def run(*words):
    return cli.main([str(word) for word in words])


def test_the_file_is_a_snapshot_the_engine_takes(empire, tmp_path, capsys):
    target = tmp_path / "snapshot"
    assert run("compile", empire, "-o", target, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    engine = Engine.open(target)
    assert (engine.revision, engine.digest) == (facts["revision"], facts["digest"])
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_equal_files_give_equal_snapshots(empire, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert run("compile", empire, "-o", one) == run("compile", empire, "-o", two) == 0
    assert one.read_bytes() == two.read_bytes()


def test_errors_write_nothing(empire, tmp_path, capsys):
    empire.write_text(EMPIRE.replace("method: POST", "method: '('"))
    target = tmp_path / "snapshot"
    target.write_bytes(b"old")
    assert run("compile", empire, "-o", target) == 1
    assert target.read_bytes() == b"old"
    assert "empire.yaml:" in capsys.readouterr().err


def test_what_is_no_regular_file_is_not_replaced(empire, tmp_path, capsys):
    link, kept = tmp_path / "link", tmp_path / "kept"
    kept.write_bytes(b"old")
    link.symlink_to(kept)
    for target in (link, tmp_path, tmp_path / "none" / "snapshot"):
        assert run("compile", empire, "-o", target) == 2
        assert f"-o {target}: " in capsys.readouterr().err
    assert link.is_symlink()
    assert kept.read_bytes() == b"old"


def test_a_dump_shows_rules_but_no_secret(empire, tmp_path, capsys):
    for words in (["--dump"], ["--dump", "--json"]):
        assert run("compile", empire, "-o", tmp_path / "snapshot", *words) == 0
        shown = capsys.readouterr().out
        assert "request-landing" in shown
        assert "dGhlLXNlY3JldA" not in shown


def test_numbers_outlive_the_command_in_a_file(empire, tmp_path):
    kept = tmp_path / "identities.json"
    assert run("compile", empire, "-o", tmp_path / "one", "--identities", kept) == 0
    empire.write_text(EMPIRE.replace("name: landing", "name: other"))
    assert run("compile", empire, "-o", tmp_path / "two", "--identities", kept) == 0
    one, two = Engine.open(tmp_path / "one"), Engine.open(tmp_path / "two")
    assert one.domain == two.domain
    assert one.resolve("10.0.0.3") == two.resolve("10.0.0.3")


def test_a_path_that_is_not_there_cannot_be_compiled(tmp_path, capsys):
    assert run("compile", tmp_path / "none.yaml", "-o", tmp_path / "snapshot") == 2
    assert "none.yaml" in capsys.readouterr().err
