# SPDX-License-Identifier: Apache-2.0
"""`idmesh identity`: numbers and the labels they stand for, from the snapshot in force."""

from __future__ import annotations

import argparse
import json
import sys

from ext_authz.commands.tables import add_state_argument, open_directory, print_rows


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("identity", help="show identities", description="Show identities and their labels.")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listed = actions.add_parser("list", help="all identities")
    got = actions.add_parser("get", help="one identity, and the endpoints that have it")
    got.add_argument("number", type=int, metavar="N")
    for action in (listed, got):
        add_state_argument(action)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    return _list(args) if args.action == "list" else _get(args)


def _list(args: argparse.Namespace) -> int:
    identities = open_directory(args).identities
    if args.json:
        for identity in identities:
            print(json.dumps(identity))
    else:
        print_rows([("IDENTITY", "LABELS"), *((str(i["id"]), " ".join(i["labels"])) for i in identities)])
    return 0


def _get(args: argparse.Namespace) -> int:
    directory = open_directory(args)
    found = next((identity for identity in directory.identities if identity["id"] == args.number), None)
    if found is None:
        print(f"idmesh identity: {args.number}: no identity of the snapshot", file=sys.stderr)
        return 1
    endpoints = [endpoint["name"] for endpoint in directory.endpoints if endpoint["identity"] == args.number]
    if args.json:
        print(json.dumps({**found, "endpoints": endpoints}))
    else:
        print_rows([("label", label) for label in found["labels"]] + [("endpoint", name) for name in endpoints])
    return 0
