# SPDX-License-Identifier: Apache-2.0
"""Words for numbers. Source: reference policy-semantics section 9 (Hubble's numbers)."""

DROP_REASONS = {
    133: "no policy entry matched",
    165: "no such endpoint",
    171: "invalid identity",
    172: "unknown sender",
    180: "redirect that cannot be enforced",
    181: "denied by policy",
    189: "authentication required",
    203: "node not ready",
}

PROTOCOLS = {
    1: "ICMP", 2: "IGMP", 4: "IPIP", 6: "TCP", 17: "UDP", 41: "IPV6", 47: "GRE", 50: "ESP", 51: "AH", 58: "ICMPv6",
    112: "VRRP", 132: "SCTP",
}  # fmt: skip
ICMP = (1, 58)


def protocol_name(number: int) -> str:
    """TCP, or "protocol 47"."""
    return PROTOCOLS.get(number, f"protocol {number}")
