# SPDX-License-Identifier: Apache-2.0
"""`idmesh completion`: print what makes a shell complete commands, options and their values."""

from __future__ import annotations

import argparse
import importlib
import sys

SHELLS = ("bash", "zsh", "fish")
_EPILOG = """\
bash: eval "$(idmesh completion bash)", or into a file of /etc/bash_completion.d.

zsh:  into a file _idmesh in a directory of $fpath, before compinit.

fish: into ~/.config/fish/completions/idmesh.fish.
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "completion",
        help="print completions for a shell",
        description="Print completions for a shell.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS, help="for which shell")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ext_authz.cli import build_parser
    from ext_authz.usage.tree import read_tree

    sys.stdout.write(importlib.import_module(f"ext_authz.usage.{args.shell}").script(read_tree(build_parser())))
    return 0
