# SPDX-License-Identifier: Apache-2.0
"""What the commands that show the snapshot in force share."""

from __future__ import annotations

import argparse
import ipaddress
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ext_authz.cli import Failure
from ext_authz.engine.dump import Tables, load
from ext_authz.engine.layout import ENDPOINT_AUDIT, ENDPOINT_LOCAL, NONE, IdentitiesSection, TableKind
from ext_authz.engine.types import SnapshotError
from ext_authz.logs import escape
from ext_authz.state import State, default_state, read_owned


def add_state_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state", type=Path, metavar="DIR", help="state directory (/run/idmesh for root)")
    parser.add_argument("--json", action="store_true")


@dataclass(frozen=True)
class Directory:
    """Identities and endpoints of a snapshot, as people ask for them."""

    tables: Tables

    def _items(self, section: int) -> list[dict[str, Any]]:
        return self.tables.items(TableKind.IDENTITIES, section)

    @cached_property
    def identities(self) -> list[dict[str, Any]]:
        labels = [item["text"] for item in self._items(IdentitiesSection.LABELS)]
        found = []
        for item in self._items(IdentitiesSection.IDENTITIES):
            first = item["first_label"]
            found.append({"id": item["id"], "labels": labels[first : first + item["label_count"]]})
        return found

    @cached_property
    def endpoints(self) -> list[dict[str, Any]]:
        addresses = self._addresses()
        return [
            {
                "name": item["name"],
                "identity": item["identity"],
                "addresses": addresses.get(index, []),
                "local": bool(item["flags"] & ENDPOINT_LOCAL),
                "audit": bool(item["flags"] & ENDPOINT_AUDIT),
            }
            for index, item in enumerate(self._items(IdentitiesSection.ENDPOINTS))
        ]

    def _addresses(self) -> dict[int, list[str]]:
        found: dict[int, list[str]] = defaultdict(list)
        for host in self._items(IdentitiesSection.HOSTS):
            if host["family"] and host["endpoint"] != NONE:
                raw = bytes.fromhex(host["address"])[: 4 if host["family"] == 4 else 16]
                found[host["endpoint"]].append(str(ipaddress.ip_address(raw)))
        return {index: sorted(addresses) for index, addresses in found.items()}


def open_directory(args: argparse.Namespace) -> Directory:
    """
    The snapshot in force.

    Raises:
        Failure: There is none, or it cannot be read.
    """
    state = State(args.state or default_state())
    try:
        return Directory(load(read_owned(state.snapshot)))
    except FileNotFoundError as error:
        raise Failure(f"{state.snapshot}: no snapshot; does a node run with this state directory?") from error
    except (OSError, SnapshotError) as error:
        raise Failure(str(error)) from error


def print_rows(rows: Sequence[tuple[str, ...]]) -> None:
    """Columns aligned, safe for a terminal."""
    shown = [tuple(escape(cell) for cell in row) for row in rows]
    widths = [max((len(row[column]) for row in shown), default=0) for column in range(len(shown[0]) if shown else 0)]
    for row in shown:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
