# SPDX-License-Identifier: Apache-2.0
"""
Which attached workloads are gone, asked every second of a thousand: who has a veth is looked at again only when the
kernel has told of its interface since, who has a cgroup by its number alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from ext_authz.agent.attachments import Attachment
from ext_authz.agent.netlink import LinkChanges
from ext_authz.agent.places import gone


class Presence:
    """Of workloads of the network namespace in which it is first asked."""

    def __init__(self) -> None:
        self._changes: LinkChanges | None = None
        self._known: dict[str, tuple[Attachment, str]] = {}

    def gone(self, attachments: Iterable[Attachment]) -> dict[str, str]:
        """Why a workload is not there any more, by its endpoint's name."""
        if self._changes is None:
            self._changes = LinkChanges()  # before the first look: nothing falls between
        changed = self._changes.since()
        known = {one.key: (one, self._reason(one, changed)) for one in attachments}
        self._known = known
        return {key: reason for key, (_, reason) in known.items() if reason}

    def _reason(self, attachment: Attachment, changed: set[int] | None) -> str:
        if attachment.cgroup:
            return "" if _is_as_it_was(attachment) else gone(attachment)
        before, reason = self._known.get(attachment.key, (None, ""))
        if changed is not None and attachment.ifindex not in changed and before == attachment:
            return reason
        return gone(attachment)

    def close(self) -> None:
        if self._changes is not None:
            self._changes.close()


def _is_as_it_was(attachment: Attachment) -> bool:
    """What it was attached to is what its path leads to: no more was true when it was attached."""
    try:
        return os.stat(attachment.cgroup).st_ino == attachment.cgroup_id
    except OSError:
        return False
