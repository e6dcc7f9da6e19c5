# SPDX-License-Identifier: Apache-2.0
"""How the gRPC doors ask: the words of their initial metadata, what they send, and the cluster they ask."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections import Counter
from collections.abc import Iterator

from ext_authz.doctor.config.checks_writers import REPORT
from ext_authz.doctor.config.finding import Finding, check, error, warning
from ext_authz.doctor.config.node import Node
from ext_authz.doctor.config.view import NAME, Door, Kind, View

_GRPC = (Kind.EXT_AUTHZ, Kind.EXT_PROC)
# Key of gRPC initial metadata to what its value must look like, and how people are told so.
WORDS = {
    "idmesh-direction": (r"ingress|egress|both", "ingress, egress or both"),
    "idmesh-destination": (r"\S+", "ADDRESS[:PORT] or NAMESPACE/NAME[:PORT]"),
    "idmesh-port": (r"\d{1,5}", "a port"),
    "idmesh-require": (r"(address|datapath|certificate)(,(address|datapath|certificate))*", "kinds of evidence"),
    "idmesh-next": (r"http", "http"),
    "idmesh-peer": (r"metadata|source-address", "metadata or source-address"),
    "idmesh-address": (r"evidence|ignored", "evidence or ignored"),
    "idmesh-trust-domain": (r"[a-z0-9._-]{1,255}", "a SPIFFE trust domain"),
    "idmesh-certificate": (re.escape(REPORT), REPORT),
}


@check
def words(view: View) -> Iterator[Finding]:
    for door in view.doors_of(*_GRPC):
        items = door.service.get("initial_metadata").items
        for key, count in Counter(item.get("key").text for item in items).items():
            if count > 1 and key in WORDS:
                what = f"{key} is given {count} times"
                yield error("initial-metadata", items[0], what, "the service denies every request", "give it once")
        for item in items:
            yield from _word(item)


def _word(item: Node) -> Iterator[Finding]:
    key, value = item.get("key").text, item.get("value")
    if key in WORDS:
        pattern, wanted = WORDS[key]
        if not re.fullmatch(pattern, value.text) or (key == "idmesh-port" and int(value.text) > 65535):
            what = f"{key} is {value.value!r}, and must be {wanted}"
            yield error("initial-metadata", value, what, "the service denies every request", f"say {wanted}")
        return
    near = difflib.get_close_matches(key.lower().replace("_", "-"), WORDS, 1, 0.7)
    if near or NAME in key.lower():
        what = f"initial metadata {key} means nothing to idmesh"
        why = "what it was to say is not said: the service judges by its default"
        remedy = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(WORDS)}"
        yield error("initial-metadata", item.get("key"), what, why, remedy)


# ---- what is sent ----


@check
def ext_authz_fields(view: View) -> Iterator[Finding]:
    for door in view.doors_of(Kind.EXT_AUTHZ):
        config = door.config
        if config.get("http_service"):
            what = "http_service: idmesh speaks gRPC only"
            yield error("ext-authz", config.get("http_service"), what, "every request is denied", "use grpc_service")
        if config.get("with_request_body"):
            what, why = (
                "with_request_body buffers bodies",
                "no policy reads them; WebSocket and streams stop, 413 above the limit",
            )
            yield warning("ext-authz", config.get("with_request_body"), what, why, "leave it out")
        if config.get("clear_route_cache").on:
            what = "clear_route_cache: the route is chosen again after the judgement"
            yield warning("ext-authz", config.get("clear_route_cache"), what, _ELSEWHERE, "leave it out")
        if "filters.http." in door.filter.type and not config.get("encode_raw_headers").on:
            what = "encode_raw_headers is not true"
            why = (
                "repeated headers arrive joined and bytes that are no UTF-8 changed: rules on them judge something else"
            )
            yield warning("ext-authz", config.get("encode_raw_headers"), what, why, "set encode_raw_headers: true")
        yield from _hidden(config, "allowed_headers", "disallowed_headers")
        yield from _certificate(door)


_ELSEWHERE = "a header that was changed may send the request elsewhere than where it was judged to go"


def _hidden(config: Node, *names: str) -> Iterator[Finding]:
    for name in names:
        if config.get(name):
            what = f"{name} hides headers from the service"
            why = "a rule on a hidden header never matches: an allow with it denies, a deny with it lets pass"
            yield warning("hidden-headers", config.get(name), what, why, "leave it out")


def _certificate(door: Door) -> Iterator[Finding]:
    """The certificate comes as a word of its own, which Envoy fills in for each call."""
    if door.word("idmesh-trust-domain") and "idmesh-certificate" not in door.words:
        what = "idmesh-trust-domain is set, and no idmesh-certificate tells the certificate"
        remedy = f"add initial metadata idmesh-certificate: {REPORT}"
        yield error(
            "certificate", door.service.get("initial_metadata"), what, "it is never shown to the service", remedy
        )
    if "certificate" in door.word("idmesh-require") and not door.word("idmesh-trust-domain"):
        what = "idmesh-require wants a certificate, and no idmesh-trust-domain says whose"
        why = "no certificate counts: every request is denied (172)"
        yield error("certificate", door.words["idmesh-require"], what, why, "add idmesh-trust-domain")


@check
def ext_proc_fields(view: View) -> Iterator[Finding]:
    for door in view.doors_of(Kind.EXT_PROC):
        yield from _modes(door)
        yield from _mutations(door.config.get("mutation_rules"))
        yield from _hidden(door.config, "forward_rules")
        yield from _certificate(door)
        yield from _routing(door.config)


def _modes(door: Door) -> Iterator[Finding]:
    config = door.config
    mode = config.get("processing_mode")
    if mode.get("request_header_mode").value in ("SKIP", 2):
        what = "processing_mode.request_header_mode is SKIP"
        why = "no request is judged: the backend serves it, and the answer alone is withheld"
        yield error("ext-proc-mode", mode.get("request_header_mode"), what, why, "set it to SEND")
    for name in ("request_body_mode", "response_body_mode"):
        yield from _body_mode(mode.get(name), name)
    if (
        "response.code_details" not in config.get("response_attributes").texts
        and not config.get("observability_mode").on
    ):
        what = "response_attributes lacks response.code_details"
        why = "what Envoy answers without asking (a redirect to the plain path) then looks like an answer nobody judged"
        yield warning("ext-proc-mode", config.get("response_attributes"), what, why, "add response.code_details to it")
    if config.get("observability_mode").on:
        yield _observes(config)
    if config.get("disable_immediate_response").on:
        what = "disable_immediate_response: Envoy drops denials"
        why = "the service then has to end the stream with an error: clients read a failure, not a denial"
        yield error("ext-proc-mode", config.get("disable_immediate_response"), what, why, "remove it")
    if config.get("allow_mode_override").on:
        what = "allow_mode_override lets answers of the service switch parts of itself off"
        why = "idmesh sends no such answer; whoever could answer in its place need not be given it"
        yield warning("ext-proc-mode", config.get("allow_mode_override"), what, why, "leave it out")
    if config.get("send_body_without_waiting_for_header_response").on:
        found = config.get("send_body_without_waiting_for_header_response")
        what = "bodies are sent on before the answer to the headers"
        yield warning("ext-proc-mode", found, what, "no policy reads them", "leave it out")


def _body_mode(mode: Node, name: str) -> Iterator[Finding]:
    if mode.value in (None, "NONE", 0):
        return
    what = f"processing_mode.{name} is {mode.value}"
    if mode.value in ("FULL_DUPLEX_STREAMED", "GRPC", 4, 5):
        why = "Envoy wants every byte back from the service, which passes none on: every request is denied"
        yield error("ext-proc-mode", mode, what, why, "set it to NONE")
    else:
        yield warning(
            "ext-proc-mode", mode, what, "no policy reads bodies: it costs time and memory only", "set it to NONE"
        )


def _observes(config: Node) -> Finding:
    found = config.get("observability_mode")
    what, why = "observability_mode: the service looks on and nothing is denied", "Envoy does not wait for its answers"
    if config.get("failure_mode_allow").on:
        return warning("ext-proc-observes", found, what, why, "right for a trial; to enforce, set both to false")
    remedy = "remove it to enforce; to look on only, set failure_mode_allow: true as well"
    return error("ext-proc-observes", found, what, why, remedy)


def _mutations(rules: Node) -> Iterator[Finding]:
    if rules.get("disallow_all").on:
        what = "mutation_rules.disallow_all: header changes that rules ask for are not made"
        why = "mismatch REPLACE and DELETE rely on them: the backend reads what the client sent"
        yield error("ext-proc-mutations", rules.get("disallow_all"), what, why, "remove it")
    if rules.get("allow_all_routing").on:
        what = "mutation_rules.allow_all_routing lets the service change path and host"
        yield warning("ext-proc-mutations", rules.get("allow_all_routing"), what, _ELSEWHERE, "remove it")
    if rules.get("disallow_expression"):
        what = "mutation_rules.disallow_expression forbids some header changes"
        why = "a change that a rule asks for and Envoy drops leaves what the client sent"
        remedy = "remove it, or set disallow_is_error"
        yield warning("ext-proc-mutations", rules.get("disallow_expression"), what, why, remedy)


def _routing(config: Node) -> Iterator[Finding]:
    action = config.get("route_cache_action")
    if action.value in ("CLEAR", 1):
        what = "route_cache_action is CLEAR: the route is chosen again after the judgement"
        yield warning("ext-proc-mutations", action, what, _ELSEWHERE, "set route_cache_action: RETAIN")


# ---- the cluster ----


@check
def cluster(view: View) -> Iterator[Finding]:
    for door in view.doors_of(*_GRPC):
        name = door.service.get("envoy_grpc", "cluster_name")
        if not name.text or not view.clusters:
            continue
        found = view.clusters.get(name.text)
        if found:
            yield from _cluster(found)
        elif not view.root.get("dynamic_resources", "cds_config"):
            what = f"there is no cluster {name.text}"
            yield error("cluster", name, what, "Envoy refuses the configuration", "add the cluster of the service")


def _cluster(node: Node) -> Iterator[Finding]:
    if not any(name in ("http2_protocol_options", "http2ProtocolOptions") for name, _ in node.walk()):
        what = "the service's cluster does not speak HTTP/2"
        remedy = "add HttpProtocolOptions with explicit_http_config.http2_protocol_options"
        yield error("cluster", node, what, "gRPC needs it: every request is denied", remedy)
    if node.get("transport_socket"):
        return
    for name, address in node.walk():
        if name == "address" and address.text and not loopback(address.text):
            what = f"the service is asked at {address.text} in plain text"
            why = "whoever is on the way reads requests and answers in the service's place"
            yield warning("cluster", address, what, why, "ask over a unix socket, or add a transport_socket with TLS")


def loopback(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        return text == "localhost"
