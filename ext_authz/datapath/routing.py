# SPDX-License-Identifier: Apache-2.0
"""
Rules, routes and sysctls that bring steered packets into this host's own stack, and everything back as it was.

    pref 8   iif lo fwmark 0x200/0xf00 -> main   what Envoy sends may have inherited the mark: it goes out
    pref 9   fwmark 0x200/0xf00 -> table 2004    `local default dev lo`: steered packets are for this host
    pref 9   fwmark 0x600/0xf00 -> table 2004    so are those of steered sockets of workloads without a namespace

Everything acts on the network namespace of the calling thread. What is changed is written down first, in a file that
outlives us, so that whoever comes after a crash can still put it back; what was there before us is left alone.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ext_authz.boot import boot_id
from ext_authz.state import write_atomic

MARK, SOCKETS, TABLE = "0x200/0xf00", "0x600/0xf00", "2004"
_MAIN, _LO = "254", "lo"
_NET = Path("/proc/sys/net")
# Wanted values, and other sysctls that the kernel changes along with them. Forwarding is for all that is not steered.
# Early demux finds Envoy's socket for what comes from outside on its way to a workload's interface, where it would be
# steered; and what has a socket is not forwarded (ip_forward() drops it).
_WANTED = {
    "ipv4/ip_forward": ("1", "ipv4/conf/*/[fa]*"),
    "ipv6/conf/all/forwarding": ("1", "ipv6/conf/*/forwarding"),
    "ipv4/tcp_early_demux": ("0", ""),
}
_LOOSE = "2"


class RoutingError(Exception):
    """The host does not let us; nothing is half done that restore() would not undo."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of ours, as iproute2 takes it and as it shows it."""

    family: str
    pref: str
    words: tuple[str, ...]
    shown: Mapping[str, Any]

    @property
    def text(self) -> str:
        return " ".join(("ip", self.family, "rule", "pref", self.pref, *self.words))


def rules(family: str) -> list[Rule]:
    """Of an address family, "-4" or "-6"."""
    marked, sockets = (dict(zip(("fwmark", "fwmask"), one.split("/"), strict=True)) for one in (MARK, SOCKETS))
    return [
        Rule(family, "8", ("iif", _LO, "fwmark", MARK, "lookup", _MAIN), {**marked, "iif": _LO, "table": "main"}),
        Rule(family, "9", ("fwmark", MARK, "lookup", TABLE), {**marked, "table": TABLE}),
        Rule(family, "9", ("fwmark", SOCKETS, "lookup", TABLE), {**sockets, "table": TABLE}),
    ]


@dataclass
class _Record:
    """What was changed since the host was started, in order. sysctls: path below /proc/sys/net to [before, ours]."""

    rules: list[list[str]] = field(default_factory=list)
    routes: list[str] = field(default_factory=list)
    sysctls: dict[str, list[str]] = field(default_factory=dict)
    boot: str = field(default_factory=boot_id)


class Routing:
    """record: the file that says what we changed; its folder must exist."""

    def __init__(self, record: Path) -> None:
        self._path = record
        self._record = _read(record)

    # ---- host ----

    def set(self) -> None:
        """
        Make the host steer. Again is fine: what is missing is added.

        Raises:
            RoutingError: A rule or route is refused, or another one stands in its place.
        """
        self.mend()
        for name, (value, kin) in _WANTED.items():
            if (_NET / name).exists():
                self._write(name, value, kin)

    def mend(self) -> None:
        """
        Put rules and routes back that somebody flushed; sysctls are left to whoever changed them.

        Raises:
            RoutingError: As set().
        """
        for family in _families():
            self._add_route(family)
            for rule in rules(family):
                self._add_rule(rule)

    def check(self) -> list[str]:
        """A line for everything that keeps steered packets from arriving."""
        found = []
        for family in _families():
            shown = _shown(family)
            found += [f"missing: {rule.text}" for rule in rules(family) if not _has(shown, rule)]
            found += [f"in front of ours: ip {family} rule {_text(other)}" for other in _in_front(shown, family)]
            if not _has_route(family):
                found.append(f"missing: {_route_text(family)}")
        for name, (value, _) in _WANTED.items():
            if (_NET / name).exists() and _value(name) != value:
                found.append(f"net.{name.replace('/', '.')} is {_value(name)}, not {value}")
        return found

    def restore(self) -> list[str]:
        """Undo all of ours, last first; a line for what could not be undone or is somebody else's by now."""
        problems: list[str] = []
        for words in reversed(self._record.rules):
            problems += _gone(words)
        for family in reversed(self._record.routes):
            problems += _gone(_route(family, "del"))
        problems += self._put_back(lambda _name: True)
        self._path.unlink(missing_ok=True)
        self._record = _Record()
        return problems

    # ---- interfaces of workloads ----

    def add(self, interface: str) -> None:
        """
        Let packets that were on their way to a workload come in again at its interface, from whomever they are.

        The reverse path of an outside client is another interface (rp_filter), and a process of this host has an
        address of this host (accept_local). Foreign sources of the workload itself are dropped before that.
        """
        conf = f"ipv4/conf/{interface}"
        if "1" in (_value("ipv4/conf/all/rp_filter"), _value(f"{conf}/rp_filter")):
            self._write(f"{conf}/rp_filter", _LOOSE)
        self._write(f"{conf}/accept_local", "1")

    def check_interface(self, interface: str) -> list[str]:
        """A line for everything that keeps such packets out."""
        conf = f"ipv4/conf/{interface}"
        if not (_NET / conf).exists():
            return [f"{interface} is gone"]
        # Of an interface that goes this moment there is nothing to read.
        strict = max(_value("ipv4/conf/all/rp_filter"), _value(f"{conf}/rp_filter")) == "1"
        found = [f"net.ipv4.conf.{interface}.rp_filter: strict, drops clients from outside"] if strict else []
        if _value(f"{conf}/accept_local") != "1":
            found.append(f"net.ipv4.conf.{interface}.accept_local is not 1: drops processes of this host")
        return found

    def remove(self, interface: str) -> list[str]:
        """Undo add()."""
        return self._put_back(lambda name: name.startswith(f"ipv4/conf/{interface}/"))

    def forget_gone(self) -> None:
        """Nothing is left of interfaces that are gone, and the next of that name is another one."""
        kept = {name: values for name, values in self._record.sysctls.items() if (_NET / name).exists()}
        if len(kept) < len(self._record.sysctls):
            self._record.sysctls = kept
            self._save()

    # ---- one change ----

    def _add_rule(self, rule: Rule) -> None:
        shown = _shown(rule.family)
        if _has(shown, rule):
            return
        undo = [rule.family, "rule", "del", "pref", rule.pref, *rule.words]
        if undo not in self._record.rules:
            self._record.rules.append(undo)
            self._save()
        _ip([rule.family, "rule", "add", "pref", rule.pref, *rule.words])

    def _add_route(self, family: str) -> None:
        if _has_route(family):
            return
        if _table(family):
            raise RoutingError(f"table {TABLE} is in use: ip {family} route show table {TABLE}")
        if family not in self._record.routes:
            self._record.routes.append(family)
            self._save()
        _ip(_route(family, "add"))

    def _write(self, name: str, value: str, kin: str = "") -> None:
        """kin: pattern of the sysctls that the kernel changes with this one."""
        before = {name: _value(name)} | {str(path.relative_to(_NET)): _text_of(path) for path in _NET.glob(kin or name)}
        if before[name] == value:
            return
        self._record.sysctls.setdefault(name, [before[name], value])
        self._save()
        try:
            (_NET / name).write_text(value)
        except OSError as error:
            raise RoutingError(f"net.{name.replace('/', '.')}: {error.strerror}") from error
        changed = {
            other: [was, now] for other, was in before.items() if other != name and was != (now := _value(other))
        }
        if changed:  # the record is written whole, and a node may have a thousand interfaces
            self._record.sysctls |= {other: one for other, one in changed.items() if other not in self._record.sysctls}
            self._save()

    def _put_back(self, wanted: Any) -> list[str]:
        problems = []
        names = [name for name in self._record.sysctls if wanted(name)]
        changed = {name: self._record.sysctls[name] for name in names if (_NET / name).exists()}
        # All are looked at before the first is written, which changes its kin again.
        foreign = {name for name, (_, ours) in changed.items() if _value(name) != ours}
        problems += [f"net.{name.replace('/', '.')} was changed by somebody else: left alone" for name in foreign]
        for name, (before, _) in changed.items():
            if name not in foreign:
                (_NET / name).write_text(before)
        for name in names:
            del self._record.sysctls[name]
        if self._path.exists():
            self._save()
        return problems

    def _save(self) -> None:
        write_atomic(self._path, json.dumps(vars(self._record)).encode())


def _read(path: Path) -> _Record:
    try:
        found = _Record(**json.loads(path.read_text()))
        # What an earlier boot changed went with it; what stood there before is nobody's wish now.
        return found if found.boot == boot_id() else _Record()
    except FileNotFoundError:
        return _Record()
    except (ValueError, TypeError) as error:
        raise RoutingError(
            f"{path}: {error}; what it said cannot be put back: check `ip rule` and remove it"
        ) from error


# ---- the kernel's own view ----


def _families() -> list[str]:
    return ["-4", "-6"] if Path("/proc/net/if_inet6").exists() else ["-4"]


def _value(name: str) -> str:
    return _text_of(_NET / name)


def _text_of(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # some can only be written
        return ""


def _shown(family: str) -> list[dict[str, Any]]:
    return _json([family, "rule", "show"])


def _has(shown: Iterable[Mapping[str, Any]], rule: Rule) -> bool:
    return any(str(one["priority"]) == rule.pref and _same(one, rule.shown) for one in shown)


def _same(one: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Nothing else may narrow it."""
    found = {key: str(value) for key, value in one.items() if key not in ("priority", "src", "protocol")}
    return found == dict(wanted) and one.get("src", "all") == "all"


def _in_front(shown: Sequence[Mapping[str, Any]], family: str) -> list[Mapping[str, Any]]:
    """Rules that may take steered packets before ours do; the kernel's own at 0 takes only what is local anyway."""
    ours = rules(family)
    return [
        one
        for one in shown
        if one["priority"] <= 9
        and not (one["priority"] == 0 and one.get("table") == "local")
        and not any(_has([one], rule) for rule in ours)
    ]


def _text(shown: Mapping[str, Any]) -> str:
    return " ".join(f"{key} {value}" for key, value in shown.items())


def _table(family: str) -> list[dict[str, Any]]:
    return _json([family, "route", "show", "table", TABLE])


def _has_route(family: str) -> bool:
    return any(one.get("type") == "local" and one.get("dst") == "default" for one in _table(family))


def _route(family: str, verb: str) -> list[str]:
    return [family, "route", verb, "local", "default", "dev", _LO, "table", TABLE]


def _route_text(family: str) -> str:
    return " ".join(("ip", *_route(family, "add")))


def _json(words: Sequence[str]) -> list[dict[str, Any]]:
    done = subprocess.run(["ip", "-json", *words], capture_output=True, text=True, check=False)
    # A table that does not exist is an error, after half a list.
    return json.loads(done.stdout) if not done.returncode and done.stdout.strip() else []


def _ip(words: Sequence[str]) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RoutingError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def _gone(words: Sequence[str]) -> list[str]:
    try:
        _ip(words)
    except RoutingError as error:
        # Gone already is as good.
        return [] if "No such" in str(error) or "FIB table does not exist" in str(error) else [str(error)]
    return []
