# SPDX-License-Identifier: Apache-2.0
"""
The data path, hop by hop: whether this host can have one, whether a connection is really steered in namespaces of the
doctor's own, and what on this host stands in the way of the one that is set up here.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator

from ext_authz.agent import cgroups
from ext_authz.agent.attachments import Attachment, AttachmentStore
from ext_authz.agent.datapath_strangers import find_strangers
from ext_authz.agent.datapath_support import why_not
from ext_authz.doctor.attached import OURS, is_transparent, tcx_programs
from ext_authz.doctor.registry import Finding, Patient, check, fail, ok, warn
from ext_authz.state import State, read_json

_WAYS = "a running node puts its rules and routes back; of a sysctl find out who sets it"
_FOREIGN = "it runs before ours: detach it, or attach the endpoint anew so that ours comes first"


@check("bpf")
def bpf(_patient: Patient) -> Iterator[Finding]:
    reason = why_not()
    if reason:
        yield warn(f"no data path: {reason}", "Envoy and the gRPC services work without; the kernel judges nothing")
    else:
        yield ok("BPF, BTF and the BPF file system are there")


@check("datapath probe")
def probe(patient: Patient) -> Iterator[Finding]:
    if why_not():
        return
    from ext_authz.datapath import DatapathError
    from ext_authz.datapath.routing import RoutingError
    from ext_authz.doctor.steered import Probe, culprits

    try:
        with Probe() as made:
            yield ok("every program loads, and a BPF file system can be mounted")
            if reason := made.steers():
                yield fail(f"a connection is not steered even in a fresh namespace: {reason}", "report this")
                return
            yield ok("a connection is steered in a namespace of our own: destination and client arrive as they are")
            found = culprits(made, _interfaces(State(patient.state)))
            yield from (fail(text, "sysctl -w; as this host has it, steered packets are lost") for text in found)
            if not found:
                yield ok("no sysctl of this host stands in the way of steering")
    except (DatapathError, RoutingError, OSError) as error:
        yield fail(f"the data path cannot be made: {error}", "the message says what is missing")


def _interfaces(state: State) -> Iterator[str]:
    """Host sides of the attached workloads, by name."""
    for attachment in AttachmentStore(state.attached).all():
        with contextlib.suppress(OSError):
            yield socket.if_indextoname(attachment.ifindex)


@check("datapath here")
def here(patient: Patient) -> Iterator[Finding]:
    state = State(patient.state)
    problems: list[Finding] = []
    for stranger in find_strangers(state, cgroups.base()):
        problems.append(fail(str(stranger), "a host has one data path: its programs are others to each other"))
    if not state.has_datapath:
        yield from problems or [ok("nothing is set up on this host")]
        return
    from ext_authz.datapath.errors import DatapathError
    from ext_authz.datapath.mount import check_mount
    from ext_authz.datapath.routing import Routing, RoutingError

    try:
        check_mount(state.datapath_pins)
    except DatapathError as error:
        problems.append(fail(str(error), "stop the node, run idmesh run --cleanup, and start it anew"))
    try:
        routing = Routing(state.datapath / "routing.json")
        problems += [fail(text, _WAYS) for text in routing.check()]
        for attachment in AttachmentStore(state.attached).all():
            problems += _interface(attachment, routing)
    except RoutingError as error:
        problems.append(fail(str(error), "run idmesh run --cleanup"))
    problems += _listeners(state)
    yield from problems or [ok("rules, routes, sysctls, programs and listener are as they should be")]


def _interface(attachment: Attachment, routing: object) -> Iterator[Finding]:
    if not attachment.ifindex:
        return
    try:
        name = socket.if_indextoname(attachment.ifindex)
    except OSError:
        yield warn(f"{attachment.key}: interface {attachment.ifindex} is gone", "the running node detaches it")
        return
    yield from (fail(text, "restart the node") for text in routing.check_interface(name))  # type: ignore[attr-defined]
    filters = _has_filters(name)
    for way, ours in OURS.items():
        programs = tcx_programs(attachment.ifindex, way)
        if ours not in programs and ours not in filters:
            yield fail(f"{name} {way}: our program {ours} is not on it", "restart the node: it attaches it anew")
            continue
        foreign = programs[: programs.index(ours)] if ours in programs else []
        yield from (fail(f"{name} {way}: foreign tcx program {other}", _FOREIGN) for other in foreign)
    if "clsact" in filters and not any(ours in filters for ours in OURS.values()):
        advice = "what ours lets pass goes through it too: look with tc filter show dev"
        yield warn(f"{name}: foreign clsact filters", advice)


def _has_filters(interface: str) -> str:
    """What tc says of the interface's filters."""
    tc = shutil.which("tc", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if tc is None:
        return ""
    said = ""
    for words in (["qdisc", "show"], ["filter", "show"]):
        for way in ((),) if words[0] == "qdisc" else (("ingress",), ("egress",)):
            done = subprocess.run([tc, *words, "dev", interface, *way], capture_output=True, text=True, check=False)
            said += done.stdout
    return said


def _listeners(state: State) -> Iterator[Finding]:
    page = read_json(state.datapath / "page.json")
    port = int(page.get("proxy_port") or 0) if isinstance(page, dict) else 0
    if not port:
        return
    found = is_transparent(port)
    if found is None:
        yield fail(f"nobody listens at 127.0.0.1:{port}: what is steered is refused", "see why Envoy does not run")
    elif not found:
        yield fail(
            f"who listens at 127.0.0.1:{port} is not transparent: it gets no steered connection",
            "another process took Envoy's port, or its configuration lacks transparent: true",
        )
