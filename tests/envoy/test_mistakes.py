# SPDX-License-Identifier: Apache-2.0
"""What doctor calls an error is one: an example denies, with the mistake planted it lets the same client in."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from envoy_harness import CLIENT, OTHER, SERVER, Envoy, ask
from envoy_places import Place

from ext_authz.doctor.config.finding import Severity
from ext_authz.doctor.config.judge import judge
from ext_authz.envoy_binary import EnvoyBinary

Tree = dict[str, Any]
_TYPE = "type.googleapis.com/envoy.extensions.filters"


def manager(tree: Tree) -> Any:
    return tree["staticResources"]["listeners"][0]["filterChains"][0]["filters"][-1]["typedConfig"]


def filters(tree: Tree) -> Any:
    return manager(tree)["httpFilters"]


def http(kind: str, **fields: Any) -> Tree:
    return {"name": kind.partition(".")[0], "typedConfig": {"@type": f"{_TYPE}.http.{kind}", **fields}}


# ---- mistakes ----


def allows_without_service(tree: Tree) -> None:
    filters(tree)[0]["typedConfig"]["failureModeAllow"] = True
    no_service(tree)


def no_service(tree: Tree) -> None:
    for group in tree["staticResources"]["clusters"][1]["loadAssignment"]["endpoints"]:
        for endpoint in group["lbEndpoints"]:
            endpoint["endpoint"]["address"]["pipe"]["path"] += ".gone"


def disabled_on_the_route(tree: Tree) -> None:
    name = filters(tree)[0]["name"]
    override = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
    manager(tree)["routeConfig"]["virtualHosts"][0]["typedPerFilterConfig"] = {name: override}


def enabled_for_nobody(tree: Tree) -> None:
    filters(tree)[0]["typedConfig"]["filterEnabled"] = {"defaultValue": {"numerator": 0}}


def header_becomes_peer(tree: Tree) -> None:
    """What the listener filter says of the connection, from headers."""
    places = {"x-peer": "address", "x-local": "local"}
    rules = [
        {"header": header, "onHeaderPresent": {"metadataNamespace": "idmesh", "key": key}}
        for header, key in places.items()
    ]
    filters(tree).insert(0, http("header_to_metadata.v3.Config", requestRules=rules))


def believes_forwarded_for(tree: Tree) -> None:
    manager(tree)["useRemoteAddress"] = False


def believes_proxy_headers(tree: Tree) -> None:
    config = {"@type": f"{_TYPE}.listener.proxy_protocol.v3.ProxyProtocol"}
    item = {"name": "envoy.filters.listener.proxy_protocol", "typedConfig": config}
    tree["staticResources"]["listeners"][0]["listenerFilters"] = [item]


def everybody_is_a_trusted_proxy(tree: Tree) -> None:
    own = tree["staticResources"]["listeners"][0]["listenerFilters"][-1]["typedConfig"]
    own["filterConfig"]["value"]["proxy_protocol_from"] = ["0.0.0.0/0"]


def header_rewritten_behind(tree: Tree) -> None:
    header = {"key": "x-role", "value": "%REQ(x-wish)%"}
    change = {"append": {"header": header, "appendAction": "OVERWRITE_IF_EXISTS_OR_ADD"}}
    filters(tree).insert(1, http("header_mutation.v3.HeaderMutation", mutations={"requestMutations": [change]}))


def shows_no_headers(tree: Tree) -> None:
    filters(tree)[0]["typedConfig"]["processingMode"]["requestHeaderMode"] = "SKIP"


def observes(tree: Tree) -> None:
    filters(tree)[0]["typedConfig"]["observabilityMode"] = True


def connects_at_once(tree: Tree) -> None:
    manager(tree)["upstreamConnectMode"] = "IMMEDIATE"


# ---- clients that policy denies ----


def plain(envoy: Envoy, _here: Place) -> bool:
    return ask(OTHER, envoy, "/public/x").status == 200


def claiming(envoy: Envoy, _here: Place) -> bool:
    claims = {"X-Peer": CLIENT, "X-Local": envoy.listen.host, "X-Forwarded-For": CLIENT}
    return ask(OTHER, envoy, "/public/x", headers=claims).status == 200


def proxied(envoy: Envoy, _here: Place) -> bool:
    head = f"PROXY TCP4 {CLIENT} {SERVER} 4000 80\r\nGET /public/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    address = (envoy.listen.host, envoy.listen.port)
    with socket.create_connection(address, 10, source_address=(OTHER, 0)) as connection:
        connection.sendall(head.encode())
        try:
            return connection.recv(4096).startswith(b"HTTP/1.1 200")
        except ConnectionError:
            return False


def wishing(envoy: Envoy, here: Place) -> bool:
    """True if the backend reads a header that no policy saw."""
    ask(CLIENT, envoy, "/public/x", headers={"X-Role": "guest", "X-Wish": "admin"})
    return here.backend.requests[-1].headers["x-role"] == "admin"


def unseen(envoy: Envoy, here: Place) -> bool:
    """True if the backend serves a denied request, whatever the client reads."""
    before = len(here.backend.requests)
    ask(OTHER, envoy, "/public/x")
    return len(here.backend.requests) > before


def listening(envoy: Envoy, _here: Place) -> bool:
    address = (envoy.listen.host, envoy.listen.port)
    with socket.create_connection(address, 10, source_address=(OTHER, 0)) as connection:
        connection.settimeout(1.5)
        try:
            return connection.recv(100).startswith(b"220")
        except OSError:
            return False


MISTAKES: dict[str, tuple[str, Callable[[Tree], None], Callable[[Envoy, Place], bool]]] = {
    "ext_authz allows what it cannot ask": ("ext-authz-http", allows_without_service, plain),
    "ext_proc allows what it cannot ask": ("ext-proc-http", allows_without_service, plain),
    "the module is off for a route": ("module-http", disabled_on_the_route, plain),
    "ext_authz is off for a route": ("ext-authz-http", disabled_on_the_route, plain),
    "ext_authz is enabled for nobody": ("ext-authz-http", enabled_for_nobody, plain),
    "a header becomes ext_authz's peer": ("ext-authz-http", header_becomes_peer, claiming),
    "a header becomes ext_proc's peer": ("ext-proc-http-forwarded-for", header_becomes_peer, claiming),
    "ext_proc believes X-Forwarded-For": ("ext-proc-http", believes_forwarded_for, claiming),
    "ext_authz believes PROXY headers": ("ext-authz-http", believes_proxy_headers, proxied),
    "the module believes PROXY headers": ("module-http-proxy-protocol", everybody_is_a_trusted_proxy, proxied),
    "a header is rewritten behind": ("module-http", header_rewritten_behind, wishing),
    "ext_proc is shown no headers": ("ext-proc-http", shows_no_headers, unseen),
    "ext_proc looks on": ("ext-proc-http", observes, plain),
    "a denied client hears the server": ("ext-authz-tcp", connects_at_once, listening),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_an_error_lets_in_who_is_denied(
    what: str, envoy: EnvoyBinary, tmp_path: Path, places: Callable[[str], Place]
) -> None:
    name, mistake, comes_in = MISTAKES[what]
    here = places("tcp" if "tcp" in name else "http")
    tree = here.placed(name)
    mistake(tree)
    assert Severity.ERROR in {finding.severity for finding in judge(json.dumps(tree).encode())}
    with here.running(name, tmp_path, envoy) as sound:
        assert not comes_in(sound, here)
    with here.running(name, tmp_path, envoy, mistake) as broken:
        assert comes_in(broken, here)
