"""The pages of a monitor under slow clients, many of them, and clients that ask for what isn't there."""

from __future__ import annotations

import http.client
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pgworker.config.token import NoToken
from pgworker.linux.board import Board
from pgworker.monitor.activity import Activities
from pgworker.monitor.bearer import Bearer
from pgworker.monitor.http import Pages
from pgworker.monitor.vitals import Vitals
from tests.process.pool import DEADLINE, eventually

MANY = 200
"""More connections than are open at a time, and more than there are threads."""


@dataclass(eq=False)
class SlowMetrics(Collector):
    """A page that takes as long as `go_on` is not set; it counts how often it was made."""

    go_on: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)
    made: int = 0
    text: str = "How often."

    def collect(self) -> Iterator[Metric]:
        self.made += 1
        self.begun.set()
        assert self.go_on.wait(DEADLINE)
        yield GaugeMetricFamily("made", self.text, self.made)


@pytest.fixture
def metrics() -> SlowMetrics:
    return SlowMetrics()


@pytest.fixture
def port(metrics: SlowMetrics) -> Iterator[int]:
    listening = socket.create_server(("127.0.0.1", 0), backlog=128)
    registry = CollectorRegistry()
    metrics.go_on.set()
    registry.register(metrics)
    metrics.made = 0  # to register it is to collect it once
    metrics.begun.clear()
    pages = Pages(listening, registry, Bearer(NoToken.UNSAID), lambda: True, lambda: False)
    pages.serve_in_thread()
    yield int(listening.getsockname()[1])
    metrics.go_on.set()
    pages.shutdown()
    pages.server_close()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: str


def ask(port: int, method: str, path: str, **headers: str) -> Answer:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)) as connection:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return Answer(answer.status, dict(answer.getheaders()), answer.read().decode())


def test_the_first_page_names_the_others(port: int) -> None:
    landing = ask(port, "GET", "/")
    assert (landing.status, landing.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    named = [word for word in landing.body.split() if word.startswith("/")]
    assert named == ["/metrics", "/healthz", "/readyz"]
    assert [ask(port, "GET", page).status for page in named] == [200, 200, 503]
    assert ask(port, "GET", "/nothing").status == 404
    assert ask(port, "GET", "/metrics?name[]=made").status == 200


@pytest.mark.parametrize("page", ["/", "/metrics", "/healthz", "/readyz", "/nothing"])
def test_head_says_what_get_does_without_the_page(port: int, metrics: SlowMetrics, page: str) -> None:
    told, asked = ask(port, "HEAD", page), ask(port, "GET", page)
    assert (told.status, told.body) == (asked.status, "")
    assert told.headers["Content-Length"] == asked.headers["Content-Length"]
    assert told.headers["Content-Type"] == asked.headers["Content-Type"]
    assert metrics.made in (0, 2)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_other_methods_are_refused(port: int, metrics: SlowMetrics, method: str) -> None:
    refused = ask(port, method, "/metrics")
    assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD")
    assert metrics.made == 0


@pytest.mark.parametrize(
    ("accepted", "given"),
    [
        (
            "application/openmetrics-text; version=1.0.0; escaping=underscores",
            "application/openmetrics-text; version=1.0.0",
        ),
        ("application/openmetrics-text", "application/openmetrics-text; version=1.0.0"),
        ("application/openmetrics-text; version=9.9.7", "text/plain; version=0.0.4"),
        ("application/openmetrics-text; version=new", "text/plain; version=0.0.4"),
        ("text/plain; version=1.0.0-beta", "text/plain; version=0.0.4"),
        ("image/png, */*", "text/plain; version=0.0.4"),
    ],
)
def test_a_client_gets_the_format_that_it_asks_for_if_there_is_one(
    port: int, accepted: str, given: str, caplog: pytest.LogCaptureFixture
) -> None:
    page = ask(port, "GET", "/metrics", Accept=accepted)
    assert (page.status, page.headers["Content-Type"].startswith(given)) == (200, True), page.headers
    assert "made 1.0" in page.body
    assert caplog.records == []


HALF = {"nothing": b"", "a word": b"GET", "a half": b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: "}


@pytest.mark.parametrize("said", HALF.values(), ids=HALF)
def test_clients_that_say_nothing_or_half_a_request_keep_nobody_out(port: int, said: bytes) -> None:
    """Nobody waits for their time to be up: the oldest connection gives way."""
    with ExitStack() as connections:
        for _ in range(MANY):
            slow = connections.enter_context(socket.create_connection(("127.0.0.1", port), DEADLINE))
            if said:
                slow.send(said)
        assert ask(port, "GET", "/healthz").status == 200
        assert ask(port, "GET", "/metrics").status == 200
    eventually(lambda: threading.active_count() < 40, lambda: f"few threads, not {threading.active_count()}")


def test_clients_that_don_t_take_their_answer_keep_nobody_out(port: int, metrics: SlowMetrics) -> None:
    metrics.text = "More than the kernel takes for a client that reads nothing. " * 150_000
    with ExitStack() as connections:
        for _ in range(MANY):
            slow = connections.enter_context(socket.create_connection(("127.0.0.1", port), DEADLINE))
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            slow.send(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert ask(port, "GET", "/healthz").status == 200


def test_while_a_page_of_metrics_is_made_the_pool_is_said_to_live_and_who_asks_meanwhile_shares_the_next(
    port: int, metrics: SlowMetrics
) -> None:
    metrics.go_on.clear()
    answers: list[Answer] = []
    scrapes = [threading.Thread(target=lambda: answers.append(ask(port, "GET", "/metrics"))) for _ in range(10)]
    scrapes[0].start()
    assert metrics.begun.wait(DEADLINE)
    for scrape in scrapes[1:]:
        scrape.start()
    for _ in range(5):
        assert ask(port, "GET", "/healthz").status == 200
    eventually(lambda: have_asked_for_metrics() == 10, lambda: f"ten who wait, not {have_asked_for_metrics()}")
    metrics.go_on.set()
    for scrape in scrapes:
        scrape.join(DEADLINE)
    assert len(answers) == 10
    made = [line for answer in answers for line in answer.body.splitlines() if line.startswith("made ")]
    assert sorted(made) == ["made 1.0", *["made 2.0"] * 9]


def test_the_pool_is_said_not_to_live_once_its_monitor_has_been_still_for_fifteen_seconds() -> None:
    board = Board(1, 1)
    vitals = Vitals(board, Activities(board))
    listening = socket.create_server(("127.0.0.1", 0))
    pages = Pages(listening, CollectorRegistry(), Bearer(NoToken.UNSAID), vitals.is_healthy, vitals.is_ready)
    pages.serve_in_thread()
    port = int(listening.getsockname()[1])
    try:
        board.monitor_beat_ns = time.monotonic_ns()
        assert ask(port, "GET", "/healthz").status == 200
        board.monitor_beat_ns -= 15_000_000_000
        still = ask(port, "GET", "/healthz")
        assert (still.status, still.body) == (503, "the monitor is stuck\n")
    finally:
        pages.shutdown()
        pages.server_close()


def have_asked_for_metrics() -> int:
    """How many threads of the pages have noted when they were asked, and are not done yet."""
    stacks = [[frame for frame, _ in traceback.walk_stack(top)] for top in sys._current_frames().values()]
    frames = [frame for stack in stacks for frame in stack if frame.f_code is Pages.scrape.__code__]
    return sum("asked_at" in frame.f_locals for frame in frames)
