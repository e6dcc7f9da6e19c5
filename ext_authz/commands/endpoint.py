# SPDX-License-Identifier: Apache-2.0
"""`idmesh endpoint`: workloads, their addresses and identities, from the snapshot in force."""

from __future__ import annotations

import argparse
import json

from ext_authz.commands.tables import add_state_argument, open_directory, print_rows


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("endpoint", help="show endpoints", description="Show endpoints of the snapshot.")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add_state_argument(actions.add_parser("list", help="all endpoints"))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    endpoints = open_directory(args).endpoints
    if args.json:
        for endpoint in endpoints:
            print(json.dumps(endpoint))
        return 0
    rows = [("ENDPOINT", "IDENTITY", "ADDRESSES", "WHERE", "MODE")]
    for endpoint in endpoints:
        where = "local" if endpoint["local"] else "remote"
        mode = "audit" if endpoint["audit"] else ""
        rows.append((endpoint["name"], str(endpoint["identity"]), " ".join(endpoint["addresses"]), where, mode))
    print_rows(rows)
    return 0
