# SPDX-License-Identifier: Apache-2.0
"""The command line: wires the commands, keeps the exit codes (0 as wished, 1 the answer is no, 2 could not be done)."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

COMMANDS = (
    "validate",
    "compile",
    "explain",
    "test",
    "run",
    "apply",
    "envoy",
    "demo",
    "status",
    "flows",
    "identity",
    "endpoint",
    "datapath",
    "doctor",
    "systemd",
    "completion",
    "man",
)
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class Failure(Exception):
    """Something could not be done; the message is for the user, the exit code is 2."""


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The whole parser, or with `command` only that command's (which spares importing the others)."""
    parser = argparse.ArgumentParser(prog="idmesh", description="Identity-based policy for the Envoy you already run.")
    parser.add_argument("--version", action="version", version=version())
    parser.add_argument(
        "-v", "--verbose", action="count", default=0, help="log more (-v: info, -vv: debug); also IDMESH_LOG=LEVEL"
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS if command not in COMMANDS else (command,):
        importlib.import_module(f"ext_authz.commands.{name}").register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors the user can mend are one line on stderr, never a traceback (but with -vv)."""
    words = list(sys.argv[1:] if argv is None else argv)
    named = next((word for word in words if not word.startswith("-")), None)
    args = build_parser(named).parse_args(words)
    asked = os.environ.get("IDMESH_LOG", "").upper()
    if asked and asked not in _LEVELS:
        print(f"idmesh: IDMESH_LOG must be one of {', '.join(_LEVELS)} in any case", file=sys.stderr)
        return 2
    level = asked or {0: "WARNING", 1: "INFO"}.get(args.verbose, "DEBUG")
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        return args.run(args)
    except Failure as error:
        print(f"idmesh {args.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, UnicodeError) as error:
        if args.verbose > 1:
            raise
        print(f"idmesh {args.command}: {_reason(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _reason(error: Exception) -> str:
    """Without the number of the error; the file first, as in every other message."""
    from ext_authz.logs import escape

    if isinstance(error, OSError) and error.strerror:
        return escape(f"{error.filename}: {error.strerror}") if error.filename else error.strerror
    return str(error)


def version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"idmesh {version('idmesh')}"
    except PackageNotFoundError:
        return "idmesh (not installed)"


if __name__ == "__main__":
    # The commands raise ext_authz.cli.Failure, which is another class than __main__.Failure.
    from ext_authz.cli import main as imported_main

    sys.exit(imported_main())
