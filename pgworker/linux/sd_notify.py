"""Telling systemd how the service is doing: sd_notify(3) and sd_watchdog_enabled(3), the protocols in a few lines."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

_PATIENCE = 0.1  # seconds: a stuck receiver must not stall us


def notify(message: str) -> None:
    """Send assignments such as `READY=1`, one a line; does nothing without NOTIFY_SOCKET. Never raises."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # Linux's abstract namespace
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(_PATIENCE)
        sender.sendto(message.encode("utf-8", "replace"), address)


def watchdog_seconds(environ: Mapping[str, str], pid: int) -> float | None:
    """How long systemd waits for the next `WATCHDOG=1` of this process; None: it does not wait for any."""
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):  # meant for the process that has started us
        return None
    given = environ.get("WATCHDOG_USEC", "")
    return int(given) / 1e6 if given.isascii() and given.isdigit() and int(given) else None
