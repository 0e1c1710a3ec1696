from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgworker.db import embedded
from pgworker.db.connect import check_schema, connect, connect_async, explain, is_outage
from pgworker.errors import ConfigurationError, DatabaseUnavailable, PgworkerError, SchemaError
from pgworker.sql import load

SECRET = "canary-geheim"
Connect = Callable[[], psycopg.Connection[Any]]

_roles = itertools.count(1)


def open_and_close(dsn: str) -> None:
    connect(dsn, application_name="test").close()


def trouble(dsn: str) -> PgworkerError:
    """What connecting to `dsn` raises, once it is sure that neither it nor its traceback shows the password."""
    with pytest.raises(PgworkerError) as raised:
        open_and_close(dsn)
    assert SECRET not in "".join(traceback.format_exception(raised.value))
    return raised.value


def ask(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement.encode())


@pytest.fixture
def role(dsn: str) -> Iterator[str]:
    """An ordinary role with the password SECRET."""
    name = f"test_connect_{next(_roles)}"
    ask(dsn, f"create role {name} login password '{SECRET}'")
    yield name
    ask(dsn, f"drop owned by {name}")
    ask(dsn, f"drop role {name}")


@pytest.fixture
def database(dsn: str) -> str:
    return str(conninfo_to_dict(dsn)["dbname"])


def test_a_missing_database_and_role_are_the_users_to_mend(dsn: str) -> None:
    missing = trouble(make_conninfo(dsn, dbname="nobody_made_it", password=SECRET))
    assert type(missing) is ConfigurationError
    assert 'database "nobody_made_it" does not exist. Create it with `createdb`' in str(missing)
    stranger = trouble(make_conninfo(dsn, user="stranger", password=SECRET))
    assert type(stranger) is ConfigurationError
    assert 'role "stranger" does not exist. Check user and password' in str(stranger)


def test_a_wrong_password_is_the_users_to_mend(server: embedded.Server, dsn: str, database: str, role: str) -> None:
    rules = server.directory / "data" / "pg_hba.conf"
    before = rules.read_text()
    try:
        rules.write_text(f"local {database} {role} scram-sha-256\n{before}")
        ask(dsn, "select pg_reload_conf()")
        wrong = make_conninfo(dsn, user=role, password=f"{SECRET}-wrong")
        deadline = time.monotonic() + 10
        with suppress(PgworkerError):
            while time.monotonic() < deadline:  # until the server has read the new rules
                open_and_close(wrong)
        error = trouble(wrong)
        assert type(error) is ConfigurationError
        assert "password authentication failed" in str(error)
        assert "no password supplied" in str(trouble(make_conninfo(dsn, user=role, passfile="/nowhere")))
        open_and_close(make_conninfo(dsn, user=role, password=SECRET))
    finally:
        rules.write_text(before)
        ask(dsn, "select pg_reload_conf()")


def test_no_connection_left_may_pass_by_itself_and_a_missing_right_does_not(dsn: str, database: str, role: str) -> None:
    theirs = make_conninfo(dsn, user=role)
    ask(dsn, f"alter role {role} connection limit 0")
    full = trouble(theirs)
    assert type(full) is DatabaseUnavailable
    assert "too many connections for role" in str(full)
    ask(dsn, f'alter role {role} connection limit -1; revoke connect on database "{database}" from public')
    forbidden = trouble(theirs)
    assert type(forbidden) is ConfigurationError
    assert "permission denied for database" in str(forbidden)


def test_a_refused_port_an_unknown_host_and_a_missing_socket_may_pass_by_themselves() -> None:
    with socket.socket() as bound:  # and not listening, so nobody else can
        bound.bind(("127.0.0.1", 0))
        refused = trouble(f"postgresql://me:{SECRET}@127.0.0.1:{bound.getsockname()[1]}/db")
    assert type(refused) is DatabaseUnavailable
    assert "Connection refused. Start PostgreSQL, or correct host and port" in str(refused)
    unknown = trouble(f"postgresql://me:{SECRET}@host.invalid/db")
    assert type(unknown) is DatabaseUnavailable
    assert "failed to resolve host 'host.invalid'" in str(unknown)
    assert "Start PostgreSQL" in str(trouble("host=/nowhere"))


def test_a_server_that_never_answers_is_given_up_after_connect_timeout() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        error = trouble(f"host=127.0.0.1 port={silent.getsockname()[1]} connect_timeout=2 password={SECRET}")
    assert type(error) is DatabaseUnavailable
    assert "timeout expired. Check host and port" in str(error)


def test_of_several_hosts_the_one_that_answered_is_quoted(dsn: str) -> None:
    here = conninfo_to_dict(dsn)["host"]
    for hosts in (f"/nowhere,{here}", f"{here},/nowhere"):
        error = trouble(make_conninfo(dsn, host=hosts, dbname="nobody_made_it"))
        assert type(error) is ConfigurationError
        assert ': database "nobody_made_it" does not exist.' in str(error)


@pytest.mark.parametrize(
    "dsn",
    [
        f"mysql://me:{SECRET}@host/db",
        f"postgresql://me:{SECRET}@[::1/db",
        f"postgresql://me:{SECRET}%zz@host/db",
        f"postgresql://me:{SECRET}@host:port/db",
        f"postgresql://me:{SECRET}@localhost:1/db?colour=blue",
        f"host=localhost password='{SECRET}",
        f"host=localhost password={SECRET} colour=blue",
        f"host=a,b port=1,2,3 password={SECRET}",
        f"host=127.0.0.1 port=99999 password={SECRET}",
        f"host=127.0.0.1 sslmode=maybe password={SECRET}",
        f"host=127.0.0.1 connect_timeout=soon password={SECRET}",
        "host",
    ],
)
def test_a_dsn_that_cannot_be_read_is_the_users_to_mend(dsn: str) -> None:
    error = trouble(dsn)
    assert type(error) is ConfigurationError
    assert str(error).startswith("The DSN can't be used: ")


def test_tls_that_the_server_does_not_speak_is_the_users_to_mend(dsn: str) -> None:
    with forwarded(dsn) as over_tcp:
        error = trouble(make_conninfo(over_tcp, sslmode="require", password=SECRET))
    assert type(error) is ConfigurationError
    assert "Check sslmode" in str(error)


def test_an_embedded_server_is_found_by_its_directory_and_told_when_it_stops(binaries: Path | None) -> None:
    with tempfile.TemporaryDirectory(prefix="pgworker-tests-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        dsn = f"embedded:{directory}"
        nobody = f"No server is running in {directory}. Start one with `pgworker start --embedded={directory}`."
        assert str(trouble(dsn)) == nobody
        with embedded.start(directory, options={"fsync": "off"}, binaries=binaries) as server:
            with connect(dsn, application_name="test") as connection:
                os.kill(server.pid, signal.SIGTERM)  # no new connections, the old ones may end
                deadline = time.monotonic() + 10
                with suppress(PgworkerError):
                    while time.monotonic() < deadline:
                        open_and_close(dsn)
                leaving = trouble(dsn)
                assert type(leaving) is DatabaseUnavailable
                assert "shutting down. Try again" in str(leaving)
                assert connection.execute("select 1").fetchone() == (1,)
                os.kill(server.pid, signal.SIGKILL)  # its socket stays, and refuses
                server.process.wait(10)
                with pytest.raises(psycopg.Error) as lost:
                    ask_until_it_fails(connection)  # a backend notices the end of its server a moment later
                assert is_outage(lost.value)
            assert str(trouble(dsn)) == nobody
            for left in Path(str(conninfo_to_dict(server.dsn)["host"])).iterdir():
                left.unlink()


def ask_until_it_fails(connection: psycopg.Connection[Any]) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        connection.execute("select 1")


def test_the_schema_of_a_database_must_be_that_of_the_package(blank_dsn: str, connect: Connect) -> None:
    with psycopg.connect(blank_dsn) as blank, pytest.raises(SchemaError, match="Run `pgworker migrate`"):
        check_schema(blank)
    connection = connect()
    check_schema(connection)
    newest = load.migrations()[-1].number
    connection.execute("insert into pgworker.schema_migrations values (%s, 'x', 'x')", (newest + 1,))
    with pytest.raises(SchemaError, match=f"knows only {newest}.*Upgrade pgworker"):
        check_schema(connection)
    connection.execute("delete from pgworker.schema_migrations where version >= %s", (newest,))
    with pytest.raises(SchemaError, match=f"this package needs {newest}. Run `pgworker migrate`"):
        check_schema(connection)


def test_a_role_without_rights_in_the_schema_is_told_what_to_grant(dsn: str, role: str) -> None:
    with psycopg.connect(make_conninfo(dsn, user=role)) as theirs:
        with pytest.raises(ConfigurationError, match=r"permission denied for schema pgworker\. Grant") as raised:
            check_schema(theirs)
        assert type(raised.value) is ConfigurationError


def failure(connection: psycopg.Connection[Any], *statements: str) -> psycopg.Error:
    try:
        for statement in statements:
            connection.execute(statement.encode())
    except psycopg.Error as error:
        return error
    raise AssertionError(f"nothing failed in {statements}")


def test_what_may_pass_by_itself_is_an_outage_and_a_mistake_is_none(dsn: str, connect: Connect) -> None:
    blocker, other = connect(), connect()
    blocker.execute("begin; lock table pgworker.queues")
    passing = [
        failure(other, "set lock_timeout = '1ms'", "select from pgworker.queues"),
        failure(other, "set statement_timeout = '1ms'", "select pg_sleep(10)"),
        failure(connect(), "set default_transaction_read_only = on", "create table public.t ()"),
        failure(connect(), "select pg_terminate_backend(pg_backend_pid())"),
        failure(connect(), "do $$ begin raise exception 'no space left' using errcode = 'disk_full'; end $$"),
        failure(connect(), "do $$ begin raise exception 'deadlock' using errcode = 'deadlock_detected'; end $$"),
    ]
    blocker.execute("rollback")
    lasting = [
        failure(connect(), "select no_such_column"),
        failure(connect(), "select 1 / 0"),
        failure(connect(), "insert into pgworker.queues values ('q'), ('q')"),
        failure(connect(), "select from pgworker.no_such_table"),
    ]
    assert [is_outage(error) for error in passing] == [True] * len(passing)
    assert [is_outage(error) for error in lasting] == [False] * len(lasting)
    assert {type(explain(error, dsn)) for error in passing} == {DatabaseUnavailable}
    assert [type(explain(error, dsn)) for error in lasting] == [PgworkerError] * 3 + [SchemaError]
    with pytest.raises(psycopg.ProgrammingError) as misused:
        connect().execute("select %s", (1, 2))
    assert not is_outage(misused.value)
    assert type(explain(misused.value, dsn)) is PgworkerError


def pipelined_failure(connection: psycopg.Connection[Any], first: Callable[[], object]) -> psycopg.Error:
    try:
        with connection.pipeline():
            connection.execute("select 1")
            first()
            while True:
                connection.execute("select 1").fetchone()
    except psycopg.Error as error:
        return error


def test_a_connection_lost_inside_a_pipeline_is_an_outage_and_a_mistake_there_is_none(connect: Connect) -> None:
    killer, victim, other = connect(), connect(), connect()
    pid = victim.info.backend_pid
    lost = pipelined_failure(victim, lambda: killer.execute("select pg_terminate_backend(%s)", (pid,)))
    assert is_outage(lost)
    mistaken = pipelined_failure(other, lambda: other.execute("select no_such_column"))
    assert not is_outage(mistaken)


def test_json_is_decoded_by_msgspec_on_this_connection_only(dsn: str) -> None:
    statement = """select '{"a": [1, 2.5, null, "é"]}'::jsonb, '[true]'::json"""
    before = psycopg.adapters.get_loader(3802, psycopg.pq.Format.TEXT)
    with connect(dsn, application_name="test") as connection:
        for binary in (False, True):
            row = connection.cursor(binary=binary).execute(statement).fetchone()
            assert row == ({"a": [1, 2.5, None, "é"]}, [True])
        assert connection.adapters.get_loader(3802, psycopg.pq.Format.TEXT) is not before
    assert psycopg.adapters.get_loader(3802, psycopg.pq.Format.TEXT) is before


def test_text_is_utf_8_whatever_the_environment_says(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    with connect(dsn, application_name="test") as connection:
        assert connection.execute("select %s::text, %s::text::jsonb", ("漢", '"漢"')).fetchone() == ("漢", "漢")


def test_an_event_loop_gets_the_same_connection_and_the_same_errors(dsn: str) -> None:
    async def run() -> tuple[Any, ...] | None:
        with pytest.raises(ConfigurationError, match="nobody_made_it"):
            await connect_async(make_conninfo(dsn, dbname="nobody_made_it"), application_name="test")
        async with await connect_async(dsn, application_name="an async test") as connection:
            cursor = await connection.execute("""select '{"a": 1}'::jsonb, current_setting('application_name')""")
            return await cursor.fetchone()

    assert asyncio.run(run()) == ({"a": 1}, "an async test")


def test_a_vanished_peer_is_noticed_within_ten_seconds_unless_the_dsn_says_otherwise(dsn: str) -> None:
    idle, probe, user_timeout = tcp_timeouts(dsn)
    assert idle + probe <= 10
    assert 0 < user_timeout < 10_000
    assert tcp_timeouts(f"{dsn} keepalives_idle=77 tcp_user_timeout=88")[::2] == (77, 88)


def tcp_timeouts(dsn: str) -> tuple[int, int, int]:
    """Of a connection: seconds before the first probe, seconds of probing, milliseconds of unacknowledged data."""
    with (
        forwarded(dsn) as over_tcp,
        connect(over_tcp, application_name="test") as connection,
        socket.socket(fileno=os.dup(connection.fileno())) as ours,
    ):
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        options = socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT
        idle, every, probes, user_timeout = (ours.getsockopt(socket.IPPROTO_TCP, option) for option in options)
        return idle, every * probes, user_timeout


@contextmanager
def forwarded(dsn: str) -> Iterator[str]:
    """One TCP connection to the server of `dsn`, which listens on a Unix socket only."""
    parameters = conninfo_to_dict(dsn)
    with socket.socket() as listening, socket.socket(socket.AF_UNIX) as inside:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        inside.connect(f"{parameters['host']}/.s.PGSQL.{parameters.get('port', 5432)}")

        def accept() -> None:
            with suppress(OSError):
                outside, _ = listening.accept()
                back = threading.Thread(target=pump, args=(inside, outside))
                back.start()
                pump(outside, inside)
                back.join()
                outside.close()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield make_conninfo(dsn, host="127.0.0.1", port=listening.getsockname()[1], gssencmode="disable")
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def pump(source: socket.socket, target: socket.socket) -> None:
    """Copy until the source ends, then end the target."""
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
