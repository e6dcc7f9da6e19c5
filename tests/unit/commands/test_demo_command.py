# SPDX-License-Identifier: Apache-2.0
"""Laws of `idmesh demo` as a command: what broke off leaves the log that its error names, all else leaves nothing."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path

import pytest

from ext_authz.commands import demo
from ext_authz.demo import stage as stages
from ext_authz.demo.node import DemoError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv(stages.INSIDE, "1")
    monkeypatch.setattr(stages, "interrupt_at_the_end", lambda: None)
    return tmp_path


def play(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    def act(args: argparse.Namespace, folder: Path) -> int:
        (folder / "idmesh.log").write_text("why")
        if error:
            raise error
        return 0

    monkeypatch.setattr(demo, "_play", act)
    demo.run(argparse.Namespace(keep=None))


def test_a_play_that_broke_off_leaves_its_log(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(demo.Failure):
        play(monkeypatch, DemoError("see the log"))
    (log,) = folder.glob("idmesh-demo-*/idmesh.log")
    assert log.read_text() == "why"


@pytest.mark.parametrize("error", [None, KeyboardInterrupt()])
def test_any_other_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | None) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        play(monkeypatch, error)  # type: ignore[arg-type]
    assert not list(folder.iterdir())
