# SPDX-License-Identifier: Apache-2.0
"""The manual page in roff's man macros, as `man -l` and groff read it."""

from __future__ import annotations

from collections.abc import Iterator

from ext_authz.usage.tree import Command, Option

_EXIT = (("0", "as wished"), ("1", "the answer is no: invalid, denied, different"), ("2", "it could not be done"))
_ENVIRONMENT = (("IDMESH_LOG", "level of the log: debug, info, warning, error or critical"),)
_FILES = (
    ("/run/idmesh", "state directory of a node that root runs; otherwise $XDG_RUNTIME_DIR/idmesh"),
    ("/run/idmesh/snapshot", "the snapshot in force, which every reader decides from"),
    ("/run/idmesh/readers", "what each reader decides with"),
)


def page(root: Command, version: str) -> str:
    lines = [
        f'.TH IDMESH 1 "" "{_text(version)}" "User Commands"',
        ".SH NAME",
        f"idmesh \\- {_text(root.about)}",
        ".SH SYNOPSIS",
        ".B idmesh",
        _text("[OPTION]... COMMAND [WORD]..."),
        ".SH OPTIONS",
        *_options(root.options),
        ".SH COMMANDS",
        *(line for command in list(root.walk())[1:] for line in _command(command)),
        ".SH EXIT STATUS",
        *_pairs(_EXIT),
        ".SH ENVIRONMENT",
        *_pairs(_ENVIRONMENT),
        ".SH FILES",
        *_pairs(_FILES),
    ]
    return "\n".join(lines) + "\n"


def _command(command: Command) -> Iterator[str]:
    yield f".SS {_quoted(f'idmesh {command.name}')}"
    if command.summary:
        yield from _paragraphs(command.summary[:1].upper() + command.summary[1:] + ".")
    if not command.commands:
        yield ".PP"
        yield f".B {_quoted(command.usage)}"
    # A text that says no more than the line above it is one too many.
    if command.about and not _same(command.about, command.summary):
        yield from _paragraphs(command.about)
    yield from _options((*command.places, *command.options))
    if command.notes:
        yield from _paragraphs(command.notes)


def _same(one: str, other: str) -> bool:
    return one.strip(" .").casefold() == other.strip(" .").casefold()


def _options(options: tuple[Option, ...]) -> Iterator[str]:
    for option in options:
        yield ".TP"
        names = ", ".join(f"\\fB{_text(flag)}\\fR" for flag in option.flags)
        value = f"\\fI{_text(option.name)}\\fR" if option.name else ""
        yield " ".join(filter(None, [names, value]))
        yield _text(option.help) or "\\&"


def _pairs(pairs: tuple[tuple[str, str], ...]) -> Iterator[str]:
    for name, text in pairs:
        yield from (".TP", f".B {_quoted(name)}", _text(text))


def _paragraphs(text: str) -> Iterator[str]:
    for part in text.split("\n\n"):
        yield ".PP"
        yield _text(" ".join(part.split()))


def _quoted(text: str) -> str:
    """One argument of a macro."""
    return '"' + _text(text).replace('"', "\\(dq") + '"'


def _text(text: str) -> str:
    """Text as it is: no line may begin as a request does, hyphens are those that people type."""
    line = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga")
    return f"\\&{line}" if line[:1] in (".", "'") else line
