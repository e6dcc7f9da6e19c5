# SPDX-License-Identifier: Apache-2.0
"""Where the programs hang that steer: one at this host's namespace, one at Envoy's cgroup, two above all cgroups."""

from __future__ import annotations

from pathlib import Path

from ext_authz.agent.cgroups import opened
from ext_authz.datapath import Datapath
from ext_authz.datapath.syscall import AttachType

# Programs, each the only link of its name: above all cgroups, and at Envoy's.
BASE_HOOKS = {"keep_marks": AttachType.SETSOCKOPT, "keep_packets": AttachType.CGROUP_EGRESS}
CGROUP_HOOKS = {"envoy_sockets": AttachType.SOCK_OPS, "original_destination": AttachType.GETSOCKOPT}


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
        with opened(Path("/proc/thread-self/ns/net")) as namespace:
            self._kernel.link("choose_listener", "choose_listener", namespace, AttachType.SK_LOOKUP)

    def guard(self, base: Path, envoy: Path) -> None:
        """
        Envoy's sockets alone carry our marks.

        Args:
            base: Above every cgroup whose sockets could carry one.

        Raises:
            DatapathError, OSError: It is not guarded.
        """
        for folder, hooks in ((base, BASE_HOOKS), (envoy, CGROUP_HOOKS)):
            with opened(folder) as cgroup:
                for program, attach_type in hooks.items():
                    self._kernel.link(program, program, cgroup, attach_type)
