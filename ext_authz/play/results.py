# SPDX-License-Identifier: Apache-2.0
"""What came of a probe, held against what it states, and how that is printed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

from ext_authz.casefile import Raw


class PlayError(Exception):
    """Cases cannot be played this way; the message says what is missing, or what went wrong and where its log is."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """got None: not played, `skipped` says why. entry: the winning entry as its author wrote it."""

    got: Raw | None = None
    skipped: str | None = None
    entry: str | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """One probe's line; probe counts from 0. ok None: nothing was stated or nothing was played."""

    case: str
    probe: int
    expect: Raw
    outcome: Outcome
    title: str = ""

    @property
    def ok(self) -> bool | None:
        if self.outcome.skipped is not None or not self.expect:
            return None
        return self.outcome.got is not None and agrees(self.expect, self.outcome.got)

    def json(self) -> str:
        return json.dumps(
            {
                "case": self.case,
                "probe": self.probe,
                "expect": self.expect,
                "got": self.outcome.got,
                "ok": self.ok,
                "skipped": self.outcome.skipped,
                "entry": self.outcome.entry,
            }
        )


def agrees(expect: Mapping[str, Any], got: Mapping[str, Any]) -> bool:
    """True if every key that is expected came out so."""
    return all(key in got and _equal(key, value, got[key]) for key, value in expect.items())


def _equal(key: str, wanted: Any, seen: Any) -> bool:
    if key == "upstream_headers":
        return _folded(wanted) == _folded(seen)
    return type(wanted) is type(seen) and bool(wanted == seen)


def _folded(changes: Mapping[str, Any]) -> tuple[dict[str, str], set[str]]:
    """Header names have no case."""
    put = {name.lower(): str(value) for name, value in (changes.get("set") or {}).items()}
    return put, {name.lower() for name in changes.get("removed") or ()}


@dataclass
class Report:
    """Prints lines as they come and counts them. Stated answers count as passed or failed; the rest does not."""

    out: TextIO
    as_json: bool
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, line: Line) -> None:
        if line.outcome.skipped is not None:
            self.counts["skipped"] += 1
            self.reasons[line.outcome.skipped] += 1
        elif line.ok is not None:
            self.counts["passed" if line.ok else "failed"] += 1
        if self.as_json:
            print(line.json(), file=self.out, flush=True)
        elif line.ok is False:
            print(_failure(line), file=self.out, flush=True)

    def close(self) -> None:
        counts = {name: self.counts[name] for name in ("passed", "failed", "skipped")}
        if self.as_json:
            print(json.dumps(counts), file=self.out, flush=True)
            return
        for reason, count in self.reasons.most_common():
            print(f"skipped {count}: {reason}", file=self.out)
        print(", ".join(f"{count} {name}" for name, count in counts.items()), file=self.out, flush=True)

    @property
    def failed(self) -> bool:
        return self.counts["failed"] > 0


def _failure(line: Line) -> str:
    entry = f"\n    by   {line.outcome.entry}" if line.outcome.entry else ""
    return (
        f"FAILED {line.case} probe {line.probe}: {line.title}\n"
        f"    want {json.dumps(line.expect)}\n    got  {json.dumps(line.outcome.got)}{entry}"
    )


def probe_title(probe: Mapping[str, Any]) -> str:
    """A probe in a few words."""
    if icmp := probe.get("icmp"):
        what = f"{icmp['family']} ICMP type {icmp['type']}"
    else:
        what = f"{probe['protocol']}/{probe['port']}"
    request = ""
    if http := probe.get("http"):
        request = f", {http['method']} {http.get('host', '')}{http['path']}"
    for name in ("dns", "sni", "kafka"):
        if name in probe:
            request += f", {name} {json.dumps(probe[name])}"
    return f"{probe['dir']} {probe['from']} -> {probe['to']} {what}{request}"
