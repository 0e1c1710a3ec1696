"""A pool's pages under clients that mean no good: its jobs, beats and renewals go on, and it forgets them."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, closing, suppress

import psutil
import pytest

from tests.acceptance.test_start import fetch
from tests.process import jobs, test_pool
from tests.process.pool import DEADLINE, Pool, eventually, free_port, no_descriptor_left, share_asleep
from tests.process.test_pool import Scene, StartPool
from tests.security.clients import connections, descriptors

scene = test_pool.scene
start_pool = test_pool.start_pool

MANY = 600
"""Connections of one attacker. The trial `metrics_flood` has all 10,000."""


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def pool(start_pool: StartPool, port: int) -> Pool:
    """Its leases are short, so that one that is not renewed in time is lost."""
    pool = start_pool(log_format="json", lease_ttl=3.0, heartbeat_interval=0.3, metrics_listen=f"127.0.0.1:{port}")
    eventually(lambda: fetch(port, "/readyz")[0] == 200, "a pool that is ready")
    assert fetch(port, "/metrics")[0] == 200
    return pool


class Work:
    """A job that is under way all the time, whose lease must be renewed, and others that come meanwhile."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.held = scene.enqueue(jobs.hold, "held")
        scene.wait_for("start", "held")

    def goes_on(self, name: str) -> None:
        """New jobs run, and whoever lives beats."""
        now = self.scene.scalar("select clock_timestamp()")
        quick = self.scene.enqueue_together(*self.scene.quick(*(f"{name}{number}" for number in range(50))))
        self.scene.wait_for_status("succeeded", *quick)
        beaten = "select count(*) = 2 from pgworker.worker_heartbeats where beat_at > %s and ended_at is null"
        eventually(lambda: self.scene.scalar(beaten, now), "a beat of each worker")

    def end(self) -> None:
        """Nothing was lost: the job that was under way ends as its first execution."""
        self.scene.open_gate("held")
        self.scene.wait_for_status("succeeded", self.held)
        assert self.scene.outcomes(self.held) == [(1, "succeeded", 0)]


def test_a_monitor_without_a_descriptor_left_pauses_says_so_once_and_serves_afterwards(
    scene: Scene, pool: Pool, port: int
) -> None:
    work, monitor = Work(scene), pool.monitor
    expires = f"select expires_at from pgworker.job_leases where '{work.held}' = any (job_ids)"
    with ExitStack() as clients, no_descriptor_left(monitor):
        for _ in range(20):
            clients.enter_context(socket.create_connection(("127.0.0.1", port), DEADLINE))
        pool.wait_for_log("pages_exhausted")
        first = scene.scalar(expires)
        asleep = share_asleep(monitor)
        eventually(lambda: (scene.scalar(expires) - first).total_seconds() > 2, "two renewals meanwhile")
        work.goes_on("meanwhile")
    eventually(lambda: fetch(port, "/healthz")[0] == 200, "a page afterwards")
    work.end()
    assert pool.monitor == monitor
    assert pool.log().count("pages_exhausted") == 1
    assert "bug" not in pool.log()
    assert asleep > 0.5, "it waits; who asks again at once never does"


def test_hundreds_of_clients_of_every_bad_manner_stall_no_claim_no_beat_and_no_renewal(
    scene: Scene, pool: Pool, port: int
) -> None:
    work, monitor = Work(scene), pool.monitor
    before, memory = descriptors(monitor), psutil.Process(monitor).memory_info().rss
    with connections(port, MANY) as opened:
        work.goes_on("meanwhile")
        assert fetch(port, "/healthz")[0] == 200, "and whoever comes last is served"
        grown = psutil.Process(monitor).memory_info().rss - memory
        assert opened.count == MANY
    work.goes_on("afterwards")
    work.end()
    eventually(lambda: descriptors(monitor) <= before + 2, lambda: f"{before} descriptors, not {descriptors(monitor)}")
    assert fetch(port, "/metrics")[0] == 200
    assert pool.monitor == monitor
    assert grown < 64 << 20
    assert "Traceback" not in pool.log()


SHAPES = {
    "headers": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100_000,
    "path": b"GET /" + b"a" * 10_000_000,
    "line": b"X: " + b"y" * 10_000_000,
    "nul": b"\0" * 1_000_000,
    "escape": b"GET /%00/../../etc/passwd HTTP/1.1\r\n\r\n",
    "version": b"GET /metrics HTTP/9.9\r\n\r\n",
    "accept": b"GET /metrics HTTP/1.1\r\nAccept: " + b"application/openmetrics-text;" * 2000 + b"\r\n\r\n",
    "noise": bytes(range(256)) * 100,
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


def test_a_slow_client_gets_its_page_and_a_request_of_any_shape_ends_with_itself(pool: Pool, port: int) -> None:
    monitor = pool.monitor
    memory = psutil.Process(monitor).memory_info().rss
    request = b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n"
    with closing(socket.create_connection(("127.0.0.1", port), DEADLINE)) as slow:
        for place in range(len(request)):
            slow.send(request[place : place + 1])
            assert fetch(port, "/healthz")[0] == 200, "meanwhile others are served"
        assert slow.recv(100).startswith(b"HTTP/1.0 200")
    answers = [answer(port, shape) for shape in SHAPES.values()]
    assert not [told for told in answers if b"root:" in told or b"Traceback" in told]
    assert fetch(port, "/healthz")[0] == 200
    os.kill(monitor, 0)
    assert psutil.Process(monitor).memory_info().rss - memory < 32 << 20
    assert "page_failed" not in pool.log()


def answer(port: int, request: bytes) -> bytes:
    """Whatever comes, nothing maybe."""
    told = b""
    with closing(socket.create_connection(("127.0.0.1", port), DEADLINE)) as client, suppress(OSError):
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        while part := client.recv(65536):
            told += part
    return told
