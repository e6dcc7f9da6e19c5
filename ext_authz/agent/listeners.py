# SPDX-License-Identifier: Apache-2.0
"""
Where a bootstrap listens, and whether somebody listens there already.

Envoy's listeners share their port with whoever else shares it. Two Envoys of two nodes at one port would each judge
a part of the connections, each by its own policies, and nobody would notice.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import Any

from ext_authz.agent.admin import field_of


def taken_listeners(config: Any) -> list[str]:
    """The addresses of its TCP listeners at which another process listens."""
    return [_text(host, port) for host, port in _addresses(config) if _taken(host, port)]


def _text(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _addresses(config: Any) -> list[tuple[str, int]]:
    listeners = field_of(field_of(config, "static_resources", "staticResources"), "listeners")
    found = []
    for listener in listeners if isinstance(listeners, list) else ():
        address = field_of(field_of(listener, "address"), "socket_address", "socketAddress")
        host, port = field_of(address, "address"), field_of(address, "port_value", "portValue")
        if field_of(address, "protocol") in (None, "TCP") and isinstance(port, int) and 0 < port < 65536:
            found.append((str(host), port))
    return found


def _taken(host: str, port: int) -> bool:
    """Whoever listens refuses a second one that does not offer to share. Other errors are Envoy's to report."""
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen(1)
    except ValueError:
        return False
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False
