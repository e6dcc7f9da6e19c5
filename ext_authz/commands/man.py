# SPDX-License-Identifier: Apache-2.0
"""`idmesh man`: print the manual page."""

from __future__ import annotations

import argparse
import sys


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "man",
        help="print the manual page (roff)",
        description="Print the manual page in roff; to read it: idmesh man | man -l -",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ext_authz.cli import build_parser, version
    from ext_authz.usage.manual import page
    from ext_authz.usage.tree import read_tree

    sys.stdout.write(page(read_tree(build_parser()), version()))
    return 0
