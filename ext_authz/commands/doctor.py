# SPDX-License-Identifier: Apache-2.0
"""`idmesh doctor`: what this machine lacks, and what to do about it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ext_authz.doctor.registry import Grade, Patient, examine
from ext_authz.envoy_binary import MODULE
from ext_authz.logs import escape
from ext_authz.state import default_state


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="check this machine",
        description="Check Envoy, module, packages, privileges and state directory. Exit: 1 if a check fails.",
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--state", type=Path, metavar="DIR", help="state directory (/run/idmesh for root)")
    parser.add_argument("--module", type=Path, default=MODULE, metavar="FILE", help="libidmesh_envoy.so")
    parser.add_argument("--envoy", type=Path, metavar="FILE", help="also check this Envoy configuration")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    found = examine(Patient((args.state or default_state()).absolute(), args.module.absolute(), args.envoy))
    for title, finding in found:
        if args.json:
            record = {"check": title, "grade": finding.grade, "text": finding.text, "advice": finding.advice}
            print(json.dumps(record))
        else:
            print(escape(f"{finding.grade:<4}  {title}: {finding.text}"))
            if finding.advice:
                print(escape(f"      -> {finding.advice}"))
    return int(any(finding.grade == Grade.FAIL for _, finding in found))
