# SPDX-License-Identifier: Apache-2.0
"""How a node is, put together from what it and its readers left in the state directory."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any

from ext_authz.state import State, read_json

# A reader may need this long to load what was just published.
GRACE_S = 1.0
# The longest Envoy may take until its door has read a snapshot.
_BEGIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Reader:
    """One process that decides, as it reported itself."""

    pid: int
    door: str
    revision: int
    digest: str
    lag: int  # revisions behind
    stale: bool  # behind for longer than it should be
    rejected: int
    error: str
    address: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    age_s: float | None = None  # since this revision is in force there; None: it does not say
    flows: dict[str, int] = field(default_factory=dict)  # written and lost, of its rings
    observed: int = 0  # requests that it was only told of

    @staticmethod
    def silent(pid: int, page: dict[str, Any]) -> Reader:
        """A worker that has not reported yet."""
        return Reader(pid, "service", 0, "", int(page.get("revision") or 0), False, 0, "")

    @staticmethod
    def kernel(state: State, page: dict[str, Any]) -> Reader:
        """The data path while its process does not run: it stays where it was."""
        found = read_json(state.readers / "datapath.json")
        revision = int(found.get("revision") or 0) if isinstance(found, dict) else 0
        lag = max(0, int(page.get("revision") or 0) - revision)
        return Reader(0, "bpf", revision, "", lag, False, 0, "its process does not run")


@dataclass(frozen=True, slots=True)
class Status:
    """`pid` None: no node runs; the page is then the last one it wrote, if any."""

    pid: int | None
    page: dict[str, Any]
    readers: list[Reader]
    problems: list[str]

    @property
    def healthy(self) -> bool:
        return self.pid is not None and not self.problems


def read_status(state: State) -> Status:
    pid = state.running()
    found = read_json(state.status)
    page: dict[str, Any] = found if isinstance(found, dict) else {}
    readers = read_readers(state, page)
    if page:
        page["pressure"] = {**(page.get("pressure") or {}), "flows": _flows(readers)}
        page["standing"] = [*(page.get("standing") or ()), *_observing(readers)]
        _add_datapath(state, page)
    problems = [] if pid is not None else [f"no node is running with the state directory {state.root}"]
    return Status(pid, page, readers, problems + _problems(pid, page, readers))


def _add_datapath(state: State, page: dict[str, Any]) -> None:
    """What the data path's process says, into the agent's page: its pressure and its standing warnings too."""
    found = read_json(state.datapath / "page.json")
    if not isinstance(found, dict) or not isinstance(page.get("datapath"), dict):
        return
    page["datapath"] = {**found, **page["datapath"]}
    rows = {one["name"]: {"used": one["rows"], "limit": one["limit"]} for one in found.get("maps", ()) if one["rows"]}
    page["pressure"]["maps"] = rows
    warnings = [{"reason": f"data path: {text}"} for text in found.get("warnings", ())]
    page["standing"] = [*page.get("standing", ()), *warnings]


def read_readers(state: State, page: dict[str, Any]) -> list[Reader]:
    """Reports of processes that still run."""
    readers = []
    for path in sorted(state.readers.glob("*.json")):
        report = read_json(path)
        reader = _reader(report, page) if isinstance(report, dict) else None
        if reader and _alive(reader.pid):
            readers.append(reader)
    return readers


def _flows(readers: list[Reader]) -> dict[str, int]:
    """Records of all rings of those that run."""
    return {name: sum(reader.flows.get(name, 0) for reader in readers) for name in ("written", "lost")}


def _observing(readers: list[Reader]) -> list[dict[str, Any]]:
    """Standing warnings of requests that passed whatever was decided: Envoy's own configuration says so, not ours."""
    reason = "observability_mode: Envoy only told {} of {} requests, and waited for no verdict"
    return [
        {"reason": reason.format(f"reader {reader.pid} ({reader.door})", reader.observed)}
        for reader in readers
        if reader.observed
    ]


def _reader(report: dict[str, Any], page: dict[str, Any]) -> Reader | None:
    try:
        revision, digest = int(report.get("revision") or 0), str(report.get("digest") or "")
        published = int(page.get("revision") or 0)
        behind = revision < published or (revision == published and digest != str(page.get("digest") or digest))
        since = report.get("in_force_since")
        late = _published_for(page) > GRACE_S
        return Reader(
            pid=int(report["pid"]),
            door=str(report.get("door") or ""),
            revision=revision,
            digest=digest,
            lag=max(0, published - revision),
            stale=behind and late,
            rejected=int(report.get("rejected") or 0),
            error=str(report.get("error") or ""),
            address=str(report.get("address") or ""),
            counts=dict(report.get("counts") or {}),
            age_s=round(max(0.0, time.time() - float(since)), 3) if since else None,
            flows={name: int(count) for name, count in dict(report.get("flows") or {}).items()},
            observed=int(dict(report.get("ext_proc") or {}).get("observed") or 0),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _published_for(page: dict[str, Any]) -> float:
    """Seconds."""
    return time.time() - float(page.get("published") or 0)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _problems(pid: int | None, page: dict[str, Any], readers: list[Reader]) -> list[str]:
    problems = []
    if page.get("failure"):
        problems.append(f"nothing compiled: {page['failure']}")
    if page.get("error_count"):
        errors = "1 error" if page["error_count"] == 1 else f"{page['error_count']} errors"
        problems.append(f"{errors} in the sources")
    if pid is not None and not page.get("revision"):
        problems.append("nothing is published yet")
    if pid is not None and page.get("envoy_trouble"):
        problems.append(str(page["envoy_trouble"]))
    elif pid is not None and page.get("envoy") and not readers and _published_for(page) > _BEGIN_S:
        problems.append(
            f"Envoy {page['envoy']} runs, but nobody reads this state directory: does its file name another?"
        )
    observer = page.get("observer")
    if pid is not None and isinstance(observer, dict) and observer.get("trouble"):
        problems.append(str(observer["trouble"]))
    if page.get("closed"):
        problems.append("the node is closed: everything is denied")
    for reader in readers:
        if reader.stale:
            said = f": {reader.error}" if reader.error else ""
            problems.append(f"reader {reader.pid} ({reader.door}) is {reader.lag} revisions behind{said}")
        elif reader.error:
            problems.append(f"reader {reader.pid} ({reader.door}): {reader.error}")
    datapath = page.get("datapath")
    if pid is not None and isinstance(datapath, dict) and datapath.get("trouble"):
        problems.append(str(datapath["trouble"]))
    missing = [worker for worker in page.get("workers") or [] if worker not in {reader.pid for reader in readers}]
    problems += [f"worker {worker} has not reported" for worker in missing if pid is not None]
    return problems
