# SPDX-License-Identifier: Apache-2.0
"""
Where a door stands among the other filters.

What it judges must be what the backend reads: whoever rewrites requests stands in front of it. And nobody may answer
in its place: whoever answers from what others were allowed stands behind it.
"""

from __future__ import annotations

from collections.abc import Iterator

from ext_authz.doctor.config.finding import Finding, check, error, warning
from ext_authz.doctor.config.view import Chain, Filter, HttpChain, View

# Filters that rewrite what policies match.
_REWRITERS = ("grpc_json_transcoder", "grpc_json_reverse_transcoder", "aws_lambda")
# Filters with somebody else's code or service: they may rewrite anything.
_CODE = ("http.lua", "http.wasm", "http.golang", "http.ext_proc", "http.ext_authz", "http.composite", "dynamic_modules")
_SCRIPTS = ("http.lua", "http.wasm", "http.golang")
_ANSWERERS = ("http.cache", "http.file_server", "http.custom_response")
_DOORS = ("ext_authz", "ext_proc", "dynamic_modules")
_TERMINAL = ("tcp_proxy.v3.TcpProxy", "HttpConnectionManager", "redis_proxy", "mongo_proxy", "thrift_proxy")


@check
def door_missing(view: View) -> Iterator[Finding]:
    why = "whatever comes in here goes on, and no policy is asked"
    remedy = "add a door of idmesh; `idmesh envoy` prints a complete configuration to take it from"
    if not any(True for _ in view.doors):
        if view.listeners:
            yield error("door-missing", view.root, "no filter here asks idmesh", why, remedy)
        return
    yield from _chains_without(view, remedy)
    for manager in view.managers:
        for upgrade in manager.upgrades:
            if manager.chain.doors and not upgrade.doors:
                what = "upgraded requests take filters of their own, and no door is among them"
                yield error("door-missing", upgrade.node, what, why, "leave `filters` out, or put the door there too")


def _chains_without(view: View, remedy: str) -> Iterator[Finding]:
    """A chain may well need no door, but not if it leads where others are judged."""
    judged = {name for chain in view.chains if chain.all_doors for name in _clusters(chain)}
    for chain in view.chains:
        if chain.all_doors:
            continue
        around = sorted(judged & _clusters(chain))
        if around:
            what = f"this filter chain has no door, and leads to {around[0]}, before which another has one"
            yield error("door-missing", chain.node, what, "who takes this way is judged by nobody", remedy)
        else:
            what = "this filter chain has no door"
            yield warning("door-missing", chain.node, what, "what comes in here is judged by nobody", remedy)


def _clusters(chain: Chain) -> set[str]:
    """Where it may send to, as far as its own routes and proxies say."""
    return {
        node.text or node.get("name").text
        for name, node in chain.node.walk()
        if name == "cluster" and (node.text or node.get("name").text)
    } | {
        item.get("name").text
        for name, node in chain.node.walk()
        if name in ("weighted_clusters", "weightedClusters")
        for item in node.get("clusters").items
    }


@check
def door_behind_router(view: View) -> Iterator[Finding]:
    for chain in view.http_chains:
        for door in chain.doors:
            for other in chain.before(door):
                if other.is_("router.v3.Router", "upstream_codec"):
                    what = f"the door stands behind {other.label}"
                    why = "the router sends requests on: filters behind it never see them (Envoy refuses it, too)"
                    yield error("door-behind-router", door.filter.entry, what, why, "put the door in front of it")


@check
def door_behind_proxy(view: View) -> Iterator[Finding]:
    for chain in view.chains:
        for door in chain.doors:
            for other in chain.filters[: chain.filters.index(door.filter)]:
                if other.is_(*_TERMINAL):
                    what = f"the door stands behind {other.label}"
                    why = "that filter connects upstream as soon as it may"
                    yield error("door-behind-router", door.filter.entry, what, why, "put the door in front of it")


@check
def rewriter_behind_door(view: View) -> Iterator[Finding]:
    for chain in view.http_chains:
        for door in chain.doors:
            for other in chain.behind(door):
                yield from _behind(chain, other)


def _behind(chain: HttpChain, other: Filter) -> Iterator[Finding]:
    if other in [door.filter for door in chain.doors]:
        return
    remedy = "put it in front of the door, so that policies judge what the backend reads"
    why = "the backend then reads another path, host or header than the one that policies allowed"
    if other.is_(*_REWRITERS) or _mutates(other):
        what = f"{other.label} rewrites requests behind the door"
        yield error("rewriter-behind-door", other.entry, what, why, remedy)
    elif other.is_(*_CODE, "header_mutation"):
        what = f"{other.label} may rewrite requests behind the door"
        yield warning("rewriter-behind-door", other.entry, what, why, f"{remedy}, or make sure that it does not")


def _mutates(other: Filter) -> bool:
    """True if it changes requests, as far as its own configuration says; responses are no concern of policies."""
    return other.is_("header_mutation") and bool(other.config.get("mutations", "request_mutations").items)


@check
def rewriter_before_door(view: View) -> Iterator[Finding]:
    for chain in view.http_chains:
        for door in chain.doors:
            for other in chain.before(door):
                if other.is_("header_mutation", *_SCRIPTS):
                    what = f"{other.label} may change requests before policies see them"
                    why = "a rule on such a header no longer judges what the client sent"
                    remedy = "right if policies mean the changed request; never set from here a header that rules trust"
                    yield warning("rewriter-before-door", other.entry, what, why, remedy)


@check
def answers_before_door(view: View) -> Iterator[Finding]:
    for chain in view.http_chains:
        for door in chain.doors:
            for other in chain.before(door):
                if other.is_(*_ANSWERERS):
                    what = f"{other.label} answers requests before the door judges them"
                    why = "who is denied reads what was cached for somebody who is allowed"
                    yield error("answers-before-door", other.entry, what, why, "put it behind the door")


@check
def matched_door(view: View) -> Iterator[Finding]:
    """A door inside ExtensionWithMatcher judges only what the matcher leaves to it."""
    for item in view.filters:
        inner = item.config.get("extension_config", "typed_config").type
        if item.type.endswith("ExtensionWithMatcher") and any(kind in inner for kind in _DOORS):
            what = f"{item.label} applies {inner.rpartition('.')[2]} only to what its matcher lets through"
            remedy = "if this is a door of idmesh, name it without a matcher"
            yield error("door-disabled", item.entry, what, "the rest is judged by nobody", remedy)


@check
def network_order(view: View) -> Iterator[Finding]:
    """A network door's chain must end in a proxy."""
    for chain in view.chains:
        if chain.doors and not any(item.is_("_proxy", "HttpConnectionManager") for item in chain.filters):
            what = "nothing behind the door proxies the connection"
            yield warning("door-alone", chain.node, what, "allowed connections lead nowhere", "add tcp_proxy behind it")
