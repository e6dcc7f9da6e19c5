# SPDX-License-Identifier: Apache-2.0
"""
What a network namespace and the machine around it hold, as text that can be compared: tests leave all as found.

    before = namespace_state(node) | machine_state()
    ...
    assert difference(before, namespace_state(node) | machine_state()) == []
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

State = Mapping[str, frozenset[str]]

CGROUPS = Path("/sys/fs/cgroup/unified")
# Every name that a test gives to something the machine sees begins so, with the pid of its pytest after it.
PREFIX = "idmesh-t"
_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
_BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}
_PROG_QUERY = 16
_TCX = {"tcx ingress": 46, "tcx egress": 47}
_SK_LOOKUP = 36
# What the kernel counts or learns by itself, and switches that only act.
_RESTLESS = re.compile(r"(conntrack_count|/flush|stable_secret|/mtu_expires|inode|ip_local_reserved|_probe_interval)")

_libc = ctypes.CDLL(None, use_errno=True)


class Place(Protocol):
    """Something whose inside is a network namespace."""

    def inside(self) -> AbstractContextManager[None]: ...


class Here:
    """The namespace of the calling thread."""

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        yield


def namespace_state(place: Place) -> State:
    """Links, addresses, rules, routes, sysctls, nft, tc, tcx and sk_lookup of a network namespace."""
    with place.inside():
        links = dict(socket.if_nameindex())
        return {
            "links": _lines("ip -o link show", r" qlen \d+| state \w+|,?LOWER_UP|,?NO-CARRIER"),
            "addresses": _lines("ip -o address show", r"valid_lft .*|tentative"),
            "rules": _lines("ip rule show") | _lines("ip -6 rule show"),
            "routes": _lines("ip -4 route show table all")
            | _lines("ip -6 route show table all", r" expires \d+sec| hoplimit \d+| pref \w+"),
            "nft": _lines("nft list ruleset"),
            "tc": _filters(links.values()),
            "tcx": frozenset(_attached(links)),
            "sysctls": frozenset(_sysctls()),
        }


def machine_state(mark: str = f"{PREFIX}{os.getpid()}-") -> State:
    """
    Mounts, pins, cgroups and named namespaces that carry this mark in their names.

    Other tests run on the same machine, so that comparing everything would compare their things too.
    """
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    marked = [mount for mount in mounts if mark in mount]
    named = Path("/run/netns")
    return {
        "mounts": frozenset(marked),
        "pins": frozenset(str(pin) for mount in marked for pin in Path(mount).rglob("*") if _is_bpf(mount)),
        # Those of others come and go meanwhile, which walk() takes as it comes.
        "cgroups": frozenset(found for found, _, _ in os.walk(CGROUPS) if mark in found),
        "named namespaces": frozenset(one.name for one in named.glob("*") if mark in one.name),
        "folders": frozenset(str(one) for one in Path("/tmp").glob(f"{mark}*")),
    }


def difference(before: State, after: State) -> list[str]:
    """A line for everything that came or went."""
    found = []
    for part in sorted(before.keys() | after.keys()):
        was, now = before.get(part, frozenset()), after.get(part, frozenset())
        found += [f"{part}: new: {line}" for line in sorted(now - was)]
        found += [f"{part}: gone: {line}" for line in sorted(was - now)]
    return found


def _lines(command: str, restless: str = "$^") -> frozenset[str]:
    words = command.split()
    tool = shutil.which(words[0], path=_PATH)
    if tool is None:
        return frozenset()
    done = subprocess.run([tool, *words[1:]], capture_output=True, text=True, check=False)
    lines = (" ".join(re.sub(restless, "", line).split()) for line in done.stdout.splitlines())
    return frozenset(line for line in lines if line)


def _filters(links: object) -> frozenset[str]:
    found = set(_lines("tc qdisc show"))
    for line in [line for line in found if "clsact" in line]:
        name = line.split(" dev ")[1].split()[0]
        for way in ("ingress", "egress"):
            found |= {
                f"{name} {way} {text}" for text in _lines(f"tc filter show dev {name} {way}", r" id \d+| tag \w+")
            }
    return frozenset(found)


def _attached(links: Mapping[int, str]) -> Iterator[str]:
    """Programs on links and on the namespace, which no tool lists."""
    for ifindex, name in links.items():
        for way, kind in _TCX.items():
            yield from (f"{name} {way}" for _ in range(attached_programs(ifindex, kind)))
    descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield from ("sk_lookup" for _ in range(attached_programs(descriptor, _SK_LOOKUP)))
    finally:
        os.close(descriptor)


def attached_programs(target: int, kind: int) -> int:
    """How many programs of this attach type hang on an interface of the calling thread's namespace, or on a file."""
    attributes = ctypes.create_string_buffer(struct.pack("<IIIIQI", target, kind, 0, 0, 0, 0).ljust(128, b"\0"))
    number = _BPF_SYSCALL[platform.machine()]
    if _libc.syscall(number, _PROG_QUERY, attributes, len(attributes)):
        return 0
    return int(struct.unpack_from("<I", attributes, 24)[0])


def _sysctls() -> Iterator[str]:
    for path in Path("/proc/sys/net").rglob("*"):
        if _RESTLESS.search(str(path)):
            continue
        with contextlib.suppress(OSError):
            if path.is_file():
                yield f"{path}={path.read_text().strip()}"


def _is_bpf(mount: str) -> bool:
    lines = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return any(words[1] == mount and words[2] == "bpf" for words in lines)
