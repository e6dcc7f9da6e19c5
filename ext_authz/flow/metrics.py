# SPDX-License-Identifier: Apache-2.0
"""
What Prometheus is told: Hubble's metrics where Hubble has them, ours beside them. Everything is read when it is asked.

Decisions are the readers' own counts, exact even where records were lost. Labels are of few values: process ids stand
only where a reader or a ring has one, and nothing that a client writes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from ext_authz.flow.counts import BUCKETS, Counts
from ext_authz.flow.hub import Hub
from ext_authz.flow.intake import Intake
from ext_authz.flow.metrics_datapath import DatapathMetrics
from ext_authz.flow.processes import usage_of
from ext_authz.flow.record import DOORS
from ext_authz.state import State, read_json

Families = Iterator[Any]
# What a reader's page calls its counts. Errors are counted among the denials too, so they stand apart.
_VERDICTS = {"allowed": "FORWARDED", "audit": "AUDIT", "denied": "DROPPED", "redirected": "REDIRECTED"}
_READERS_MAX = 256


class FlowMetrics(Collector):
    """Counted from records, under Hubble's names."""

    def __init__(self, counts: Counts, hub: Hub, intake: Intake) -> None:
        self._counts = counts
        self._hub = hub
        self._intake = intake

    def collect(self) -> Families:
        counts = self._counts
        labels = ("protocol", "type", "subtype", "verdict")
        yield _counter("hubble_flows_processed", "Flows processed.", labels, counts.flows)
        yield _counter("hubble_drop", "Flows dropped.", ("reason", "protocol"), counts.drops)
        labels = ("method", "protocol", "status", "reporter")
        yield _counter("hubble_http_requests", "HTTP requests that were answered.", labels, counts.requests)
        yield _counter(
            "hubble_policy_verdicts", "Verdicts on connections.", ("direction", "match", "action"), counts.verdicts
        )
        yield self._durations()
        lost = {
            ("ring",): self._hub.lost,
            ("client",): self._hub.client_lost,
            ("file",): counts.unwritten,
            ("malformed",): counts.malformed,
        }
        yield _counter("hubble_lost_events", "Flows lost, by where.", ("source",), Counter(lost))
        yield from self._rings()

    def _durations(self) -> Any:
        family = HistogramMetricFamily(
            "hubble_http_request_duration_seconds", "Until the answer ended.", labels=("method", "reporter")
        )
        for key, durations in list(self._counts.durations.items()):
            bounds = [*(str(bound) for bound in BUCKETS), "+Inf"]
            family.add_metric(key, list(zip(bounds, accumulate(durations.counts), strict=True)), durations.sum)
        return family

    def _rings(self) -> Families:
        labels = ("door", "pid", "worker")
        written = CounterMetricFamily("idmesh_ring_written", "Records put into a ring.", labels=labels)
        lost = CounterMetricFamily("idmesh_ring_lost", "Records that found a ring full.", labels=labels)
        used = GaugeMetricFamily("idmesh_ring_used_bytes", "Bytes waiting to be read.", labels=labels)
        size = GaugeMetricFamily("idmesh_ring_size_bytes", "Room of a ring.", labels=labels)
        seen = set()
        for ring in self._intake.rings:
            key = (ring.door, str(ring.pid), str(ring.worker))
            if key in seen:  # a producer may call two rings alike
                continue
            seen.add(key)
            written.add_metric(key, ring.written)
            lost.add_metric(key, ring.lost)
            used.add_metric(key, ring.used)
            size.add_metric(key, ring.size)
        refused = CounterMetricFamily("idmesh_rings_refused", "Rings that were none.", value=self._intake.refused)
        yield from (written, lost, used, size, refused)


class NodeMetrics(Collector):
    """Read from the state directory: readers' pages, the status page, processes."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._counted: dict[int, dict[tuple[str, str], int]] = {}  # by the reader's pid
        self._gone: Counter[tuple[str, str]] = Counter()  # of readers that ended

    def collect(self) -> Families:
        found = read_json(self._state.status)
        page: dict[str, Any] = found if isinstance(found, dict) else {}
        pages = self._pages()
        yield from self._decisions(pages)
        yield from _readers(pages, page)
        yield from _node(self._state, page, pages)
        yield from _processes(self._state, page)
        propagation = page.get("propagation")
        if isinstance(propagation, dict):
            yield from _propagation(propagation)

    def _pages(self) -> dict[int, dict[str, Any]]:
        pages = {}
        for path in sorted(self._state.readers.glob("*.json"))[:_READERS_MAX]:
            found = read_json(path)
            pid = found.get("pid") if isinstance(found, dict) else None
            if isinstance(pid, int) and found.get("door") in DOORS.values():
                pages[pid] = found
        return pages

    def _decisions(self, pages: dict[int, dict[str, Any]]) -> Families:
        now = {pid: _counts_of(page) for pid, page in pages.items()}
        for pid, before in self._counted.items():
            # Another process with the same id begins anew.
            if pid not in now or any(count > now[pid].get(key, 0) for key, count in before.items()):
                self._gone.update(before)
        self._counted = now
        total = Counter(self._gone)
        for counts in now.values():
            total.update(counts)
        errors = Counter({(door,): count for (door, name), count in total.items() if name == "error"})
        verdicts = Counter({(door, _VERDICTS[name]): n for (door, name), n in total.items() if name in _VERDICTS})
        yield _counter("idmesh_decisions", "Decisions, by the readers' own counts.", ("door", "verdict"), verdicts)
        yield _counter("idmesh_decision_errors", "Denials because something inside failed.", ("door",), errors)


def _counts_of(page: dict[str, Any]) -> dict[tuple[str, str], int]:
    counts = page.get("counts")
    if not isinstance(counts, dict):
        return {}
    door = str(page["door"])
    names = (*_VERDICTS, "error")
    return {(door, name): counts[name] for name in names if isinstance(counts.get(name), int)}


def _readers(pages: dict[int, dict[str, Any]], page: dict[str, Any]) -> Families:
    labels = ("door", "pid")
    revision = GaugeMetricFamily("idmesh_reader_revision", "Revision a reader decides with.", labels=labels)
    lag = GaugeMetricFamily("idmesh_reader_lag", "Revisions a reader is behind.", labels=labels)
    since = GaugeMetricFamily("idmesh_reader_in_force_since_seconds", "When it came into force there.", labels=labels)
    rejected = CounterMetricFamily("idmesh_reader_rejected", "Snapshots a reader refused.", labels=labels)
    published = _number(page.get("revision"))
    for pid, found in pages.items():
        key, has = (str(found["door"]), str(pid)), _number(found.get("revision"))
        revision.add_metric(key, has)
        lag.add_metric(key, max(0, published - has))
        since.add_metric(key, _number(found.get("in_force_since")))
        rejected.add_metric(key, _number(found.get("rejected")))
    yield from (revision, lag, since, rejected)


def _observes(reader: dict[str, Any]) -> bool:
    """Whether Envoy only told a reader of requests, and enforced none of its verdicts on them."""
    share = reader.get("ext_proc")
    return isinstance(share, dict) and _number(share.get("observed")) > 0


def _node(state: State, page: dict[str, Any], readers: dict[int, dict[str, Any]]) -> Families:
    try:
        size = os.stat(state.snapshot).st_size
    except OSError:
        size = 0
    yield GaugeMetricFamily("idmesh_up", "1 if the agent runs.", value=int(state.running() is not None))
    yield GaugeMetricFamily("idmesh_snapshot_bytes", "Size of the published snapshot.", value=size)
    yield GaugeMetricFamily("idmesh_snapshot_revision", "Its revision.", value=_number(page.get("revision")))
    yield GaugeMetricFamily(
        "idmesh_snapshot_published_seconds", "When it was published.", value=_number(page.get("published"))
    )
    yield GaugeMetricFamily("idmesh_source_errors", "Errors in the sources.", value=_number(page.get("error_count")))
    standing = page.get("standing")
    count = (len(standing) if isinstance(standing, list) else 0) + sum(map(_observes, readers.values()))
    yield GaugeMetricFamily("idmesh_standing_warnings", "Settings that weaken policy.", value=count)
    yield GaugeMetricFamily("idmesh_closed", "1 if everything is denied.", value=int(bool(page.get("closed"))))


def _processes(state: State, page: dict[str, Any]) -> Families:
    labels = ("process", "pid")
    rss = GaugeMetricFamily("idmesh_process_resident_memory_bytes", "Resident memory.", labels=labels)
    pss = GaugeMetricFamily(
        "idmesh_process_proportional_memory_bytes", "Shared pages by share; where we may look.", labels=labels
    )
    cpu = CounterMetricFamily("idmesh_process_cpu_seconds", "User and system time.", labels=labels)
    builder, datapath = page.get("builder"), page.get("datapath")
    workers = page.get("workers")
    named = [("agent", state.running()), ("observer", os.getpid()), ("envoy", page.get("envoy"))]
    named += [("builder", builder.get("pid") if isinstance(builder, dict) else None)]
    named += [("datapath", datapath.get("pid") if isinstance(datapath, dict) else None)]
    named += [("worker", pid) for pid in (workers if isinstance(workers, list) else [])[:_READERS_MAX]]
    for name, pid in dict.fromkeys(named):
        usage = usage_of(pid) if isinstance(pid, int) else None
        if usage is None:
            continue
        key = (name, str(pid))
        rss.add_metric(key, usage.rss_bytes)
        cpu.add_metric(key, usage.cpu_s)
        if usage.pss_bytes >= 0:
            pss.add_metric(key, usage.pss_bytes)
    yield from (rss, pss, cpu)


def _propagation(found: dict[str, Any]) -> Families:
    """From a change of a source to its being in force in every reader, as the agent measured it."""
    buckets = found.get("buckets")
    if not isinstance(buckets, list) or not all(isinstance(bucket, dict) for bucket in buckets):
        return
    pairs = [(bucket.get("le"), int(_number(bucket.get("count")))) for bucket in buckets]
    bounds = [(str(float(bound)), count) for bound, count in pairs if isinstance(bound, (int, float))]
    bounds.append(("+Inf", int(_number(found.get("count")))))
    family = HistogramMetricFamily("idmesh_propagation_seconds", "From a change to its being in force everywhere.")
    family.add_metric((), bounds, _number(found.get("sum")))
    yield family


def _counter(name: str, text: str, labels: tuple[str, ...], counts: Counter[Any]) -> Any:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, count in list(counts.items()):
        family.add_metric(key, count)
    return family


def _number(value: Any) -> float:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else 0


def make_registry(state: State, counts: Counts, intake: Intake, hub: Hub) -> CollectorRegistry:
    """A registry of our own; the library's default would add what other code registered."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(FlowMetrics(counts, hub, intake))
    registry.register(NodeMetrics(state))
    registry.register(DatapathMetrics(state))
    return registry
