"""/metrics, /healthz and /readyz, in a thread of the monitor; the socket was bound by the master."""

from __future__ import annotations

import http.server
import socket
import socketserver
import threading
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

_PATIENCE = 5.0  # seconds a client may take for its request
_CLIENTS = 16  # how many are served at once; others wait in the backlog


class Pages(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """The server. `is_healthy` and `is_ready` answer from memory."""

    daemon_threads = True

    def __init__(
        self,
        listening: socket.socket,
        registry: CollectorRegistry,
        is_healthy: Callable[[], bool],
        is_ready: Callable[[], bool],
    ) -> None:
        super().__init__(listening.getsockname()[:2], _Page, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.registry = registry
        self.is_healthy = is_healthy
        self.is_ready = is_ready
        self._places = threading.BoundedSemaphore(_CLIENTS)

    def serve_in_thread(self) -> None:
        threading.Thread(target=self.serve_forever, name="pages", daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._places.acquire()
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up or dawdles is no event."""


class _Page(http.server.BaseHTTPRequestHandler):
    server: Pages
    timeout = _PATIENCE
    server_version = "pgworker"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._answer(HTTPStatus.OK, encode(self.server.registry), content_type)
        elif path == "/healthz":
            self._say("alive" if self.server.is_healthy() else "the monitor is stuck", self.server.is_healthy())
        elif path == "/readyz":
            self._say(
                "ready" if self.server.is_ready() else "no worker is ready, or no database", self.server.is_ready()
            )
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"pages: /metrics /healthz /readyz\n", "text/plain; charset=utf-8")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name is the standard library's
        """Requests are not logged."""

    def _say(self, sentence: str, good: bool) -> None:
        status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
        self._answer(status, sentence.encode() + b"\n", "text/plain; charset=utf-8")

    def _answer(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
