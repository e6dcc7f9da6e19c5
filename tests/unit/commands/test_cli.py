# SPDX-License-Identifier: Apache-2.0
"""Laws of the command line as a whole: one line for what the user can mend, and never silence."""

import pytest

from ext_authz import cli


def test_a_file_that_is_not_there_is_named_first(tmp_path, capsys):
    missing = tmp_path / "missing"
    for words in (["validate"], ["explain", "--from", "1", "--to", "2", "--port", "1"]):
        assert cli.main([*words, str(missing)]) == 2
        assert capsys.readouterr().err == f"idmesh {words[0]}: {missing}: No such file or directory\n"


def test_a_hostile_file_name_reaches_no_terminal(tmp_path, capsys):
    assert cli.main(["validate", str(tmp_path / "a\x1b[2J")]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_an_identity_that_is_none_is_said_to_be_none(tmp_path, capsys):
    policies = tmp_path / "policies.yaml"
    policies.write_text("")
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    assert cli.main(["compile", str(policies), "-o", str(state / "snapshot")]) == 0
    assert cli.main(["identity", "get", "2", "--state", str(state)]) == 0
    assert cli.main(["identity", "get", "999", "--state", str(state)]) == 1
    assert "999: no identity" in capsys.readouterr().err


def test_a_level_that_is_none_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("IDMESH_LOG", "loud")
    assert cli.main(["validate", str(tmp_path)]) == 2
    assert "IDMESH_LOG" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["validate", "--help"], ["run", "--help"]])
def test_help_is_no_error(words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 0
    assert "usage: idmesh" in capsys.readouterr().out
