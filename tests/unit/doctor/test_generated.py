# SPDX-License-Identifier: Apache-2.0
"""Whatever the generator can be asked for, doctor has nothing against it; what people write by hand is understood."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from ext_authz.doctor.config.finding import Finding, Severity
from ext_authz.doctor.config.judge import judge
from ext_authz.xds.bootstrap import render
from ext_authz.xds.setup import Direction, Door, Evidence, Mode, Setup, SetupError, Steering, Target, Tls, UpstreamHttp

_FILES = Tls(Path("/etc/tls.crt"), Path("/etc/tls.key"), Path("/etc/ca.crt"))
_EXTRAS: list[dict[str, Any]] = [
    {},
    {"second_point": True},
    {"original_dst": True, "sni": True},
    {"proxy_protocol_from": ("10.0.0.0/8",)},
    {"listener_filter": True, "proxy_protocol_from": ("10.0.0.0/8",), "sni": True},
    {"listener_filter": True, "trusted_hops": 2},
    {"trusted_hops": 1, "access_log": "/dev/stdout", "metadata": "all"},
    {"tls": _FILES, "trust_domain": "example.org", "require": (Evidence.CERTIFICATE, Evidence.ADDRESS)},
    {"tls": _FILES, "trust_domain": "example.org", "address_ignored": True, "listener_filter": True},
    {"tls": Tls(_FILES.certificate, _FILES.key)},
    {"upstream_http": UpstreamHttp.SAME, "direction": Direction.BOTH, "destination": "default/web:80", "body": "no"},
    {"steering": Steering(Path("/run/idmesh/bpf")), "upstreams": (), "listen": Target("127.0.0.1", 15001)},
    {"flow_ring_bytes": 65536, "admin": Target(path="/run/admin.sock")},
]


def _setups() -> list[Setup]:
    found = []
    for door, mode, extra in itertools.product((Door.MODULE, Door.EXT_AUTHZ, Door.EXT_PROC), Mode, _EXTRAS):
        fields: dict[str, Any] = {
            "listen": Target("0.0.0.0", 8080),
            "upstreams": (Target("10.0.0.1", 80),),
            "state": Path("/run/idmesh"),
            "module": Path("/usr/lib/idmesh/1.2.3/libidmesh_envoy.so"),
            "authz": (Target(path="/run/idmesh/authz.sock.0"),),
        }
        try:
            found.append(Setup(door=door, mode=mode, **{**fields, **extra}))
        except SetupError:  # the generator refuses it
            continue
    return found


def test_doctor_has_nothing_against_what_the_generator_makes() -> None:
    setups = _setups()
    assert len(setups) > 40
    for setup in setups:
        assert judge(render(setup).encode()) == [], setup


# ---- by hand ----

_BY_HAND = """
static_resources:
  listeners:
  - name: web
    address: {socket_address: {address: 0.0.0.0, port_value: 10000}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: web
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {prefix: /health}
                route: {cluster: web}
                typed_per_filter_config:
                  envoy.filters.http.ext_authz:
                    "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute
                    disabled: true
              - match: {prefix: /}
                route: {cluster: web}
          http_filters:
          - name: envoy.filters.http.lua
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
          - name: envoy.filters.http.ext_authz
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz
              transport_api_version: V3
              failure_mode_allow: true
              grpc_service:
                envoy_grpc: {cluster_name: policy}
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: web
    load_assignment: {cluster_name: web}
  - name: policy
    load_assignment: {cluster_name: policy}
admin:
  address: {socket_address: {address: 0.0.0.0, port_value: 9901}}
"""


@pytest.fixture(scope="module")
def by_hand() -> list[Finding]:
    return judge(_BY_HAND.encode())


def test_a_configuration_from_a_tutorial_is_judged(by_hand: list[Finding]) -> None:
    assert {item.check for item in by_hand if item.severity == Severity.ERROR} == {
        "admin",
        "cluster",
        "failure-mode-allow",
        "path-normalization",
        "route-disabled",
    }
    assert {item.check for item in by_hand if item.severity == Severity.WARNING} == {
        "ext-authz",
        "forwarded-for",
        "metadata-writer",
        "rewriter-before-door",
        "status-on-error",
        "timeout",
    }


def test_paths_are_spelt_as_the_file_spells_them(by_hand: list[Finding]) -> None:
    (disabled,) = (item for item in by_hand if item.check == "route-disabled")
    manager = "static_resources.listeners[0].filter_chains[0].filters[0].typed_config"
    route = f"{manager}.route_config.virtual_hosts[0].routes[0]"
    assert disabled.path == f'{route}.typed_per_filter_config["envoy.filters.http.ext_authz"].disabled'
    assert _BY_HAND.splitlines()[disabled.line - 1].strip() == "disabled: true"


def test_errors_come_first_and_each_in_the_files_order(by_hand: list[Finding]) -> None:
    places = [(item.severity != Severity.ERROR, item.line) for item in by_hand]
    assert places == sorted(places)
