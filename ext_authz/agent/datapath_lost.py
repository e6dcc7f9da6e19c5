# SPDX-License-Identifier: Apache-2.0
"""
Programs that somebody took off their hooks: found, put back, and until they are back nothing passes.

A link that is lost forwards as if nobody had ever been attached there; nothing in the kernel tells of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from ext_authz.agent.attachments import Attachment
from ext_authz.datapath.results import Enforced
from ext_authz.logs import event

log = logging.getLogger(__name__)


class Kernel(Protocol):
    """What a Datapath tells of its hooks."""

    def enforced(self) -> Enforced: ...


class Lost:
    """
    Looks after what is attached.

    Args:
        names: Links that an attachment has beside those of its interface.
        attach: Puts the programs on it; raises what `failures` names.
        set_link: Sets its interface up or down; raises OSError.
    """

    def __init__(
        self,
        kernel: Kernel,
        names: Callable[[Attachment], set[str]],
        attach: Callable[[Attachment], None],
        set_link: Callable[[Attachment, bool], None],
        failures: tuple[type[Exception], ...],
    ) -> None:
        self._kernel = kernel
        self._names = names
        self._attach = attach
        self._set_link = set_link
        self._failures = failures
        self._down: set[str] = set()

    def look(self, attachments: Iterable[Attachment], hooks: set[str]) -> tuple[list[str], set[str]]:
        """
        Args:
            attachments: That are there, and whose programs must be.
            hooks: Names of the host's own links.

        Returns:
            A line for everything that is not judged any more; and which of `hooks` are lost.
        """
        found = self._kernel.enforced()
        problems = []
        for attachment in attachments:
            is_on = not attachment.ifindex or attachment.ifindex in found.interfaces
            # Whoever put them back, perhaps by attaching it again: an interface that was set down for them is not up.
            if not is_on or not self._names(attachment) <= found.links or attachment.key in self._down:
                problems += self._put_back(attachment)
        return problems, hooks - found.links

    def _put_back(self, attachment: Attachment) -> list[str]:
        if attachment.key not in self._down:
            event(log, logging.ERROR, "somebody took programs off an endpoint", name=attachment.key)
        try:
            self._attach(attachment)
            if attachment.key in self._down:
                self._set_link(attachment, True)
                self._down.discard(attachment.key)
        except self._failures as error:
            return [
                f"{attachment.key}: its programs are gone and cannot be put back ({error}){self._close(attachment)}"
            ]
        return []

    def _close(self, attachment: Attachment) -> str:
        """Set its interface down: better nothing than unjudged. What came of it, for people."""
        if not attachment.ifindex:
            return ": it is NOT judged"
        try:
            self._set_link(attachment, False)
        except OSError as error:
            return f": it is NOT judged, its interface cannot be set down: {error}"
        self._down.add(attachment.key)
        return ": its interface is set down"
