# SPDX-License-Identifier: Apache-2.0
"""The commands and their options as plain values, read from the parsers that `idmesh` itself uses."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

_FILES, _FOLDERS = ("FILE", "PATH"), ("DIR",)


class Value(Enum):
    """What stands behind an option; FREE: only the user knows."""

    NONE = auto()
    FREE = auto()
    CHOICE = auto()
    FILE = auto()
    FOLDER = auto()


@dataclass(frozen=True, slots=True)
class Option:
    """
    flags: empty for a word that has only a place.

    name: of its value, as usage texts show it. many: may be repeated.
    """

    flags: tuple[str, ...]
    value: Value
    name: str
    choices: tuple[str, ...]
    help: str
    many: bool


@dataclass(frozen=True, slots=True)
class Command:
    """path: without the program's own name; empty for the program. notes: what follows the options."""

    path: tuple[str, ...]
    summary: str
    about: str
    notes: str
    usage: str
    options: tuple[Option, ...]
    places: tuple[Option, ...]
    commands: tuple[Command, ...]

    @property
    def name(self) -> str:
        return " ".join(self.path)

    def walk(self) -> Iterator[Command]:
        """This one and all below."""
        yield self
        for command in self.commands:
            yield from command.walk()


def read_tree(parser: argparse.ArgumentParser, path: tuple[str, ...] = (), summary: str = "") -> Command:
    """Describe a parser and all that is below; what `--help` hides is left out."""
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    plain = [action for action in shown if not isinstance(action, argparse._SubParsersAction)]
    return Command(
        path,
        summary,
        (parser.description or "").strip(),
        (parser.epilog or "").strip(),
        " ".join(parser.format_usage().removeprefix("usage: ").split()),
        tuple(_option(parser, action) for action in plain if action.option_strings),
        tuple(_option(parser, action) for action in plain if not action.option_strings),
        tuple(
            read_tree(below, (*path, name), _summaries(action).get(name, ""))
            for action in shown
            if isinstance(action, argparse._SubParsersAction)
            for name, below in action.choices.items()
        ),
    )


def _summaries(action: argparse._SubParsersAction[argparse.ArgumentParser]) -> dict[str, str]:
    return {choice.dest: choice.help or "" for choice in action._choices_actions}


def _option(parser: argparse.ArgumentParser, action: argparse.Action) -> Option:
    choices = tuple(filter(None, map(str, action.choices or ())))
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    name = metavar or ("|".join(choices) if choices else action.dest.upper())
    value = _value(action, metavar, bool(choices))
    many = isinstance(action, argparse._AppendAction | argparse._CountAction) or action.nargs in ("+", "*")
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    return Option(tuple(action.option_strings), value, "" if value == Value.NONE else name, choices, text, many)


def _value(action: argparse.Action, metavar: str, limited: bool) -> Value:
    if action.nargs == 0:
        return Value.NONE
    if limited:
        return Value.CHOICE
    if metavar in _FILES:
        return Value.FILE
    return Value.FOLDER if metavar in _FOLDERS else Value.FREE
