# SPDX-License-Identifier: Apache-2.0
"""Where the programs hang that steer: one at this host's namespace, one at Envoy's cgroup, two above all cgroups."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ext_authz.datapath import Datapath

# The kernel's attach types.
_EGRESS, _SOCK_OPS, _GETSOCKOPT, _SETSOCKOPT, _SK_LOOKUP = 1, 3, 21, 22, 36
# Programs, each the only link of its name: above all cgroups, and at Envoy's.
BASE_HOOKS = {"keep_marks": _SETSOCKOPT, "keep_packets": _EGRESS}
CGROUP_HOOKS = {"envoy_sockets": _SOCK_OPS, "original_destination": _GETSOCKOPT}


class Steering:
    """All calls replace what an earlier process hung there."""

    def __init__(self, kernel: Datapath) -> None:
        self._kernel = kernel

    def choose_listeners(self) -> None:
        """
        Steered connections find Envoy's listener in the namespace of the calling thread.

        Raises:
            DatapathError: Not there.
        """
        with _opened(Path("/proc/thread-self/ns/net")) as namespace:
            self._kernel.link("choose_listener", "choose_listener", namespace, _SK_LOOKUP)

    def guard(self, base: Path, envoy: Path) -> None:
        """
        Envoy's sockets alone carry our marks.

        Args:
            base: Above every cgroup whose sockets could carry one.

        Raises:
            DatapathError, OSError: It is not guarded.
        """
        for folder, hooks in ((base, BASE_HOOKS), (envoy, CGROUP_HOOKS)):
            with _opened(folder) as cgroup:
                for program, attach_type in hooks.items():
                    self._kernel.link(program, program, cgroup, attach_type)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
