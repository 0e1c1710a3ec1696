"""TLS with a server that proves who it is, and with ones that don't: those get no password and no job."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trustme

from pgworker.db.migrate import migrate
from pgworker.db.scratch import scratch_directory
from tests.process import jobs
from tests.process.pool import ROOT, eventually, free_port, start
from tests.security.test_secrets import environment
from tests.security.tls import PASSWORD, TlsServer, expired, tls_server
from tests.sql.actors import ask


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def tls(binaries: Path | None, authority: trustme.CA) -> Iterator[TlsServer]:
    with scratch_directory() as directory, tls_server(directory, binaries, authority) as server:
        migrate(server.dsn())
        yield server


def reload(server: TlsServer) -> None:
    with psycopg.connect(server.dsn(mode="require"), autocommit=True) as connection:
        connection.execute("select pg_reload_conf()")


def run(dsn: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pgworker", *words],
        env=environment(PGWORKER_DSN=dsn),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refusal(dsn: str, words: str) -> str:
    """The one sentence with which a command ends with 78: it is the user's to mend."""
    ended = run(dsn, *words.split())
    assert (ended.returncode, ended.stdout) == (78, ""), ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("pgworker: ")
    assert PASSWORD not in line
    return line


def test_with_the_right_certificate_a_pool_runs_jobs_and_says_all_of_it_encrypted(
    tls: TlsServer, tmp_path: Path
) -> None:
    dsn = tls.dsn()
    assert run(dsn, "migrate").returncode == 0
    with start(dsn, tmp_path / "pool.log") as pool, psycopg.connect(dsn, autocommit=True) as connection:
        pool.wait_for_log("the pool is ready")
        jobs.quick.using(connection).enqueue(str(tmp_path), "encrypted")
        eventually(lambda: (tmp_path / "ledger").exists(), "the job has run")
        seen = ask(
            connection,
            """select application_name, ssl from pg_stat_ssl join pg_stat_activity using (pid)
               where usename = 'canary' and application_name like 'pgworker%%'""",
        )
        assert {name.split(" ", 1)[0] for name, _ in seen} == {"pgworker"}
        assert len(seen) >= 3
        assert {ssl for _, ssl in seen} == {True}
        pool.send(signal.SIGTERM)
        assert pool.wait() == 0


WORDS = ("migrate", "status", "start --app tests.process.jobs:app --metrics-listen off -w 1")


@pytest.mark.parametrize("words", WORDS)
def test_a_host_by_another_name_is_refused(tls: TlsServer, words: str) -> None:
    line = refusal(tls.dsn(host="db.example"), words)
    assert "does not match host name" in line
    assert "Check sslmode, sslrootcert and sslcert in the DSN" in line


@pytest.mark.parametrize("words", WORDS)
def test_a_certificate_of_another_authority_is_refused(tls: TlsServer, words: str, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    line = refusal(tls.dsn(authority=other), words)
    assert "certificate verify failed" in line
    assert "Check sslmode, sslrootcert and sslcert in the DSN" in line


def test_an_authority_that_is_not_there_is_refused(tls: TlsServer, tmp_path: Path) -> None:
    line = refusal(tls.dsn(authority=tmp_path / "none.pem"), "status")
    assert "root certificate file" in line
    assert "Check sslmode, sslrootcert and sslcert in the DSN" in line


def test_a_certificate_of_yesterday_is_refused_and_a_pool_takes_the_new_one_when_it_comes(
    tls: TlsServer, authority: trustme.CA, tmp_path: Path
) -> None:
    with start(tls.dsn(), tmp_path / "pool.log") as pool:
        pool.wait_for_log("the pool is ready")
        tls.use(expired(authority))
        try:
            reload(tls)
            for words in WORDS:
                line = refusal(tls.dsn(), words)
                assert "certificate verify failed" in line or "certificate has expired" in line
            with psycopg.connect(tls.dsn(mode="require"), autocommit=True) as connection:
                connection.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()"
                    " and backend_type = 'client backend'"
                )
                pool.wait_for_log("certificate verify failed")
                theirs = "select count(*) from pg_stat_activity where application_name like 'pgworker%%'"
                assert ask(connection, theirs) == [0], "it stays out"
        finally:
            tls.use(authority.issue_cert("localhost"))
            reload(tls)
        pool.wait_for_log("the database is back")
        pool.send(signal.SIGTERM)
        assert pool.wait() == 0
        assert PASSWORD not in pool.log()


class Plain:
    """Somebody in the middle who says that he has no TLS, and keeps what he is told."""

    def __init__(self) -> None:
        self.port = free_port()
        self.told = b""
        self._listening = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            with closing(client):
                client.settimeout(5)
                self.told += client.recv(8)  # SSLRequest
                client.send(b"N")
                try:
                    while part := client.recv(65536):
                        self.told += part
                except OSError:
                    pass

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@pytest.mark.parametrize("words", WORDS)
def test_who_says_that_he_has_no_tls_is_told_nothing(tls: TlsServer, words: str) -> None:
    """No falling back to plain text: after the request for TLS comes not one byte."""
    with closing(Plain()) as middle:
        dsn = re.sub(r":\d+/", f":{middle.port}/", tls.dsn())
        assert "does not support SSL" in refusal(dsn, words)
        assert middle.told
        requests = {middle.told[place : place + 8] for place in range(0, len(middle.told), 8)}
        assert requests == {b"\0\0\0\x08\x04\xd2\x16\x2f"}


def test_the_one_in_the_middle_hears_all_of_it_from_whoever_does_not_insist(tls: TlsServer) -> None:
    """Else the test above would prove nothing."""
    with closing(Plain()) as middle:
        dsn = re.sub(r":\d+/", f":{middle.port}/", tls.dsn(mode="prefer"))
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(dsn, connect_timeout=2)
        assert b"canary" in middle.told


def test_every_connection_of_pgworker_goes_by_what_the_dsn_says_of_tls(tls: TlsServer) -> None:
    """`conninfo` is what all of them are made of."""
    from pgworker.db.connect import conninfo

    made: dict[str, Any] = psycopg.conninfo.conninfo_to_dict(conninfo(tls.dsn(), "a name"))
    assert (made["sslmode"], made["sslrootcert"]) == ("verify-full", str(tls.authority))
