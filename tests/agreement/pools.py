# SPDX-License-Identifier: Apache-2.0
"""
The values that random scenarios are made of.

Each L7 kind keeps to ports of its own, because what a proxy makes of a foreign protocol is not policy.
"""

from __future__ import annotations

from typing import Any

Raw = dict[str, Any]

SETTINGS: Raw = {
    "cluster_name": "default",
    "ipv4": True,
    "ipv6": False,
    "allow_localhost": "always",
    "policy_enforcement": "default",
    "host_firewall": False,
    "node_selector_labels": False,
    "policy_cidr_match_mode": [],
    "default_local_cluster": True,
    "l7_proxy": True,
    "icmp_rules": True,
}
NAMESPACES = ("default", "default", "default", "other", "prod")
LABELS = {"app": ("a", "a", "b", "c"), "tier": ("x", "y"), "role": ("front", "back")}
NODE_LABELS = ({"role": "worker"}, {"role": "control"}, {"role": "worker", "zone": "z1"})
PORT_NAMES = {
    "http": ((8080, "TCP"), (8181, "TCP"), (80, "TCP")),
    "metrics": ((9090, "TCP"),),
    "dns": ((5353, "UDP"), (53, "UDP")),
}
WIDE_ENTITIES = ("all", "world", "cluster")
CIDRS4 = (
    "0.0.0.0/0",
    "203.0.0.0/16",
    "203.0.113.0/24",
    "203.0.113.128/25",
    "203.0.113.9/32",
    "198.51.100.0/24",
    "10.0.0.0/8",
    "172.18.0.0/16",
)
CIDRS6 = ("::/0", "2001:db8::/32", "2001:db8:1::/48", "2001:db8:1::9/128")
OUTSIDE4 = ("203.0.113.9", "203.0.113.200", "203.0.5.1", "198.51.100.7", "8.8.8.8", "93.184.216.34", "192.0.2.70")
OUTSIDE6 = ("2001:db8:1::9", "2001:db8:2::1", "2606::1")
NAMES = ("api.example.com", "www.example.com", "a.b.example.com", "example.com", "cdn.other.net", "one.test")
NAME_PATTERNS = ("*.example.com", "**.example.com", "*", "a*.example.com", "*.*.example.com", "*.test", "api.exa*.com")
ENTITIES = (
    "all",
    "world",
    "cluster",
    "cluster-mesh",
    "host",
    "remote-node",
    "kube-apiserver",
    "init",
    "health",
    "ingress",
    "unmanaged",
    "none",
)
HTTP_PORTS, DNS_PORTS, SNI_PORTS, KAFKA_PORTS = (80, 8080, 8181), (53, 5353), (443, 8443), (9092,)
PLAIN_PORTS = (22, 80, 443, 53, 1000, 1007, 1008, 1023, 5353, 8080, 8081, 8181, 8443, 9090, 9092, 65535, 1)
RANGES = (
    (1000, 1010),
    (1, 1023),
    (1004, 1023),
    (8000, 9000),
    (80, 443),
    (1, 65535),
    (8080, 8080),
    (8080, 80),
    (9000, 9100),
    (53, 53),
)
METHODS = ("GET", "POST", "GET|POST", "P.*", "PUT")
PATHS = (
    "/",
    "/a",
    "/public/.*",
    "/api/v[0-9]+/.*",
    "/(a|b)/c?",
    "/users/[0-9a-f-]+",
    r".*\.css",
    "/a.*",
    "^/x$",
    r"/q\?k=[a-z]*",
    "/A",
)
HOSTS = ("foo[.]example[.]com", "foo.example.com", r".*\.example\.com(:[0-9]+)?", "server", "FOO")
REQUEST_PATHS = (
    "/",
    "/a",
    "/b",
    "/public/",
    "/public/x/y",
    "/api/v1/z",
    "/api/vx/z",
    "/a/c",
    "/a/",
    "/users/12-ff",
    "/users/zz",
    "/m/s.css",
    "/x",
    "/q?k=ab",
    "/a?x=1",
    "/A",
)
REQUEST_HOSTS = (
    "foo.example.com",
    "fooxexample.com",
    "foo.example.com:8080",
    "server",
    "bar.example.com",
    "foo",
    "FOO",
)
HEADERS = ("X-Token", "X-A: 1", "X-A 1", "X-B: two words", "X-C:abc", "x-b: two words")
# One value and action a name: two rules that change one header differently would make the order of peers matter.
ACTIONS = (
    {"name": "X-Env", "value": "prod", "mismatch": "REPLACE"},
    {"name": "X-Bad", "value": "good", "mismatch": "DELETE"},
    {"name": "X-Log", "value": "v", "mismatch": "LOG"},
)
ADDING = {"name": "X-Tag", "value": "t1", "mismatch": "ADD"}
MATCHES = (
    {"name": "X-Token"},
    {"name": "X-A", "value": "1"},
    {"name": "X-S", "secret": {"namespace": "default", "name": "one"}},
    {"name": "X-S", "secret": {"namespace": "default", "name": "two"}},
    {"name": "X-S", "secret": {"namespace": "default", "name": "two"}, "value": "inline"},
    {"name": "X-S", "secret": {"namespace": "default", "name": "missing"}, "mismatch": "LOG"},
)
REQUEST_HEADERS = (
    ("X-Token", "t"),
    ("X-A", "1"),
    ("X-A", "2"),
    ("X-B", "two words"),
    ("X-C", "abc"),
    ("X-Env", "dev"),
    ("X-Env", "prod"),
    ("X-Bad", "bad"),
    ("X-Bad", "good"),
    ("X-Log", "w"),
    ("X-Tag", "t0"),
    ("X-Tag", "t1"),
    ("X-S", "hidden"),
    ("X-S", "inline"),
    ("x-a", "1"),
)
SERVER_NAMES = ("www.example.com", "*.example.com", "**.example.com", "*", "API.example.com", "a.b.example.com.")
REQUEST_SNI = ("www.example.com", "api.example.com", "a.b.example.com", "host", "", "WWW.example.com", "example.com")
QUERY_NAMES = (*NAMES, "API.example.com.", "x.test", "b.a.example.com", "notexample.com", "api.exaxx.com")
KAFKA_RULES: tuple[Raw, ...] = (
    {"role": "produce", "topic": "foo"},
    {"role": "consume", "topic": "foo"},
    {"role": "consume"},
    {"apiKey": "fetch", "topic": "bar"},
    {"apiKey": "Produce", "clientID": "c1"},
    {"apiVersion": "1", "topic": "foo"},
    {"topic": "bar"},
    {"apiKey": "heartbeat"},
    {},
)
AUTH_MODES = ("required", "required", "disabled", "test-always-fail")
ICMP_FIELDS = (
    {"type": 8},
    {"type": "EchoRequest", "family": "IPv6"},
    {"type": 0},
    {"type": "TimeExceeded", "family": "IPv4"},
    {"type": 135, "family": "IPv6"},
)
ICMP_PROBES = (("IPv4", 8), ("IPv4", 0), ("IPv4", 11), ("IPv6", 128), ("IPv6", 135), ("IPv6", 8))
