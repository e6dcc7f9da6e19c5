# SPDX-License-Identifier: Apache-2.0
"""Completion for zsh: a function a command, each a call of _arguments."""

from __future__ import annotations

from collections.abc import Iterator

from ext_authz.usage.tree import Command, Option, Value


def script(root: Command) -> str:
    made = [_function(command) for command in root.walk()]
    return (
        "#compdef idmesh\n# Completion of idmesh for zsh. Made by: idmesh completion zsh\n\n" + "\n".join(made) + _END
    )


# Called by the completion system as a function of this file, or sourced.
_END = """
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _idmesh "$@"
else
    compdef _idmesh idmesh
fi
"""


def _function(command: Command) -> str:
    body = _group(command) if command.commands else _leaf(command)
    return f"{_name(command)}() {{\n{body}}}\n"


def _name(command: Command) -> str:
    return "_".join(["_idmesh", *command.path])


def _leaf(command: Command) -> str:
    specs = [*_options(command), *(f"'*:{_text(place.name)}:{_completes(place)}'" for place in command.places)]
    return "    _arguments -s " + " \\\n        ".join(specs) + "\n"


def _group(command: Command) -> str:
    specs = [*_options(command), "'1:command:->command'", "'*::word:->word'"]
    commands = [f"            '{below.path[-1]}:{_text(below.summary)}'" for below in command.commands]
    calls = [f"            {below.path[-1]}) {_name(below)} ;;" for below in command.commands]
    return "\n".join(
        [
            "    local state line",
            "    _arguments -C " + " \\\n        ".join(specs),
            "    case $state in",
            "    command)",
            "        local -a commands=(",
            *commands,
            "        )",
            "        _describe command commands",
            "        ;;",
            "    word)",
            "        case $line[1] in",
            *calls,
            "        esac",
            "        ;;",
            "    esac",
            "",
        ]
    )


def _options(command: Command) -> Iterator[str]:
    for option in command.options:
        for flag in option.flags:
            value = "" if option.value == Value.NONE else f":{_text(option.name)}:{_completes(option)}"
            yield f"'*{flag}[{_text(option.help)}]{value}'"


def _completes(option: Option) -> str:
    if option.value == Value.CHOICE:
        return f"({' '.join(option.choices)})"
    return {Value.FILE: "_files", Value.FOLDER: "_files -/"}.get(option.value, "")


def _text(text: str) -> str:
    for special in "\\[]:":
        text = text.replace(special, f"\\{special}")
    return " ".join(text.replace("'", "'\\''").split())
