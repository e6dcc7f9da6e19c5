# SPDX-License-Identifier: Apache-2.0
"""What the commands that read policy files share: their arguments, loading, and how errors are shown."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ext_authz.cli import Failure
from ext_authz.compiler.compile import Compiled, Compiler
from ext_authz.identity.allocator import Allocator, FileAllocator, MemoryAllocator
from ext_authz.model.load import Loaded, load
from ext_authz.model.nodes import printable
from ext_authz.model.settings import SettingsError, parse_settings
from ext_authz.model.types import PolicyError


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """PATH... and what changes its meaning."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="files and folders, YAML or JSON")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="pairs", help="an agent setting; repeatable"
    )
    parser.add_argument("--settings", metavar="FILE", help="agent settings as a YAML map")
    parser.add_argument("--node", metavar="NAME", help="name of the own Node")


def load_sources(args: argparse.Namespace) -> Loaded:
    """
    Read everything under the paths of add_source_arguments.

    Raises:
        Failure: A setting is wrong.
        OSError: A path cannot be read.
    """
    try:
        settings = parse_settings(args.pairs, args.settings)
        return load(args.paths, settings=settings, node=args.node)
    except SettingsError as error:
        raise Failure(str(error)) from error


def allocator_for(loaded: Loaded, identities: Path | None) -> Allocator:
    """
    Identity numbers from a file, or numbers good for this one snapshot.

    Without a file the domain follows from the content, so that equal files give equal snapshots and the numbers of
    different ones are never taken for each other.
    """
    if identities is not None:
        return FileAllocator(identities)
    content = blake2b(digest_size=8)
    for found in loaded.objects:
        content.update(found.text.encode("utf-8", "surrogatepass") + b"\0")
    return MemoryAllocator(int.from_bytes(content.digest(), "little") | 1)


def compile_sources(loaded: Loaded, identities: Path | None = None, revision: int = 0) -> Compiled:
    """Compile what was loaded; errors and warnings of both are in the result."""
    compiled = Compiler(allocator_for(loaded, identities), revision=revision).compile(loaded.world)
    return Compiled(
        compiled.parts,
        (*loaded.errors, *compiled.errors),
        (*loaded.warnings, *compiled.warnings),
        compiled.revision,
        compiled.digest,
        compiled.rejected,
    )


def error_text(error: PolicyError) -> str:
    """FILE:LINE:COL: KIND NAMESPACE/NAME: FIELD: reason; what has no kind and name, or no field, goes without."""
    return record_text(error.record())


def record_text(record: dict[str, Any]) -> str:
    """The same of an error's record."""
    name = "/".join(part for part in (record["namespace"], record["name"]) if part)
    warning = "warning: " if record["severity"] == "warning" else ""
    place = f"{record['file']}:{record['line']}:{record['col']}"
    subject = f"{record['kind'] or 'Document'} {name}".rstrip() if record["kind"] or name else ""
    parts = (place, subject, record["field"], f"{warning}{record['reason']}")
    return printable(": ".join(part for part in parts if part))


def print_problems(problems: Iterable[PolicyError], as_json: bool = False) -> None:
    """One line each, on stderr."""
    for problem in problems:
        text = json.dumps(problem.record()) if as_json else error_text(problem)
        print(text, file=sys.stderr)


class Progress:
    """Says on a terminal what is going on; elsewhere nothing."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def __call__(self, text: str) -> None:
        if self._shown:
            print(f"\r\x1b[K{text}", end="" if text else "\r", file=sys.stderr, flush=True)
