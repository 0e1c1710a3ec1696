"""/metrics, /healthz and /readyz, in threads of the monitor; the socket was bound by the master.

/metrics may ask for a token. The other two say nothing but their state, and are asked by kubelets and load balancers.

Slow clients can't keep others out: of the connections that are open at a time, the oldest gives way to the newest. Nor
can many scrapes at once: whoever asks while a page is being made gets the next one, made once for all who wait.
"""

from __future__ import annotations

import contextlib
import errno
import http.server
import math
import re
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from pgworker.monitor.bearer import Bearer
from pgworker.observe.logs import Throttle, fields, logger

_PATIENCE = 5.0  # seconds a client may take for each part of its request, and for taking the answer
_CLIENTS = 16  # connections that are open at a time
_THREADS = 64  # those that are about to end included
_BREATH = 0.5  # seconds to the next try to take a connection when the process or the host has nothing left for it
_SAID_EVERY = 60.0
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_TEXT = "text/plain; charset=utf-8"
_ALLOW: Final[Mapping[str, str]] = {"Allow": "GET, HEAD"}
_CHALLENGE: Final[Mapping[str, str]] = {"WWW-Authenticate": "Bearer"}
_NO_MORE: Final[Mapping[str, str]] = {}
_VERSIONS = re.compile(r"; version=(0\.0\.1|0\.0\.4|1\.0\.0);")  # of both formats
_PAGES = b"""pgworker

/metrics  counters, gauges and histograms, for Prometheus
/healthz  200 while the monitor of this pool goes round: is the pool alive?
/readyz   200 while a worker is ready and the database answers: can it run jobs?
"""

log = logger("monitor.http")


class Pages(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """The server. `is_healthy` and `is_ready` answer from memory."""

    daemon_threads = True

    def __init__(
        self,
        listening: socket.socket,
        registry: CollectorRegistry,
        bearer: Bearer,
        is_healthy: Callable[[], bool],
        is_ready: Callable[[], bool],
    ) -> None:
        super().__init__(listening.getsockname()[:2], _Page, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.bearer = bearer
        self.is_healthy = is_healthy
        self.is_ready = is_ready
        self._registry = registry
        self._scraping = threading.Lock()
        self._scraped: dict[str, tuple[float, bytes]] = {}
        self._opening = threading.Lock()
        self._open: dict[socket.socket, None] = {}  # the oldest first
        self._places = threading.BoundedSemaphore(_THREADS)
        self._throttle = Throttle(interval=_SAID_EVERY)

    def serve_in_thread(self) -> None:
        threading.Thread(target=self.serve_forever, name="pages", daemon=True).start()

    def scrape(self, accepted: str) -> tuple[bytes, str]:
        """The metrics as of now, and their content type, as the client would have them."""
        asked_at = time.monotonic()
        encode, content_type = _format(accepted)
        with self._scraping:
            begun, page = self._scraped.get(content_type, (-math.inf, b""))
            if begun < asked_at:
                begun = time.monotonic()
                page = encode(self._registry)
                self._scraped[content_type] = begun, page
        return page, content_type

    def get_request(self) -> tuple[socket.socket, Any]:
        """The next connection. Who can't be taken stays in the kernel's queue: without a pause we would ask for him at
        once again, and for ever."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in _EXHAUSTED:
                if (more := self._throttle.admit("exhausted")) is not None:
                    log.warning(
                        "clients of /metrics wait: %s%s. Raise the limit of open files (ulimit -n, LimitNOFILE=)",
                        error.strerror,
                        more,
                        extra=fields("pages_exhausted"),
                    )
                self._hang_up_on_the_oldest()
                time.sleep(_BREATH)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._opening:
            self._open[request] = None
            while len(self._open) > _CLIENTS:
                self._hang_up(next(iter(self._open)))
        self._places.acquire()  # soon: who was hung up on ends with that, or when the page is made that it waits for
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._forget(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  the base class calls it
        """A client that hangs up or dawdles is no event."""
        if not isinstance(sys.exc_info()[1], OSError):
            log.exception("a page can't be made: this is a bug in pgworker", extra=fields("page_failed"))

    def _hang_up_on_the_oldest(self) -> None:
        with self._opening:
            if self._open:
                self._hang_up(next(iter(self._open)))

    def _hang_up(self, connection: socket.socket) -> None:
        del self._open[connection]
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def _forget(self, connection: socket.socket) -> None:
        with self._opening:
            self._open.pop(connection, None)
        self._places.release()


def _format(accepted: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    """How to write the page for this client: as it would have it, or in the oldest way, which all can read.

    A version that there is not may be refused by the library with an error, or promised: then every number that anybody
    thinks of would be another format, and another page to keep.
    """
    with contextlib.suppress(TypeError, ValueError):
        encode, content_type = choose_encoder(accepted)
        if _VERSIONS.search(content_type):
            return encode, content_type
    return choose_encoder("")


class _Page(http.server.BaseHTTPRequestHandler):
    server: Pages
    timeout = _PATIENCE
    server_version = "pgworker"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._answer_metrics()
        elif path == "/healthz":
            self._say("alive", "the monitor is stuck", good=self.server.is_healthy())
        elif path == "/readyz":
            self._say("ready", "no worker is ready, or no database", good=self.server.is_ready())
        elif path == "/":
            self._answer(HTTPStatus.OK, _PAGES)
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"pages: / /metrics /healthz /readyz\n")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, b"these pages are only read: GET or HEAD\n", headers=_ALLOW)

    do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = do_POST  # noqa: N815  the names are http.server's

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name is the standard library's
        """Requests are not logged."""

    def _answer_metrics(self) -> None:
        if self.server.bearer.admits(self.headers.get_all("Authorization", [])):
            page, content_type = self.server.scrape(self.headers.get("Accept", ""))
            self._answer(HTTPStatus.OK, page, content_type)
        else:
            self._answer(HTTPStatus.UNAUTHORIZED, b"", headers=_CHALLENGE)

    def _say(self, yes: str, no: str, *, good: bool) -> None:
        status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
        self._answer(status, f"{yes if good else no}\n".encode())

    def _answer(
        self, status: HTTPStatus, body: bytes, content_type: str = _TEXT, headers: Mapping[str, str] = _NO_MORE
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
