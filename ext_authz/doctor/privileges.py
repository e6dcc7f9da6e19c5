# SPDX-License-Identifier: Apache-2.0
"""What this user may do: root, namespaces of his own. The data path needs more: see datapath.py."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

from ext_authz.doctor.registry import Finding, Patient, check, ok, warn


@check("privileges")
def privileges(_patient: Patient) -> Iterator[Finding]:
    if os.geteuid() == 0:
        yield ok("running as root")
    else:
        yield ok(f"running as user {os.geteuid()}: all but the kernel's part works")
    if _can_unshare():
        yield ok("network namespaces of our own can be made")
    else:
        advice = "run as root, or allow user namespaces (sysctl user.max_user_namespaces): demo and tests use them"
        yield warn("no network namespaces of our own", advice)


def _can_unshare() -> bool:
    words = ["unshare", "-n", "true"] if os.geteuid() == 0 else ["unshare", "-Urn", "true"]
    try:
        return subprocess.run(words, capture_output=True, timeout=10, check=False).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False
