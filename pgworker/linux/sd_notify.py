"""Telling systemd how the service is doing: sd_notify(3), the protocol in 10 lines."""

from __future__ import annotations

import contextlib
import os
import socket

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
