# SPDX-License-Identifier: Apache-2.0
"""The Death Star: a real HTTP server that lands ships, and explodes when its exhaust port is hit."""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class DeathStar(BaseHTTPRequestHandler):
    """Answers every request; what may reach it is for policy to say."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        self._answer(200, b"Ship landed\n")

    def do_GET(self) -> None:
        self._answer(200, b'{"name":"Death Star","hyperdrive":"4"}\n')

    def do_PUT(self) -> None:
        self._answer(200, b"Panic: deathstar exploded\n")

    def _answer(self, status: int, body: bytes) -> None:
        size = int(self.headers.get("Content-Length", "0"))
        if size:
            self.rfile.read(size)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: Envoy's access log has it all."""


def main() -> None:
    """Serve on ADDRESS PORT until killed; prints a line once it listens."""
    address, port = sys.argv[1], int(sys.argv[2])
    with ThreadingHTTPServer((address, port), DeathStar) as server:
        print("ready", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
