# SPDX-License-Identifier: Apache-2.0
"""Warnings that may come thousands of times a second: one line a message and some seconds, with what was left out."""

from __future__ import annotations

import logging
import time

from ext_authz.logs import event

PAUSE_S = 5.0


class Quiet:
    """Counts what it holds back; `number` adds up."""

    def __init__(self, log: logging.Logger, pause_s: float = PAUSE_S) -> None:
        self._log = log
        self._pause_s = pause_s
        self._said: dict[str, tuple[float, int]] = {}

    def warn(self, message: str, number: int = 1, **fields: object) -> None:
        """The message is one of few constants; fields are those of its last occurrence."""
        now = time.monotonic()
        last, held = self._said.get(message, (0.0, 0))
        held += number
        if last and now - last < self._pause_s:
            self._said[message] = last, held
            return
        self._said[message] = now, 0
        event(self._log, logging.WARNING, message, fields=fields, count=held)
