# SPDX-License-Identifier: Apache-2.0
"""
The cgroups of a node: one for Envoy, by which the kernel's programs know Envoy's sockets.

Source: cgroups(7); mountinfo is described in proc_pid_mountinfo(5).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from ext_authz.state import State

# A node of a test has a part of the hierarchy instead of the whole.
BASE_VARIABLE = "IDMESH_CGROUP_BASE"


def base() -> Path | None:
    """The cgroup above all whose sockets this node shall know; None: cgroup2 is not mounted."""
    given = os.environ.get(BASE_VARIABLE)
    return Path(given) if given else mounted()


def mounted() -> Path | None:
    """Where the cgroup2 hierarchy is mounted."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            before, _, after = line.partition(" - ")
            if after.split()[:1] == ["cgroup2"]:
                return Path(before.split()[4].encode().decode("unicode_escape"))
    return None


def envoy_cgroup(state: State) -> Path | None:
    """The cgroup in which the Envoy of this state directory runs; it need not exist."""
    found = base()
    name = hashlib.blake2b(os.fsencode(state.root), digest_size=6).hexdigest()
    return found / f"idmesh-{name}" if found else None


def make(cgroup: Path) -> int:
    """
    Make it if it is not there; its id.

    Raises:
        OSError: It cannot be made.
    """
    cgroup.mkdir(exist_ok=True)
    return cgroup.stat().st_ino


def members(cgroup: Path) -> list[int]:
    """Its processes; of one that is gone, none."""
    try:
        return [int(word) for word in (cgroup / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def remove(cgroup: Path) -> str:
    """Why it cannot be removed, or empty; one that is gone is as good."""
    try:
        cgroup.rmdir()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"cgroup {cgroup}: {error.strerror}"
    return ""


@contextlib.contextmanager
def opened(place: Path) -> Iterator[int]:
    """
    A descriptor of a cgroup, or of a namespace, for programs to be hung on it.

    Raises:
        OSError: It is gone.
    """
    descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
