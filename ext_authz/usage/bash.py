# SPDX-License-Identifier: Apache-2.0
"""Completion for bash: which command stands on the line, which value the last word asks for, else words and flags."""

from __future__ import annotations

from collections.abc import Iterator

from ext_authz.usage.tree import Command, Option, Value

_HEAD = """\
# Completion of idmesh for bash. Made by: idmesh completion bash
_idmesh_words() { mapfile -t COMPREPLY < <(compgen -W "$1" -- "$word"); }
_idmesh_files() { compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$word"); }
_idmesh_folders() { compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$word"); }

_idmesh() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command= flags= i
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$command ${COMP_WORDS[i]}" in
"""
_VALUES = """\
        esac
    done
    # bash takes --option=value apart.
    [[ $word == = ]] && word=
    [[ $before == = ]] && before=${COMP_WORDS[COMP_CWORD - 2]}
    case "$command:$before" in
"""
_FLAGS = """\
    esac
    case "$command" in
"""
_WORDS = """\
    esac
    if [[ $word == -* ]]; then
        _idmesh_words "$flags"
        return
    fi
    case "$command" in
"""
_TAIL = """\
    esac
}
complete -F _idmesh idmesh
"""


def script(root: Command) -> str:
    commands = list(root.walk())
    return "".join(
        [
            _HEAD,
            *(
                _line(3, f'"{_above(command)} {command.path[-1]}"', f'command="{command.name}"')
                for command in commands[1:]
            ),
            _VALUES,
            *(line for command in commands for line in _values(command)),
            _FLAGS,
            *(_line(2, f'"{command.name}"', f'flags="{" ".join(_flags(command))}"') for command in commands),
            _WORDS,
            *(line for command in commands for line in _places(command)),
            _TAIL,
        ]
    )


def _line(depth: int, pattern: str, action: str) -> str:
    return f"{'    ' * depth}{pattern}) {action} ;;\n"


def _above(command: Command) -> str:
    return " ".join(command.path[:-1])


def _flags(command: Command) -> Iterator[str]:
    for option in command.options:
        yield from option.flags


def _values(command: Command) -> Iterator[str]:
    for option in command.options:
        if option.value != Value.NONE:
            pattern = " | ".join(f'"{command.name}:{flag}"' for flag in option.flags)
            yield _line(2, pattern, f"{_completes(option)}; return")


def _completes(option: Option) -> str:
    if option.value == Value.CHOICE:
        return f'_idmesh_words "{" ".join(option.choices)}"'
    return {Value.FILE: "_idmesh_files", Value.FOLDER: "_idmesh_folders"}.get(option.value, ":")


def _places(command: Command) -> Iterator[str]:
    if command.commands:
        names = " ".join(below.path[-1] for below in command.commands)
        yield _line(2, f'"{command.name}"', f'_idmesh_words "{names}"')
    elif command.places:
        yield _line(2, f'"{command.name}"', _completes(command.places[0]))
