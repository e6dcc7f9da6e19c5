# SPDX-License-Identifier: Apache-2.0
"""Gives memory back after work that needed much of it for a moment."""

from __future__ import annotations

import contextlib
import ctypes
import gc


def trim() -> None:
    """Return the allocator's free pages to the system, where the C library can."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def tidy() -> None:
    """
    Collect cycles, and trim.

    The survivors are not frozen (gc.freeze): every build leaves cycles behind that a later one makes garbage.
    """
    gc.collect()
    trim()
