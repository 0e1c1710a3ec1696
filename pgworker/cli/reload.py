"""`start --reload`: a process that watches the files of the app and asks the master for a rolling restart.

A watcher has threads, and the master must not: so it is a child, which ends with the master and is started again by it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import setproctitle

from pgworker.errors import EXIT_CONFIGURATION, ConfigurationError
from pgworker.linux.fork import fork_child
from pgworker.linux.pidfd import kill_group
from pgworker.observe import logs

_QUIET_MS = 200
"""One save may be several events, and one checkout many files: they are over when nothing has come for so long."""
_ROUND_MS = 1000
_MOST_NAMES = 3
_INSTALLED = ("site-packages", "dist-packages")

log = logs.logger("reload")


@dataclass(frozen=True, slots=True)
class Watcher:
    """The running one."""

    pid: int

    def stop(self) -> None:
        kill_group(self.pid, signal.SIGKILL)  # it holds nothing


def check_installed() -> None:
    """ConfigurationError, with what to install, if there is no library to watch with."""
    if find_spec("watchfiles") is None:
        raise ConfigurationError("--reload needs watchfiles: pip install 'pgworker[reload]'")


def start(app_path: str) -> Watcher:
    """Fork one for the project of this app. OSError if there can be no process."""
    master = os.getpid()
    return Watcher(fork_child(lambda: _watch(app_path, master), keep_fds=(), death_signal=signal.SIGKILL, blocked=()))


def _watch(app_path: str, master: int) -> int:
    logs.set_process("watcher")
    setproctitle.setproctitle("pgworker: watcher")
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    places = _places(app_path)
    told = " and ".join(map(str, places))
    try:
        for number, changed in enumerate(_rounds(places)):
            if number == 0:  # not before: now it is true
                log.info("Python files in %s are watched", told, extra=logs.fields("files_watched"))
            if changed:
                log.info("%s changed: HUP", _shortened(changed), extra=logs.fields("files_changed"))
                os.kill(master, signal.SIGHUP)
    except (OSError, RuntimeError) as error:  # the library's own errors are of both kinds
        advice = "Is fs.inotify.max_user_watches too low?"
        log.error("can't watch %s: %s. %s", told, error, advice, extra=logs.fields("watch_failed"))
        return EXIT_CONFIGURATION
    return 0


def _rounds(places: Sequence[Path]) -> Iterator[list[str]]:
    """The Python files that have changed together, for ever; nothing about once a second while nothing does."""
    from watchfiles import DefaultFilter, PythonFilter, watch

    class Project(PythonFilter):
        ignore_dirs = (*DefaultFilter.ignore_dirs, *_INSTALLED)

    for changes in watch(
        *places,
        watch_filter=Project(),
        step=_QUIET_MS,
        rust_timeout=_ROUND_MS,
        yield_on_timeout=True,
        ignore_permission_denied=True,
        raise_interrupt=False,
    ):
        yield sorted(path for _, path in changes)


def _places(app_path: str) -> list[Path]:
    """This directory, and that of the app's package if it is elsewhere and no installed one."""
    here = Path.cwd()
    if str(here) not in sys.path:
        sys.path.insert(0, str(here))
    spec = find_spec(app_path.partition(":")[0].partition(".")[0])
    homes = [] if spec is None else list(spec.submodule_search_locations or [])
    if spec is not None and not homes and spec.origin is not None:
        homes = [str(Path(spec.origin).parent)]
    others = [Path(home).resolve() for home in homes]
    return [here, *(o for o in others if not o.is_relative_to(here) and not set(o.parts) & {*_INSTALLED})]


def _shortened(paths: Sequence[str]) -> str:
    here = f"{Path.cwd()}/"
    more = f" and {len(paths) - _MOST_NAMES} more" if len(paths) > _MOST_NAMES else ""
    return f"{', '.join(path.removeprefix(here) for path in paths[:_MOST_NAMES])}{more}"
