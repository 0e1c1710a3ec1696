"""What queues and tasks may be called: safe in URLs, labels, log fields and shells without any quoting; and orgs."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable

from pgworker.errors import InvalidJob
from pgworker.model import exact

MAX_QUEUE_LENGTH = 128
MAX_TASK_LENGTH = 256
MAX_ORG_LENGTH = 256

_ALPHABET = re.compile(r"[A-Za-z0-9_.:-]+")


def host_name() -> str:
    """What this host is called, as text that can be stored: its name may be any bytes."""
    return socket.gethostname().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def check_queue(name: object) -> str:
    """`name` if a queue may have it; InvalidJob otherwise."""
    return _check("queue", name, MAX_QUEUE_LENGTH)


def check_queues(names: Iterable[object]) -> tuple[str, ...]:
    """Each of `names` once, in their order, if queues may have them; a string is one. InvalidJob otherwise."""
    return tuple(dict.fromkeys(check_queue(name) for name in ([names] if isinstance(names, str) else names)))


def check_task(name: object) -> str:
    """`name` if a task may have it; InvalidJob otherwise."""
    return _check("task", name, MAX_TASK_LENGTH)


def check_org(name: object) -> str:
    """`name` if an org may have this id, which is any text that PostgreSQL can store; InvalidJob otherwise."""
    text = exact.text(name)
    if text is None or not 1 <= len(text) <= MAX_ORG_LENGTH:
        found = exact.type_name(name) if text is None else f"one of {len(text)}"
        raise InvalidJob(f"org_id must be a string of 1 to {MAX_ORG_LENGTH} characters, not {found}")
    if "\0" in text or not _is_text(text):
        raise InvalidJob("org_id must not have the character U+0000 or lone surrogates, which PostgreSQL can't store")
    return text


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # lone surrogates
        return False
    return True


def _check(what: str, name: object, longest: int) -> str:
    text = exact.text(name)
    if text is None:
        raise InvalidJob(f"a {what} name must be a string, not {exact.type_name(name)}")
    if len(text) > longest or not _ALPHABET.fullmatch(text):
        shown = text if len(text) <= longest else text[:40] + "…"
        raise InvalidJob(
            f"{shown!r} can't name a {what}: use 1 to {longest} ASCII letters, digits and the signs _ . : -"
        )
    return text
