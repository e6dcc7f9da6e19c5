# SPDX-License-Identifier: Apache-2.0
"""`idmesh demo`: Cilium's Star Wars scenario through every door of a real Envoy."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from ext_authz.cli import Failure
from ext_authz.demo import stage as stages
from ext_authz.demo.miss import nearest_miss
from ext_authz.demo.node import DemoError
from ext_authz.demo.scenario import DOORS, SHIPS, Row, Scenario, Switch, clear
from ext_authz.demo.table import render
from ext_authz.demo.transparent import DOOR as TRANSPARENT
from ext_authz.demo.transparent import Transparent, missing

_UNAUTHENTICATED = """\
This machine lets us make no network namespaces, so the ships are loopback addresses. Any process here can send from
any of them: addresses are NOT authenticated in this run. Run as root, or allow user namespaces, for the real thing."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="play Cilium's Star Wars scenario through real Envoys",
        description="Play Cilium's Star Wars scenario: each ship in a network namespace of its own, a real server, a "
        "stock Envoy with each door in turn, and an edit of the policy under load. Exits 0 only if all came out right.",
    )
    doors = (*DOORS, TRANSPARENT)
    parser.add_argument("--door", choices=doors, action="append", help="only this door; may be repeated")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave policies, configurations and logs in DIR")
    parser.add_argument("--json", action="store_true", help="one line of JSON a row, then one an edit")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if os.environ.get(stages.INSIDE) != "1":
        code = stages.enter_node_namespace([sys.executable, "-m", "ext_authz.cli", *sys.argv[1:]])
        if code is not None:
            return code
        print(_UNAUTHENTICATED, file=sys.stderr)
    stages.interrupt_at_the_end()
    try:
        if args.keep:
            clear(args.keep)
            return _play(args, args.keep.absolute())
        return _play_aside(args)
    except DemoError as error:
        raise Failure(str(error)) from error


def _play_aside(args: argparse.Namespace) -> int:
    """In a folder that stays only where the play broke off: its error names a log in there."""
    folder = Path(tempfile.mkdtemp(prefix="idmesh-demo-"))
    broken = False
    try:
        return _play(args, folder)
    except DemoError:
        broken = True
        raise
    finally:
        if not broken:
            shutil.rmtree(folder, ignore_errors=True)


def _play(args: argparse.Namespace, folder: Path) -> int:
    with stages.build(SHIPS) as stage:
        port = 80 if stage.authenticated else 8080
        scenario = Scenario(stage, folder, port, nearest_miss)
        rows, switches = scenario.play(tuple(door for door in args.door or DOORS if door in DOORS), _say)
    rows += _play_transparent(args, folder)
    _print(args, rows, switches, folder)
    return 0 if all(row.ok for row in rows) and all(switch.ok for switch in switches) else 1


def _play_transparent(args: argparse.Namespace, folder: Path) -> list[Row]:
    """The kernel's part, where it can be; asked for by name it must be."""
    if args.door and TRANSPARENT not in args.door:
        return []
    reason = missing() if os.environ.get(stages.INSIDE) == "1" else "no network namespaces"
    if not reason:
        return Transparent(folder / TRANSPARENT).play(_say)
    if args.door:
        raise Failure(f"--door {TRANSPARENT}: {reason}")
    _say(f"door {TRANSPARENT}: left out: {reason}")
    return []


def _print(args: argparse.Namespace, rows: list[Row], switches: list[Switch], folder: Path) -> None:
    if args.json:
        for row in rows:
            print(json.dumps({**asdict(row), "ok": row.ok}))
        for switch in switches:
            print(json.dumps({**asdict(switch), "ok": switch.ok}))
        return
    print(render(rows, switches, folder, sys.stdout.isatty() and not os.environ.get("NO_COLOR")))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
