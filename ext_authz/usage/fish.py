# SPDX-License-Identifier: Apache-2.0
"""Completion for fish: a line an option, each under the condition that its command stands on the line."""

from __future__ import annotations

from collections.abc import Iterator

from ext_authz.usage.tree import Command, Option, Value

_HEAD = """\
# Completion of idmesh for fish. Made by: idmesh completion fish
# True if the words without flags begin with these; with --last if there are no others.
function __idmesh_at
    set -l exact no
    if test "$argv[1]" = --last
        set exact yes
        set -e argv[1]
    end
    set -l words (commandline -opc)
    set -e words[1]
    set -l seen
    for word in $words
        string match -q -- '-*' $word; or set -a seen $word
    end
    set -l depth (count $argv)
    test (count $seen) -ge $depth; or return 1
    if test $depth -gt 0
        test "$seen[1..$depth]" = "$argv"; or return 1
    end
    test $exact = no; or test (count $seen) -eq $depth
end
complete -c idmesh -f
"""


def script(root: Command) -> str:
    return _HEAD + "".join(f"complete -c idmesh {line}\n" for command in root.walk() for line in _lines(command))


def _lines(command: Command) -> Iterator[str]:
    here = f"-n '{' '.join(['__idmesh_at', *command.path])}'"
    alone = f"-n '{' '.join(['__idmesh_at --last', *command.path])}'"
    for below in command.commands:
        yield f"{alone} -a {below.path[-1]} -d {_text(below.summary)}"
    for option in command.options:
        # What belongs to the program alone is offered before any command.
        yield f"{here if command.path else alone} {_flags(option)}{_value(option)} -d {_text(option.help)}"
    for place in command.places:
        yield f"{here}{_value(place)}"


def _flags(option: Option) -> str:
    return " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags)


def _value(option: Option) -> str:
    words = {
        Value.NONE: "",
        Value.FREE: " -x",
        Value.CHOICE: f" -x -a '{' '.join(option.choices)}'",
        Value.FILE: " -r -F",
        Value.FOLDER: " -x -a '(__fish_complete_directories)'",
    }[option.value]
    return words if option.flags else words.replace(" -x", "").replace(" -r", "")


def _text(text: str) -> str:
    return "'" + " ".join(text.replace("\\", "\\\\").replace("'", "\\'").split()) + "'"
