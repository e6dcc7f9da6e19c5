# SPDX-License-Identifier: Apache-2.0
"""Completions and the manual page say every command and every option, and the shells understand them."""

from __future__ import annotations

import argparse
import importlib
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from ext_authz.cli import COMMANDS, build_parser, main
from ext_authz.usage.manual import page
from ext_authz.usage.tree import Command, Value, read_tree
from tests.conftest import missing

ROOT = read_tree(build_parser())
SHELLS = ("bash", "zsh", "fish")


def script(shell: str, tree: Command = ROOT) -> str:
    return str(importlib.import_module(f"ext_authz.usage.{shell}").script(tree))


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        missing(f"{name} is not installed")
    return str(found)


def test_the_tree_holds_every_command() -> None:
    assert {command.path[0] for command in ROOT.commands} == set(COMMANDS)
    assert "identity list" in {command.name for command in ROOT.walk()}


def test_hidden_options_stay_hidden_and_values_have_kinds() -> None:
    parser = argparse.ArgumentParser("it", description="100% of it.")
    parser.add_argument("--secret", help=argparse.SUPPRESS)
    parser.add_argument("--kind", choices=["a", "b"], default="a", help="which (%(default)s)")
    parser.add_argument("--into", metavar="DIR")
    parser.add_argument("--flag", action="store_true")
    parser.add_argument("files", nargs="+", metavar="FILE")
    tree = read_tree(parser)
    found = {option.flags[0]: option for option in tree.options}
    assert "--secret" not in found
    assert (found["--kind"].value, found["--kind"].choices) == (Value.CHOICE, ("a", "b"))
    assert found["--kind"].help == "which (a)"
    assert (found["--into"].value, found["--flag"].value) == (Value.FOLDER, Value.NONE)
    assert (tree.places[0].value, tree.places[0].many) == (Value.FILE, True)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("command", list(ROOT.walk())[1:], ids=lambda command: command.name)
def test_every_option_of_every_command_is_completed(shell: str, command: Command) -> None:
    text = script(shell)
    part = _part(text, shell, command)
    for option in command.options:
        for flag in option.flags:
            written = re.escape(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}")
            wanted = written if shell == "fish" else re.escape(flag)
            assert re.search(rf"{wanted}\b", part), flag
        for choice in option.choices:
            assert choice in part


def _part(text: str, shell: str, command: Command) -> str:
    """The lines of one command."""
    if shell == "zsh":
        start = text.index(f"{'_'.join(['_idmesh', *command.path])}() {{")
        return text[start : text.index("\n}\n", start)]
    mark = f'"{command.name}' if shell == "bash" else f"__idmesh_at {command.name}'"
    return "\n".join(line for line in text.splitlines() if mark in line)


# ---- bash ----


def complete(line: str, folder: Path) -> list[str]:
    """What bash offers for the last word of the line."""
    words = line.split(" ")
    split = [part for word in words for part in re.split("(=)", word) if part or word == ""]
    array = " ".join(f"'{word}'" for word in split)
    body = f"{script('bash')}\ncompopt() {{ :; }}\nCOMP_WORDS=({array})\nCOMP_CWORD={len(split) - 1}\n_idmesh\n"
    body += 'printf "%s\\n" "${COMPREPLY[@]}"\n'
    done = subprocess.run([tool("bash"), "-eu"], input=body, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("idmesh ", set(COMMANDS)),
        ("idmesh val", {"validate"}),
        ("idmesh -v sta", {"status"}),
        ("idmesh identity ", {"list", "get"}),
        ("idmesh run --door ", {"module", "ext-authz", "ext-proc"}),
        ("idmesh run --door=ext", {"ext-authz", "ext-proc"}),
        ("idmesh run --policies a --do", {"--door"}),
        ("idmesh test --via ext-p", {"ext-proc"}),
        ("idmesh test --keep ", {"folder"}),
        ("idmesh test ", {"folder", "cases.yaml"}),
        ("idmesh run --grpc ", set()),
        ("idmesh completion ", set(SHELLS)),
        # A value that is the name of a command is none.
        ("idmesh test --only run --vi", {"--via"}),
    ],
)
def test_bash_offers_what_may_stand_there(line: str, wanted: set[str], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "cases.yaml").touch()
    assert set(complete(line, tmp_path)) == wanted


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_itself_accepts_its_script(shell: str, tmp_path: Path) -> None:
    path = tmp_path / "script"
    path.write_text(script(shell))
    done = subprocess.run([tool(shell), "-n", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def fish(line: str) -> list[str]:
    body = f"{script('fish')}\ncomplete -C '{line}'\n"
    done = subprocess.run([tool("fish"), "--no-config"], input=body, capture_output=True, text=True, check=True)
    return [offered.partition("\t")[0] for offered in done.stdout.splitlines()]


def test_fish_offers_what_may_stand_there() -> None:
    assert set(fish("idmesh ")) == set(COMMANDS)
    assert set(fish("idmesh identity ")) == {"list", "get"}
    assert set(fish("idmesh run --door ")) == {"module", "ext-authz", "ext-proc"}
    assert "--via" in fish("idmesh test --v")
    assert "--via" not in fish("idmesh run --v")


# ---- the manual ----


def test_the_manual_names_every_command_and_option() -> None:
    text = page(ROOT, "idmesh 1").replace("\\-", "-")
    for command in list(ROOT.walk())[1:]:
        assert f'.SS "idmesh {command.name}"\n' in text
        part = text.partition(f'.SS "idmesh {command.name}"\n')[2].partition("\n.S")[0]
        for option in command.options:
            assert all(f"\\fB{flag}\\fR" in part for flag in option.flags)


def test_the_manual_is_read_without_a_warning() -> None:
    words: Sequence[str] = [tool("groff"), "-man", "-ww", "-Tascii"]
    done = subprocess.run(words, input=page(ROOT, "idmesh 1"), capture_output=True, text=True, check=True)
    assert done.stderr == ""
    read = re.sub(r"\x1b\[[0-9;]*m|.\x08", "", done.stdout)
    assert "EXIT STATUS" in read
    assert "--listener-filter" in read


def test_the_manual_takes_texts_as_they_are() -> None:
    parser = argparse.ArgumentParser("it", description=".so /etc/passwd")
    parser.add_argument("--x", metavar='"A B"', help="'quoted' \\n")
    text = page(read_tree(parser), "it 1")
    assert not [line for line in text.splitlines() if line.startswith((".so", "'"))]
    assert "\\en" in text


def test_the_commands_print(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["man"]) == 0
    assert capsys.readouterr().out.startswith(".TH IDMESH 1")
    for shell in SHELLS:
        assert main(["completion", shell]) == 0
        assert "Made by: idmesh completion" in capsys.readouterr().out
