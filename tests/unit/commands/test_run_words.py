# SPDX-License-Identifier: Apache-2.0
"""`idmesh run`: a word that would say nothing is refused, and one that the data path cannot use is told of."""

from __future__ import annotations

from pathlib import Path

import pytest

from ext_authz import cli
from ext_authz.commands import run as command

STEERED = ["--datapath", "on", "--door", "module"]


@pytest.fixture(autouse=True)
def _able(monkeypatch: pytest.MonkeyPatch) -> None:
    """This host could have a data path, and nothing is started."""
    monkeypatch.setattr(command, "why_not", lambda: "")
    monkeypatch.setattr(command.State, "prepare", lambda _: pytest.fail("it began to run"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*STEERED, "--mode", "tcp"], "--mode: says nothing where connections are steered"),
        ([*STEERED, "--direction", "both"], "--direction: says nothing where connections are steered"),
        ([*STEERED, "--destination", "local"], "--destination: says nothing where connections are steered"),
        (["--mode", "tcp"], "--mode need --door"),
        (["--envoy", "FILE", "--mode", "tcp"], "--mode need --door"),
        (["--direction", "both"], "--direction needs --door or --grpc"),
        (["--envoy", "FILE", "--direction", "both"], "--direction needs --door or --grpc; --envoy FILE has its own"),
    ],
)
def test_a_word_that_says_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    (tmp_path / "FILE").touch()
    words = [str(tmp_path / word) if word == "FILE" else word for word in words]
    assert cli.main(["run", "--policies", str(tmp_path), *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["--envoy", "FILE"], "--envoy"),
        (["--door", "module", "--listen", "127.0.0.1:1", "--upstream", "127.0.0.1:2"], "--upstream"),
        (["--door", "ext-authz", "--listen", "127.0.0.1:1", "--upstream", "127.0.0.1:2"], "--door ext-authz"),
        (STEERED[2:], ""),
        ([], ""),
    ],
)
def test_an_envoy_that_nothing_is_steered_to_is_told_of(words: list[str], option: str) -> None:
    args = cli.build_parser().parse_args(["run", "--policies", "x", "--datapath", "on", *words])
    said = command._unsteered(args)
    assert said.startswith(f"{option}: --datapath on steers no connection") if option else not said
    args.datapath = "auto"
    assert command._unsteered(args) == ""
