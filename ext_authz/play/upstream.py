# SPDX-License-Identifier: Apache-2.0
"""What stands behind the door: servers that show whether, and with which headers, traffic got through."""

from __future__ import annotations

import json
import socketserver
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ext_authz.play.netns import Namespace

# What tells an answer of the upstream from one of the proxy.
MARK = "x-idmesh-upstream"
GREETING = b"pong\n"


class _Echo(BaseHTTPRequestHandler):
    """Answers every request with the header lines it came with."""

    protocol_version = "HTTP/1.1"
    # An answer is one write: in pieces it would wait for the other side's delayed acknowledgement.
    wbufsize = -1

    def handle_one_request(self) -> None:
        """Any method is answered alike, known or not."""
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline:
            self.close_connection = True
            return
        if self.parse_request():
            self._answer()

    def _answer(self) -> None:
        body = json.dumps(self.headers.items()).encode()
        self.send_response(200)
        self.send_header(MARK, "1")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing to say: the proxy logs."""


class _Greeter(socketserver.BaseRequestHandler):
    """Greets once the client has spoken."""

    def handle(self) -> None:
        if self.request.recv(64):
            self.request.sendall(GREETING)


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True


class _TcpServer(socketserver.ThreadingTCPServer):
    daemon_threads = True


class Upstream:
    """One server on the namespace's 127.0.0.1, at a port the system chose."""

    def __init__(self, namespace: Namespace, http: bool) -> None:
        with namespace.inside():
            self._server: socketserver.TCPServer = (
                _HttpServer(("127.0.0.1", 0), _Echo) if http else _TcpServer(("127.0.0.1", 0), _Greeter)
            )
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
