"""A receiver of reports on loopback."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass
class Receiver:
    """A server that keeps what it gets: `/hook` takes it, `/moved` redirects, `/broken` refuses, `/slow` drips."""

    port: int = 0
    reports: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def url(self, path: str = "/hook") -> str:
        """Return an address of the server."""
        return f"http://127.0.0.1:{self.port}{path}"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Return a running receiver."""
    found = Receiver()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/slow":
                for letter in b"HTTP/1.1 200 OK\r\n" * 2:
                    try:
                        self.wfile.write(bytes([letter]))
                    except OSError:
                        return
                    time.sleep(0.1)
                return
            if self.path == "/hook":
                found.reports.append(content)
                found.headers.append(dict(self.headers))
            self.send_response({"/hook": 204, "/moved": 307, "/broken": 500}[self.path])
            self.send_header("Location", "/hook")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()
