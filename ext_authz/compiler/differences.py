# SPDX-License-Identifier: Apache-2.0
"""
Where we differ from Cilium on purpose: one table, for people and for the reference.

Cilium's behaviour in these places looks accidental. The rule for all of them: accepted where Cilium accepts; an allow
matches no more, and a deny no less, than the text says. Refused is only what has no one meaning, or what the proxy
would refuse.

Source: shared interface; reference policy-semantics, items marked (low).
"""

from __future__ import annotations

from typing import NamedTuple


class Difference(NamedTuple):
    """written: what stands in the policy. cilium, here: what it comes to."""

    written: str
    cilium: str
    here: str


DELIBERATE: tuple[Difference, ...] = (
    Difference(
        "fromGroups: [], toGroups: [] or toServices: [], with toPorts",
        "the field counts as absent: any peer",
        "an allow selects nothing; a deny holds for any peer, as in Cilium",
    ),
    Difference(
        "toFQDNs: [] with toPorts",
        "the field counts as absent: any peer",
        "the same, for the decision table says so",
    ),
    Difference(
        "toServices that matches no service, with toPorts, in egress",
        "the ports are open to any peer",
        "nothing is allowed",
    ),
    Difference(
        "toServices in egressDeny without ports",
        "services are not resolved: nothing is denied",
        "the services' pods and backends are denied",
    ),
    Difference(
        "toServices in egressDeny with ports",
        "the ports are denied for every peer",
        "the same: a deny matches no less than its text",
    ),
    Difference(
        "fromGroups or toGroups, not empty",
        "the operator asks the cloud for the addresses",
        "selects nothing, with a warning: there is no cloud to ask",
    ),
    Difference(
        "ICMPv4 type 0 (EchoReply) in an allow",
        "every ICMPv4 type",
        "type 0 only; in a deny every ICMPv4 type, as in Cilium",
    ),
    Difference(
        'port "0" with endPort in an allow',
        "all ports of the protocol",
        "ports 1 up to endPort; in a deny all ports, as in Cilium",
    ),
    Difference(
        "a port name with endPort",
        "the range from the resolved port to endPort",
        "the same; where the resolved port is above endPort, that port alone",
    ),
    Difference(
        'port text "010"',
        "eight: the base is read from the text",
        'the same; in "080" 8 is no octal digit, so it is refused as in Cilium',
    ),
    Difference(
        "rules of a NetworkPolicy for a type that policyTypes does not name",
        "enforced, with isolation; the Kubernetes text ignores them",
        "the same: ignoring them would leave the direction open",
    ),
    Difference(
        "cidrGroupSelector: {}",
        "every peer, pods included",
        "addresses of any CiliumCIDRGroup",
    ),
    Difference(
        "in egress, a port name that endpoints of one identity give to different ports",
        "counts for none of them",
        "counts for each of these ports",
    ),
    Difference(
        "toFQDNs under policy_cidr_match_mode=nodes",
        "a node's address that was learned for the name is reached",
        "nodes are not reached by names",
    ),
    Difference(
        "NetworkPolicy namespaceSelector with only NotIn or DoesNotExist",
        "without policy-default-local-cluster also nodes and outside addresses",
        "only what lives in a namespace",
    ),
    Difference(
        "serverNames of one rule and L7 rules of another for the same peer and port, without terminatingTLS",
        "an error or not, depending on the order in which rules are merged",
        "always an error",
    ),
    Difference(
        "listeners of equal priority for the same peer and port",
        "an error unless a listener of another priority is merged first",
        "always an error",
    ),
    Difference(
        "0.0.0.0/0 while IPv6 is switched off (and the reverse)",
        "there is no IPv6 traffic to match",
        "addresses of the other family stay outside it",
    ),
    Difference(
        "two workloads with one address",
        "the later one has the address",
        "the address counts as unmanaged, with a warning, until only one has it",
    ),
    Difference(
        "one peer spelt in two ways: matchLabels and In with one value, values in another order, 10.1.0.0/8 and "
        "10.0.0.0/8, names in other case; port 443 and a range 443 to 443",
        "two selectors or ports: their rules are not merged and cannot conflict",
        "one: their rules are merged, and refused where they conflict",
    ),
    Difference(
        "null as the value of a label in a selector, or as an element of a list",
        "the API server drops the label, which widens the selector",
        "refused; a field that is null counts as absent, as there, with a warning",
    ),
    Difference(
        "prefixes of IPv4 inside IPv6 (::ffff:0:0/96 and longer)",
        "accepted; no packet has such an address",
        "refused: the IPv4 prefix is meant",
    ),
    Difference(
        "an ICMP type below 0",
        "accepted: every type",
        "refused; a type above 255 never matches, as in Cilium, with a warning",
    ),
    Difference(
        "k8sService and k8sServiceSelector in one element of toServices",
        "the selector counts",
        "refused: nobody can say which is meant",
    ),
    Difference(
        "a host that is no regular expression, a header name that is none, a Secret without name in a TLS context, and "
        "an endPort below port beside HTTP rules, server names, TLS or a listener",
        "accepted by the agent, refused by the proxy or when the policy is computed",
        "refused",
    ),
    Difference(
        "a named port with endPort beside dns rules",
        "accepted; the DNS proxy knows no ranges",
        "refused, as numbered ranges are",
    ),
    Difference(
        "keys with a source in cidrGroupSelector",
        "looked up as they are; groups have labels of source cidrgroup only",
        "refused: write the key without source",
    ),
)
