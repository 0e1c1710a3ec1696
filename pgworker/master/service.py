"""The private PostgreSQL of `--embedded`: started before the pool, again when it dies, and stopped after the pool."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from pgworker.errors import PgworkerError
from pgworker.linux.pidfd import Exit
from pgworker.master.fields import fields

_RETRY = 5.0  # seconds between two tries to start it again

log = logging.getLogger("pgworker.master")


class Service(Protocol):
    """A child that is not forked by the master, but is its own."""

    @property
    def pid(self) -> int: ...

    def stop(self) -> None: ...


class ServiceKeeper:
    """Keeps one running; without one, it does nothing."""

    def __init__(self, service: Service | None, restart: Callable[[], Service] | None) -> None:
        self._service = service
        self._restart = restart
        self._start_at = 0.0

    def bury(self, exit_: Exit) -> bool:
        """Whether this was the end of the service."""
        if self._service is None or exit_.pid != self._service.pid:
            return False
        log.error(
            "the private PostgreSQL (pid %d): %s; it is started again",
            exit_.pid,
            exit_.describe(),
            extra=fields("postgres_ended"),
        )
        self._service = None
        return True

    def revive(self, now: float) -> None:
        """Start it again, if it has ended and the time has come."""
        if self._service is not None or self._restart is None or now < self._start_at:
            return
        self._start_at = now + _RETRY
        try:
            self._service = self._restart()
        except PgworkerError as error:
            log.error("the private PostgreSQL does not start: %s", error, extra=fields("postgres_failed"))

    def stop(self) -> None:
        if self._service is not None:
            self._service.stop()
