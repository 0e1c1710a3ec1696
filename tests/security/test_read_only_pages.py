"""The pages of a pool only tell: nothing on them changes a state, so no request needs to prove where it comes from; and
they are at home on loopback unless somebody says otherwise. Who may see /metrics is tried in test_metrics_token."""

from __future__ import annotations

import http.client
import ipaddress
from contextlib import closing

import pytest

from pgworker.config.settings import PoolSettings, parse_listen
from pgworker.observe.catalogue import CATALOGUE
from pgworker.observe.metrics import MAX_PAIRS
from tests.process import jobs, test_pool
from tests.process.pool import eventually, free_port
from tests.process.test_pool import Scene, StartPool

scene = test_pool.scene
start_pool = test_pool.start_pool

PAGES = ("/", "/metrics", "/healthz", "/readyz")
UNKNOWN = ("/jobs", "/admin", "/metrics/", "/../metrics", "/%6detrics", "/debug/pprof", "/favicon.ico")
CHANGING = ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "LOCK", "QUIT")
FEW = {"queue", "task", "outcome", "reason", "state", "worker", "version", "le"}
"""Labels of which there are as many values as somebody has written down, or as there are places in a pool."""


@pytest.fixture
def port(start_pool: StartPool) -> int:
    port = free_port()
    start_pool(metrics_listen=f"127.0.0.1:{port}")
    eventually(lambda: ask(port, "GET", "/readyz")[0] == 200, "a pool that is ready")
    return port


def ask(
    port: int, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], str]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode()


def test_no_method_but_reading_and_no_path_but_the_pages_is_answered(scene: Scene, port: int) -> None:
    waiting = scene.enqueue(jobs.quick.options(queue="elsewhere"), "waits")
    state = "select count(*), sum(hashtext(q::text)) from pgworker.job_queue as q"
    before = scene.connection.execute(state).fetchall()
    for path in (*PAGES, *UNKNOWN):
        for method in CHANGING:
            status, headers, _ = ask(port, method, path, b"job=1", Origin="https://evil.example", Cookie="a=b")
            assert status in (405, 501), f"{method} {path}"
            assert not headers.keys() & {"set-cookie", "access-control-allow-origin", "location"}
    for path in UNKNOWN:
        assert ask(port, "GET", path)[0] == 404, path
    for path in PAGES:
        status, headers, _ = ask(port, "GET", path, Origin="https://evil.example", Cookie="a=b")
        assert status == 200
        assert not headers.keys() & {"set-cookie", "access-control-allow-origin", "location", "www-authenticate"}
        assert headers["content-type"].startswith("text/plain")
    assert scene.connection.execute(state).fetchall() == before
    assert scene.status(waiting) == "pending"


def test_what_a_request_says_is_never_said_back(port: int) -> None:
    """Nor is a page in which a browser would find a script."""
    script = "<script>alert(1)</script>"
    for path in (f"/{script}", f"/metrics?{script}", "/metrics?name[]=" + script):
        status, headers, text = ask(port, "GET", path.replace("<", "%3C").replace(">", "%3E"), Referer=script)
        assert status in (200, 404)
        assert "script" not in text + str(headers)


def test_by_default_only_this_host_can_ask() -> None:
    default = PoolSettings(workers=1).metrics_listen
    assert default is not None
    assert ipaddress.ip_address(parse_listen(default)[0]).is_loopback


def test_no_metric_has_a_label_whose_values_have_no_end() -> None:
    labels = {label for spec in CATALOGUE for label in spec.labels}
    assert labels <= FEW
    assert not labels & {"org", "org_id", "job", "job_id", "pid", "lease", "worker_id", "host", "error", "args"}


def test_ten_thousand_orgs_queues_and_jobs_are_no_ten_thousand_series(scene: Scene, port: int) -> None:
    """A thousand of each come from whoever enqueues; of those that run, pgworker's own tests fold pairs of names."""
    before = len(ask(port, "GET", "/metrics")[2].splitlines())
    scene.connection.execute(
        """select pgworker.enqueue_jobs(
               array_agg('t' || n), array_agg('{}'::jsonb), array_agg('q' || n), array_agg(5::smallint),
               array_agg(null::timestamptz), array_agg(1::smallint), array_agg(null::bigint), array_agg('org' || n),
               array_agg(null::jsonb), array_agg(null::uuid))
           from generate_series(1, 10000) as n"""
    )
    own = [jobs.quick.options(org_id=f"own{number}").job(str(scene.directory), "x") for number in range(1000)]
    made = [job.id for job in jobs.app.enqueue_many(own, scene.connection)]
    scene.wait_for_status("succeeded", *made[-5:])

    def sampled() -> bool:
        return 'queue="q1' in ask(port, "GET", "/metrics")[2]

    eventually(sampled, "a sample of the database with these queues", within=60)
    page = ask(port, "GET", "/metrics")[2]
    assert len(page.splitlines()) - before < 10 * 110, "100 queues at most, of a few series each"
    assert MAX_PAIRS <= 200
    assert not [word for word in ("org1", "own1", *map(str, made)) if word in page]
