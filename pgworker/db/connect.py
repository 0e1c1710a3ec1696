"""Connections to PostgreSQL, and what their errors mean: whose they are to mend, and whether waiting helps.

Nothing here relies on session state, which a pooler in transaction mode doesn't keep.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.adapt import AdaptersMap
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgworker.config.sources import embedded_directory, redact
from pgworker.db import embedded
from pgworker.db.adapters import OWN
from pgworker.db.patience import PatientAsyncConnection, PatientConnection, Silence
from pgworker.errors import ConfigurationError, DatabaseUnavailable, OutcomeUnknown, PgworkerError, SchemaError
from pgworker.sql import load

Connection = psycopg.Connection[tuple[Any, ...]]
AsyncConnection = psycopg.AsyncConnection[tuple[Any, ...]]
Row = tuple[Any, ...]

# A peer that vanished is noticed within 10 s. Idle: at the first probe, 3 or 5 s after its last word, that comes after
# tcp_user_timeout. What is sent until then starts the clock anew, since no probe goes out while it is not acknowledged:
# 5 + 4.5 s at worst. https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
_UNLESS_IN_DSN = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 3,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 4500,
}

_PLACE = ("user", "host", "hostaddr", "port", "dbname", "service")


def connect(
    dsn: str,
    *,
    application_name: str,
    autocommit: bool = True,
    prepare_threshold: int | None = 5,
    patience: float | None = None,
    adapters: AdaptersMap = OWN,
) -> PatientConnection[Row]:
    """A connection with these adapters, by default those of our own statements.

    `dsn` is what libpq takes, or `embedded:DIR`. `prepare_threshold=None` never prepares on the server. `patience`:
    seconds that one waits for each answer, see `PatientConnection`; who is no person should not wait for ever.
    Raises ConfigurationError for what only the user can mend, DatabaseUnavailable for what may pass by itself.
    """
    try:
        connection: PatientConnection[Row] = PatientConnection.connect(
            conninfo(dsn, application_name),
            autocommit=autocommit,
            prepare_threshold=prepare_threshold,
            context=adapters,
        )
    except (psycopg.Error, OSError) as error:
        raise explain(error, dsn) from error
    connection.patience = patience
    return connection


async def connect_async(
    dsn: str,
    *,
    application_name: str,
    autocommit: bool = True,
    prepare_threshold: int | None = 5,
    patience: float | None = None,
    adapters: AdaptersMap = OWN,
) -> PatientAsyncConnection[Row]:
    """`connect`, for an event loop."""
    try:
        connection: PatientAsyncConnection[Row] = await PatientAsyncConnection.connect(
            conninfo(dsn, application_name),
            autocommit=autocommit,
            prepare_threshold=prepare_threshold,
            context=adapters,
        )
    except (psycopg.Error, OSError) as error:
        raise explain(error, dsn) from error
    connection.patience = patience
    return connection


def conninfo(dsn: str, application_name: str) -> str:
    """libpq's connection string for `dsn`, password included: timeouts as above unless the DSN has others."""
    directory = embedded_directory(dsn)
    try:
        given = conninfo_to_dict(embedded.dsn(directory) if directory else dsn)
    except psycopg.ProgrammingError as error:
        raise _say(_BAD_DSN, _words(error), dsn) from None  # its text quotes the DSN, the password maybe
    ours = {"application_name": application_name, "client_encoding": "utf8"}
    return make_conninfo("", **(_UNLESS_IN_DSN | given | ours))


def connect_to_schema(
    dsn: str,
    *,
    application_name: str,
    prepare_threshold: int | None,
    patience: float | None = None,
    accepts_newer: bool = False,
) -> PatientConnection[Row]:
    """`connect`, to a database with this package's schema; else SchemaError, with nothing left open.

    `accepts_newer` as in `check_schema`.
    """
    connection = connect(dsn, application_name=application_name, prepare_threshold=prepare_threshold, patience=patience)
    try:
        check_schema(connection, accepts_newer=accepts_newer)
    except BaseException:
        connection.close()
        raise
    return connection


def check_schema(connection: psycopg.Connection[Any], *, accepts_newer: bool = False) -> bool:
    """Whether the database's schema is the one that this package was written for, and none newer.

    SchemaError if it is older, or newer unless `accepts_newer`: for whatever belongs to a pool that was there before
    the migration, as each migration leaves what the version before it needs.
    """
    newest = load.migrations()[-1].number
    try:
        row = connection.execute("select pgworker.schema_version()").fetchone()
    except psycopg.Error as error:
        raise explain(error, dsn_of(connection)) from error
    version = (row and row[0]) or 0
    where = f"The schema pgworker of the database at {redact(dsn_of(connection))}"
    if version < newest:
        raise SchemaError(f"{where} is at version {version}, this package needs {newest}. Run `pgworker migrate`.")
    if version > newest and not accepts_newer:
        raise SchemaError(
            f"{where} is at version {version}, this package knows only {newest}: "
            "the package is older than the database. Upgrade pgworker on this host."
        )
    return version == newest


def dsn_of(connection: psycopg.BaseConnection[Any]) -> str:
    """Where a connection leads, for `redact` and `explain`: what differs from libpq's own defaults, without secrets.

    Not `connection.info.dsn`, which asks for a home directory: the user of a container may have neither one nor a name.
    """
    found = {option.keyword.decode(): option for option in connection.pgconn.info}
    told = {name: found[name].val for name in _PLACE if found[name].val != found[name].compiled}
    return make_conninfo("", **{name: value.decode() for name, value in told.items() if value is not None})


def is_outage(error: BaseException) -> bool:
    """Whether `error` may pass by itself, so that trying again makes sense; otherwise it is a mistake or a bug."""
    if isinstance(error, psycopg.Error | OSError):
        return _cause(error, _words(error)).kind is DatabaseUnavailable
    return isinstance(error, DatabaseUnavailable)


def explain(error: psycopg.Error | OSError | PgworkerError, dsn: str) -> PgworkerError:
    """What `error` means to the user of `dsn`: the server's words and what to do, without the password.

    One of ours says so itself.
    """
    if isinstance(error, PgworkerError):
        return error
    words = _words(error)
    cause = _cause(error, words)
    directory = embedded_directory(dsn)
    if cause is _NOBODY_THERE and directory:
        return DatabaseUnavailable(
            f"No server is running in {directory}. Start one with `pgworker start --embedded={directory}`."
        )
    return _say(cause, words, dsn)


def is_farewell(error: BaseException) -> bool:
    """Whether the driver met the server's farewell right after the reply to COMMIT: whatever it says, that connection
    is gone. Internal errors of the server have a state."""
    return isinstance(error, psycopg.InternalError) and error.sqlstate is None


def explain_use(error: psycopg.Error, connection: psycopg.Connection[Any], dsn: str) -> PgworkerError:
    """`explain`, for what a statement on this connection has raised: OutcomeUnknown if the connection went with it.

    Otherwise the server has said itself that it has undone the statement.
    """
    if is_farewell(error):
        connection.close()
        told: PgworkerError = _say(_LOST, _words(error), dsn)
    else:
        told = explain(error, dsn)
    if connection.closed and isinstance(told, DatabaseUnavailable):
        return OutcomeUnknown(f"{told} If it was to change anything, that may have been done, or be done yet.")
    return told


def _say(cause: _Cause, words: str, dsn: str) -> PgworkerError:
    subject = f"PostgreSQL at {redact(dsn)}"
    if cause is _BAD_DSN:
        subject = "The DSN can't be used"
        words = re.sub(r'"[^"]*"?', '"…"', words)  # quotes pieces of the DSN, the password maybe
    return cause.kind(f"{subject}: {words.rstrip('.')}. {cause.advice}")


@dataclass(frozen=True, slots=True)
class _Cause:
    kind: type[PgworkerError]
    advice: str


_BAD_DSN = _Cause(
    ConfigurationError,
    "Correct it: postgresql://user:password@host:5432/database, host=… dbname=…, or embedded:DIR.",
)
_LOGIN = _Cause(
    ConfigurationError,
    "Check user and password in the DSN (or PGPASSWORD, ~/.pgpass), and who may log in from here (pg_hba.conf).",
)
_NO_DATABASE = _Cause(ConfigurationError, "Create it with `createdb`, or correct the database's name in the DSN.")
_ENCRYPTION = _Cause(ConfigurationError, "Check sslmode, sslrootcert and sslcert in the DSN, and TLS at the server.")
_FORBIDDEN = _Cause(
    ConfigurationError,
    "Grant the DSN's role what it lacks (connect and, to migrate, create on the database; "
    "in the schema pgworker the rights of pgworker_enqueuer, pgworker_worker or pgworker_admin; the first of them "
    "only enqueues), or name another role.",
)
_CLOSED_SOCKET = _Cause(ConfigurationError, "Run this as the user who runs the server, or connect by TCP.")
_NOT_MIGRATED = _Cause(SchemaError, "Run `pgworker migrate`.")
_UNKNOWN_HOST = _Cause(DatabaseUnavailable, "Check the host's name in the DSN, and that DNS answers here.")
_NOBODY_THERE = _Cause(DatabaseUnavailable, "Start PostgreSQL, or correct host and port in the DSN.")
_SILENCE = _Cause(DatabaseUnavailable, "Check host and port in the DSN, and the firewalls on the way.")
_HANGS = _Cause(
    DatabaseUnavailable,
    "The server hangs, or what is between (a pooler, a load balancer), or a lock is in the way: see pg_stat_activity.",
)
_FULL = _Cause(
    DatabaseUnavailable, "Use fewer workers, raise max_connections, or put a pooler between. Trying again may work."
)
_NOT_READY = _Cause(DatabaseUnavailable, "Try again when the server is up.")
_READ_ONLY = _Cause(
    DatabaseUnavailable, "Connect to the primary: name all hosts in the DSN, with target_session_attrs=read-write."
)
_RESOURCES = _Cause(DatabaseUnavailable, "Give the server the disk space, memory or limits that it asks for.")
_EXHAUSTED = _Cause(DatabaseUnavailable, "Raise the limits of this process: open files (ulimit -n), memory.")
_CONTENDED = _Cause(DatabaseUnavailable, "Somebody else's transaction was in the way. Try again.")
_CANCELLED = _Cause(
    DatabaseUnavailable,
    "It was undone: somebody cancelled it, or it took too long, behind a lock maybe. Try again; commands that only look"
    " take as long as PGOPTIONS='-c statement_timeout=10min' says.",
)
_POOLED = _Cause(
    ConfigurationError,
    "The DSN leads to a pooler that does not keep a session: `pgworker start --pooler`, or connect to PostgreSQL.",
)
_LOST = _Cause(DatabaseUnavailable, "Try again when the server can be reached.")
_BUG = _Cause(PgworkerError, "This is a bug of pgworker: please report it.")

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_BY_STATE = {
    "25006": _READ_ONLY,
    "25P03": _LOST,  # idle_in_transaction_session_timeout
    "25P04": _LOST,  # transaction_timeout
    "26000": _POOLED,  # a prepared statement is not there
    "28000": _LOGIN,
    "28P01": _LOGIN,
    "3D000": _NO_DATABASE,
    "42P05": _POOLED,  # a prepared statement is there already
    "42501": _FORBIDDEN,
    "53300": _FULL,
    "55006": _CONTENDED,  # object_in_use
    "55P03": _CONTENDED,  # lock_not_available
    "57014": _CANCELLED,
    "57P01": _NOT_READY,  # admin_shutdown
    "57P02": _NOT_READY,  # crash_shutdown
    "57P03": _NOT_READY,  # cannot_connect_now
    "57P05": _LOST,  # idle_session_timeout
    "58030": _RESOURCES,  # io_error
}
_BY_STATE_CLASS = {"08": _LOST, "40": _CONTENDED, "53": _RESOURCES}
_MISSING = {"3F000", "42P01", "42704", "42883"}  # schema, table, type, function

# libpq doesn't hand on the SQLSTATE of a refused connection, only words. A server that speaks another language than
# English ends at the last resort of `_cause`.
_BY_WORDS: tuple[tuple[str, _Cause], ...] = (
    (r"^(invalid (port|percent|connection option|URI|\w+ value)|could not match|bad value for)", _BAD_DSN),
    (r'^(missing "="|unterminated quoted|end of string reached|unexpected character|forbidden value)', _BAD_DSN),
    (r"definition of service|could not parse network address|Servname not supported", _BAD_DSN),
    (r"unrecognized configuration parameter|unsupported startup parameter", _BAD_DSN),
    (r"authentication failed|no password supplied|pg_hba\.conf|role .* does not exist", _LOGIN),
    (r"not permitted to log in|no such user|authentication method|channel binding|GSSAPI", _LOGIN),
    (r"database .* does not exist|no such database", _NO_DATABASE),
    (r"permission denied for", _FORBIDDEN),
    (r"too many (clients|connections)|remaining connection slots|no more connections allowed", _FULL),
    (r"starting up|shutting down|not yet accepting|not accepting|in recovery mode", _NOT_READY),
    (r"session is read-only|hot standby mode", _READ_ONLY),
    (r"does not support SSL|certificate|private key|SSL error: .*(handshake|version|protocol|alert)", _ENCRYPTION),
    (r"^Permission denied", _CLOSED_SOCKET),
    (r"failed to resolve host|could not translate host name", _UNKNOWN_HOST),
    (r"Too many open files|Cannot allocate memory", _EXHAUSTED),
    (r"Connection refused|No such file or directory", _NOBODY_THERE),
    (r"timeout expired|timed out|No route to host|Network is unreachable", _SILENCE),
)

_BEFORE_THE_WORDS = re.compile(
    r"(- host: .*?: (?=connection ))?(connection (failed|is bad): )?(connection to server .*? failed: )?(FATAL:\s*)?"
)


def _cause(error: psycopg.Error | OSError, words: str) -> _Cause:
    if isinstance(error, OSError):
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            return _EXHAUSTED
        return _LOST if isinstance(error, ConnectionError | TimeoutError) else _BUG
    if isinstance(error, Silence):
        return _HANGS
    if state := error.sqlstate:
        if state in _MISSING and "pgworker" in words:
            return _NOT_MIGRATED
        return _BY_STATE.get(state) or _BY_STATE_CLASS.get(state[:2]) or _BUG
    if isinstance(error, psycopg.errors.PipelineAborted):
        return _BUG  # the error of an earlier statement says what it is
    unnamed = _LOST if isinstance(error, psycopg.OperationalError) else _BUG
    return next((cause for pattern, cause in _BY_WORDS if re.search(pattern, words)), unnamed)


def _words(error: psycopg.Error | OSError) -> str:
    """The one line that says most: the server's if one answered, else that of the last attempt."""
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        return error.diag.message_primary
    lines = str(error).splitlines() or [type(error).__name__]
    line = next((line for line in reversed(lines) if "FATAL:" in line), lines[0])
    return _BEFORE_THE_WORDS.sub("", line, count=1)
