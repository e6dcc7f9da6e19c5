# SPDX-License-Identifier: Apache-2.0
"""A file in, findings out: errors first, each in the order of the file."""

from __future__ import annotations

import sys
from pathlib import Path

from ext_authz.doctor.config import (  # noqa: F401 each adds its checks
    checks_disabled,
    checks_failing,
    checks_module,
    checks_network,
    checks_order,
    checks_paths,
    checks_peer,
    checks_service,
    checks_tls,
    checks_writers,
)
from ext_authz.doctor.config.finding import Finding, Severity, error, run_checks
from ext_authz.doctor.config.node import Node
from ext_authz.doctor.config.reading import ConfigError, read_config
from ext_authz.doctor.config.view import View, make_view


def judge(data: bytes) -> list[Finding]:
    """Whatever the bytes are, the answer is a list; what cannot be read is its only item."""
    try:
        root = read_config(data)
    except ConfigError as problem:
        what = f"the file {problem}"
        return [error("unreadable", Node(""), what, "nothing was judged", "give a bootstrap as JSON or YAML")]
    view = make_view(root)
    if _empty(view):
        what = "there is no listener, route, cluster or bootstrap extension here"
        remedy = "give a bootstrap, or what LDS, RDS or CDS serves"
        return [error("unreadable", root, what, "nothing was judged", remedy)]
    found = sorted(run_checks(view), key=lambda item: item.line)
    return sorted(found, key=lambda item: item.severity != Severity.ERROR)


def _empty(view: View) -> bool:
    return not (view.listeners or view.routes or view.clusters or view.extensions)


def read_file(name: str) -> bytes:
    """
    The bytes of a file; "-" is standard input.

    Raises:
        OSError: It cannot be read.
    """
    return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
