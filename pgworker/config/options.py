"""Every option of `pgworker start`, once: flag, variable, key, form, help. All that reads or shows them goes by this.

`drain_timeout` is `--drain-timeout`, `PGWORKER_DRAIN_TIMEOUT`, `drain_timeout` in pgworker.toml and under
`[tool.pgworker]` in pyproject.toml, and the field of PoolSettings from which its default comes.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from dataclasses import fields as fields_of
from typing import Any, Final

from pgworker.config.kinds import NAMES, SIZE, SWITCH, TEXT, TIME, TOKEN_FILE, WHOLE, Kind, choice, or_off, or_switch
from pgworker.config.settings import PoolSettings

PREFIX: Final = "PGWORKER_"
EMBEDDED_DIRECTORY: Final = ".pgworker"
DATABASE_KEYS: Final = ("dsn", "dsn_file", "embedded")
"""Three ways to name one database: where a layer uses one of them, the layers below it are not asked for any."""


@dataclass(frozen=True, slots=True)
class Option:
    """One of them. `names` are the flags where the key alone does not give them, `default` says more than the value."""

    key: str
    kind: Kind
    section: str
    help: str
    metavar: str = ""
    names: tuple[str, ...] = ()
    default: str = ""

    @property
    def variable(self) -> str:
        return PREFIX + self.key.upper()

    @property
    def flags(self) -> tuple[str, ...]:
        flag = f"--{self.key.replace('_', '-')}"
        return (*self.names, f"{flag}/--no{flag[1:]}") if self.kind is SWITCH else self.names or (flag,)

    @property
    def is_of_the_pool(self) -> bool:
        """Whether PoolSettings has it."""
        return self.key in _FIELDS

    @property
    def default_value(self) -> Any:
        """None where there is none, or where it depends on the machine."""
        value = _FIELDS.get(self.key)
        return None if value is MISSING else value


_FIELDS: Final = {field.name: field.default for field in fields_of(PoolSettings)}

_WHAT = "What runs"
_STOP = "How it stops"
_CLAIM = "Leases and claims"
_LIMIT = "Limits of a worker"
_LOOK = "What it shows"
_DEVELOP = "For development"

OPTIONS: Final = (
    Option("app", TEXT, _WHAT, "Where the App is, such as shop.jobs:app.", "MODULE:APP"),
    Option("workers", WHOLE, _WHAT, "Worker processes.", "N", ("-w", "--workers"), "the CPUs we have"),
    Option("slots", WHOLE, _WHAT, "Jobs that one worker runs at a time.", "N"),
    Option("queues", NAMES, _WHAT, "A queue to serve; repeat it, first ones first.", "NAME", ("-q", "--queue")),
    Option("dsn", TEXT, _WHAT, "The database: postgresql://… or host=… dbname=…", "DSN"),
    Option("dsn_file", TEXT, _WHAT, "A file that holds the DSN, such as a container's secret.", "FILE"),
    Option("pooler", SWITCH, _WHAT, "The DSN leads to a pooler in transaction mode: prepare nothing, poll for all."),
    Option("preload", SWITCH, _WHAT, "Import the app once, in the master, and share its memory."),
    Option("drain_timeout", TIME, _STOP, "From TERM until running jobs are killed; asked to stop 2 s before.", "TIME"),
    Option("cancel_grace", TIME, _STOP, "From the cancel flag to SIGTERM, or the cancel of an async task.", "TIME"),
    Option("term_grace", TIME, _STOP, "What a worker gets from SIGTERM to SIGKILL.", "TIME"),
    Option("boot_timeout", TIME, _STOP, "What a new worker may take, the app's import included.", "TIME"),
    Option(
        "lease_ttl",
        TIME,
        _CLAIM,
        "How long a lease lasts unless renewed: ten round trips to the database or more.",
        "TIME",
    ),
    Option("poll_interval", TIME, _CLAIM, "How often an idle worker looks for jobs unasked.", "TIME"),
    Option("max_batch", WHOLE, _CLAIM, "Jobs that one claim takes at most.", "N"),
    Option("retention", TIME, _CLAIM, "How long ended jobs are kept: 1d to 14d.", "TIME"),
    Option("max_jobs", or_off(WHOLE), _LIMIT, "Replace a worker that has run so many jobs.", "N"),
    Option("max_memory", or_off(SIZE), _LIMIT, "Replace one with so much memory of its own, such as 512M.", "SIZE"),
    Option("max_age", or_off(TIME), _LIMIT, "Replace a worker that has lived for so long.", "TIME"),
    Option("memory_limit", or_off(SIZE), _LIMIT, "RLIMIT_DATA of a worker: beyond it allocations fail.", "SIZE"),
    Option(
        "cpus",
        TEXT,
        _LIMIT,
        "A CPU for each, if there are enough; none; or of 0-3,6.",
        "auto|none|LIST",
    ),
    Option("nice", WHOLE, _LIMIT, "Niceness of the workers.", "0-19"),
    Option("metrics_listen", or_off(TEXT), _LOOK, "Where /metrics and the health pages are.", "HOST:PORT|off"),
    Option(
        "metrics_token_file",
        TOKEN_FILE,
        _LOOK,
        "/metrics asks for the token in this file, read anew each time. Beyond this host: needed, or off.",
        "FILE|off",
    ),
    Option("log_format", choice("text", "json"), _LOOK, "How a line of the log looks.", "text|json"),
    Option("log_level", choice("debug", "info", "warning"), _LOOK, "What is logged.", "debug|info|warning"),
    Option("reload", SWITCH, _DEVELOP, "Replace the workers when a Python file of the app changes."),
    Option(
        "embedded",
        or_switch(TEXT, EMBEDDED_DIRECTORY),
        _DEVELOP,
        f"Run a private PostgreSQL in DIR.  [DIR: ./{EMBEDDED_DIRECTORY}]",
        "[DIR]",
    ),
)

BY_KEY: Final = {option.key: option for option in OPTIONS}
