"""python -m tests.chaos.launch start …: pgworker's own command line with failpoints, see `tests.chaos.failpoints`.

The processes of a pool are forks of the one that is armed here. `pool DSN APP SETTINGS` starts a pool with any
settings, as JSON: those too that `pgworker start` has no option for. `run MODULE …` is another
program, a producer maybe.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tests.chaos.boundaries import put_around_everything
from tests.chaos.failpoints import DIRECTORY, Armed


def main(words: Sequence[str]) -> int:
    """Arm this process by its environment, and do what the words say; the exit code."""
    if "PGWORKER_CHAOS_DEFECT" in os.environ:
        from tests.chaos.defects.catalogue import plant_by_environment

        plant_by_environment(os.environ)
    if DIRECTORY in os.environ:
        put_around_everything(Armed.by_environment(os.environ).reach)
    if words[:1] == ["pool"]:
        return _start_pool(*words[1:])
    if words[:1] == ["run"]:
        sys.argv = [*words[1:]]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        return 0
    from pgworker.cli.root import main as command_line

    return command_line(list(words))


def pool_command(dsn: str, app: str, settings: Mapping[str, object]) -> list[str]:
    """The command line that starts a pool with these settings; what arms it is its environment's."""
    return [sys.executable, "-m", "tests.chaos.launch", "pool", dsn, app, json.dumps(settings)]


def _start_pool(dsn: str, app: str, given: str) -> int:
    """As `pgworker start` ends: neither Ctrl-C before there is a pool nor an app that is broken by then is a bug."""
    from pgworker.cli.pool import start_pool
    from pgworker.config.settings import PoolSettings
    from pgworker.errors import EXIT_INTERRUPTED, PgworkerError
    from pgworker.model.retry import Backoff

    settings: dict[str, Any] = json.loads(given)
    settings |= {name: tuple(value) for name, value in settings.items() if isinstance(value, list)}
    if "restart_backoff" in settings:
        settings["restart_backoff"] = Backoff(**settings["restart_backoff"])
    try:
        return start_pool(dsn, app, PoolSettings(**settings), starts_server=False)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except PgworkerError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
