# SPDX-License-Identifier: Apache-2.0
"""
Which attached workloads are gone, asked every second of a thousand: who has a veth is looked at again only when the
kernel has told of its interface since, who has a cgroup by its number alone. In doubt nobody is gone: who is taken for
gone is let go, and goes unjudged if he is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from ext_authz.agent.attachments import Attachment
from ext_authz.agent.netlink import LinkChanges
from ext_authz.agent.places import gone
from ext_authz.boot import boot_id


class Presence:
    """Of workloads of the network namespace in which it is first asked."""

    def __init__(self) -> None:
        self._changes: LinkChanges | None = None
        self._known: dict[str, tuple[Attachment, str]] = {}

    def gone(self, attachments: Iterable[Attachment]) -> dict[str, str]:
        """Why a workload is not there any more, by its endpoint's name."""
        asked = list(attachments)
        # Before the first look: nothing falls between.
        changed = self._since() if any(not one.cgroup for one in asked) else set()
        found = {one.key: (one, self._reason(one, changed)) for one in asked}
        self._known = {key: (one, reason) for key, (one, reason) in found.items() if reason is not None}
        return {key: reason for key, (_, reason) in self._known.items() if reason}

    def _since(self) -> set[int] | None:
        """None: of any; also where the kernel does not tell this process of its interfaces."""
        try:
            if self._changes is None:
                self._changes = LinkChanges()
                return None
            return self._changes.since()
        except OSError:
            return None

    def _reason(self, attachment: Attachment, changed: set[int] | None) -> str | None:
        """None: it cannot be told now."""
        if attachment.cgroup:
            return "" if _is_as_it_was(attachment) else gone(attachment)
        before, reason = self._known.get(attachment.key, (None, ""))
        if changed is not None and attachment.ifindex not in changed and before == attachment:
            return reason
        try:
            return gone(attachment)
        except OSError:
            return None

    def close(self) -> None:
        if self._changes is not None:
            self._changes.close()


def _is_as_it_was(attachment: Attachment) -> bool:
    """What it was attached to is what its path leads to: no more was true when it was attached. Numbers begin anew."""
    if attachment.boot and attachment.boot != boot_id():
        return False
    try:
        return os.stat(attachment.cgroup).st_ino == attachment.cgroup_id
    except OSError:
        return False
