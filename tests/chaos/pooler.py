"""PgBouncer in transaction mode in front of a server: what a session has kept is gone with the transaction.

with Pooler(server.dsn, directory) as pooler:
    psycopg.connect(pooler.dsn)
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.process.pool import eventually, free_port

_CONFIGURATION = """
[databases]
* = {server}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = {auth_type}
auth_file = {users}
{more}
admin_users = postgres
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 500
server_login_retry = 1
logfile = {log}
pidfile =
"""
_AUTH_QUERY = "auth_query = select rolname, rolpassword from pg_authid where rolname = $1"


class Pooler:
    """A pgbouncer with a directory of its own, which its account must be able to reach.

    It has `pool_size` connections for each database and user. `users` may log in, by `auth_type` and these `secrets`;
    with `auth_user` others may, too, whose secrets that one looks up at the server. Skips the test where there is no
    pgbouncer.
    """

    def __init__(
        self,
        server_dsn: str,
        directory: Path,
        *,
        users: tuple[str, ...] = ("postgres",),
        pool_size: int = 10,
        auth_type: str = "trust",
        secrets: Mapping[str, str] = {},
        auth_user: str | None = None,
    ) -> None:
        self._program = _find()
        self.port = free_port()
        self.dsn = self.through(server_dsn)
        self.log_file = directory / "pgbouncer.log"
        self._account = _account()
        self._directory = directory
        given = conninfo_to_dict(server_dsn)
        server = f"host={given['host']} port={given.get('port') or 5432}"
        known = {**dict.fromkeys(users, ""), **secrets}
        (directory / "users.txt").write_text("".join(f'"{user}" "{secret}"\n' for user, secret in known.items()))
        (directory / "pgbouncer.ini").write_text(
            _CONFIGURATION.format(
                server=server,
                port=self.port,
                users=directory / "users.txt",
                auth_type=auth_type,
                more="" if auth_user is None else f"auth_user = {auth_user}\n{_AUTH_QUERY}",
                pool_size=pool_size,
                log=self.log_file,
            )
        )
        self.log_file.touch()
        if self._account is not None:
            os.chown(self.log_file, self._account.pw_uid, self._account.pw_gid)
        self._process: subprocess.Popen[bytes] | None = None

    def through(self, dsn: str) -> str:
        """The same database, user and so on through this pooler."""
        return make_conninfo(dsn, host="127.0.0.1", port=self.port)

    def __enter__(self) -> Pooler:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it; returns when it accepts connections."""
        account = self._account
        self._process = subprocess.Popen(
            [self._program, "-q", "pgbouncer.ini"],
            cwd=self._directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            user=None if account is None else account.pw_uid,
            group=None if account is None else account.pw_gid,
            extra_groups=None if account is None else [],
        )
        eventually(self._accepts, lambda: f"a pooler that accepts: {self.log_file.read_text()}")

    def kill(self) -> None:
        """End it without a word to its clients."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """End it, and all connections through it, and start it anew."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Let the transactions that run end, and hold up all others, until `resume`."""
        self._command("pause")

    def resume(self) -> None:
        self._command("resume")

    def lead_to(self, dsn: str) -> None:
        """Another server from the next transaction of each client on; the clients' own connections stay."""
        given = conninfo_to_dict(dsn)
        file = self._directory / "pgbouncer.ini"
        server = f"* = host={given['host']} port={given.get('port') or 5432}"
        file.write_text(re.sub(r"^\* = .*$", server, file.read_text(), flags=re.MULTILINE))
        self._command("reload")
        self._command("reconnect")

    def _command(self, word: str) -> None:
        admin = make_conninfo("", host="127.0.0.1", port=self.port, user="postgres", dbname="pgbouncer")
        with psycopg.connect(admin, autocommit=True, cursor_factory=psycopg.ClientCursor) as connection:
            connection.execute(word.encode())

    def _accepts(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"pgbouncer has ended: {self.log_file.read_text()}"
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False


def _find() -> str:
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        pytest.skip("needs pgbouncer")
    return found


def _account() -> pwd.struct_passwd | None:
    """Under whom it runs where we are root: under whom a private server runs, whose socket nobody else may open."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise AssertionError("no account for pgbouncer")
