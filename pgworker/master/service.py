"""What lives and ends with a pool, and is started again when it dies: the private PostgreSQL of `--embedded`, and the
watcher of `--reload`."""

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
    """A child that is neither monitor nor worker."""

    @property
    def pid(self) -> int: ...

    def stop(self) -> None: ...


class ServiceKeeper:
    """Keeps one running; without one, it does nothing."""

    def __init__(self, name: str, service: Service | None, restart: Callable[[], Service] | None) -> None:
        self._name = name
        self._service = service
        self._restart = restart
        self._start_at = 0.0

    def bury(self, exit_: Exit) -> bool:
        """Whether this was the end of the service."""
        if self._service is None or exit_.pid != self._service.pid:
            return False
        log.error(
            "%s (pid %d): %s; it is started again",
            self._name,
            exit_.pid,
            exit_.describe(),
            extra=fields("service_ended"),
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
        except (PgworkerError, OSError) as error:
            log.error("%s does not start: %s", self._name, error, extra=fields("service_failed"))

    def stop(self) -> None:
        if self._service is not None:
            self._service.stop()
