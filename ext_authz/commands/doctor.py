# SPDX-License-Identifier: Apache-2.0
"""`idmesh doctor`: what this machine lacks, or what is wrong with an Envoy configuration, and what to do about it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from ext_authz.cli import Failure
from ext_authz.doctor.registry import Grade, Patient, examine
from ext_authz.envoy_binary import MODULE
from ext_authz.logs import escape
from ext_authz.state import default_state

_EPILOG = """\
With --envoy-config only that configuration is judged: a bootstrap, or what LDS, RDS or CDS serves, as JSON or YAML; -
is standard input. Each mistake is named with its place, why it matters and the remedy. Exit: 1 if one is an error.
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="check this machine, or an Envoy configuration",
        description="Check Envoy, module, packages, privileges and state directory. Exit: 1 if a check fails.",
        epilog=_EPILOG,
    )
    parser.add_argument("--json", action="store_true", help="a line a finding")
    parser.add_argument("--state", type=Path, metavar="DIR", help="state directory (/run/idmesh for root)")
    parser.add_argument("--module", type=Path, default=MODULE, metavar="FILE", help="libidmesh_envoy.so")
    parser.add_argument("--envoy-config", metavar="FILE", help="judge this Envoy configuration instead")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    return _judge(args.envoy_config, args.json) if args.envoy_config else _examine(args)


def _examine(args: argparse.Namespace) -> int:
    found = examine(Patient((args.state or default_state()).absolute(), args.module.absolute()))
    for title, finding in found:
        if args.json:
            record = {"check": title, "grade": finding.grade, "text": finding.text, "advice": finding.advice}
            print(json.dumps(record))
        else:
            print(escape(f"{finding.grade:<4}  {title}: {finding.text}"))
            if finding.advice:
                print(escape(f"      -> {finding.advice}"))
    return int(any(finding.grade == Grade.FAIL for _, finding in found))


def _judge(name: str, as_json: bool) -> int:
    from ext_authz.doctor.config.finding import Finding, Severity
    from ext_authz.doctor.config.judge import judge, read_file

    def show(finding: Finding) -> None:
        if as_json:
            print(json.dumps({"file": shown, **asdict(finding)}))
            return
        print(escape(f"{shown}:{finding.line}: {finding.severity} [{finding.check}]: {finding.what}"))
        for head, text in (("at", finding.path), ("why", finding.why), ("do", finding.remedy)):
            print(escape(f"    {head:<4} {text}"))

    shown = "stdin" if name == "-" else name
    try:
        data = read_file(name)
    except OSError as error:
        raise Failure(f"{shown}: {error.strerror}") from error
    found = judge(data)
    for finding in found:
        show(finding)
    if not found and not as_json:
        print(f"{shown}: no mistake found")
    return int(any(finding.severity == Severity.ERROR for finding in found))
