# SPDX-License-Identifier: Apache-2.0
"""`idmesh systemd`: the unit of the node, and what belongs to it."""

from __future__ import annotations

import argparse
import shlex
import sys
from importlib import resources
from pathlib import Path

from ext_authz.files import replace_file

# Name in the package, and where systemd looks for it.
FILES = {
    "idmesh.service": "etc/systemd/system/idmesh.service",
    "run-idmesh-datapath-bpf.mount": "etc/systemd/system/run-idmesh-datapath-bpf.mount",
    "tmpfiles.conf": "etc/tmpfiles.d/idmesh.conf",
    "sysusers.conf": "etc/sysusers.d/idmesh.conf",
}
_NEXT = """\
Next:
  systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload
  put policies into /etc/idmesh/policies, pods and namespaces into /etc/idmesh/endpoints
  or say otherwise in /etc/default/idmesh: IDMESH_RUN=--policies DIR --endpoints DIR --door module ...
  systemctl enable --now idmesh"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "systemd",
        help="print or install the systemd unit",
        description="Print or install the systemd unit of the node, its tmpfiles.d and its sysusers.d.",
    )
    parser.add_argument("action", choices=("print", "install"))
    parser.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="install below this directory")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    for name, place in FILES.items():
        target = args.root / place
        if args.action == "print":
            print(f"# ---- /{place}\n{render(name)}")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, render(name).encode(), 0o644)
        print(target)
    if args.action == "install":
        print(_NEXT, file=sys.stderr)
    return 0


def render(name: str) -> str:
    """One of the files, for this installation of idmesh."""
    text = (resources.files("ext_authz") / "agent/systemd" / name).read_text(encoding="utf-8")
    return text.replace("@IDMESH@", _program())


def _program() -> str:
    """The command beside this Python, by its absolute path: a unit has no PATH of the user's."""
    command = Path(sys.executable).with_name("idmesh")
    words = [str(command)] if command.exists() else [sys.executable, "-m", "ext_authz.cli"]
    return shlex.join(words)
