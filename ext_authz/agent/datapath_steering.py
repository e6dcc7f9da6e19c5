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
        with _opened(base) as above:
            self._kernel.link("keep_marks", "keep_marks", above, _SETSOCKOPT)
            self._kernel.link("keep_packets", "keep_packets", above, _EGRESS)
        with _opened(envoy) as cgroup:
            self._kernel.link("envoy_sockets", "envoy_sockets", cgroup, _SOCK_OPS)
            self._kernel.link("original_destination", "original_destination", cgroup, _GETSOCKOPT)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
