# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with the data path, in the order in which one meets it."""

from __future__ import annotations


class DatapathError(Exception):
    """The data path cannot do it. What was enforced before is enforced still."""


class Unsupported(DatapathError):
    """This host cannot have a data path: no privileges, no BTF, no libbpf, or a feature its kernel lacks."""


class ObjectError(DatapathError):
    """A BPF object is not what this loader can load."""


class MountError(DatapathError):
    """The folder for pins is not ours alone."""


class Locked(DatapathError):
    """Another process drives this data path."""


class Occupied(DatapathError):
    """Programs of another data path hang on this host."""


class MapFull(DatapathError):
    """A revision, or a row, does not fit; the revision before stays in force."""


class Refused(DatapathError):
    """The kernel refuses. log: what libbpf and the verifier say."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log
