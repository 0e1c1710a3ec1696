"""Where settings come from: flags, PGWORKER_* variables, pgworker.toml, pyproject.toml, defaults, the first one wins.

An empty variable counts as unset. The database is one setting with three keys: the first layer that names one wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from pgworker.config.files import OWN_FILE, PROJECT_FILE, read_own, read_project
from pgworker.config.options import BY_KEY, DATABASE_KEYS, OPTIONS, PREFIX, Option
from pgworker.config.settings import PoolSettings
from pgworker.config.sources import EMBEDDED, accept_dsn
from pgworker.config.token import NoToken
from pgworker.errors import ConfigurationError

CONFIG_VARIABLE: Final = f"{PREFIX}CONFIG"
DATABASE_URL: Final = "DATABASE_URL"
"""Asked where no variable of ours names the database: many platforms set it."""

_DSN: Final = BY_KEY["dsn"].variable
_DEFAULT: Final = "default"
_OTHER_VARIABLES: Final = ["CONFIG", "PG_BINDIR"]
_OF_TESTS: Final = "TEST_"
_OTHERS: Final[Mapping[str, Any]] = MappingProxyType({"workers": 1, "metrics_token_file": NoToken.OFF})
"""With what any setting that can work alone does: an address may be any where there is no token on purpose."""
_LONGEST_DSN: Final = 1 << 16
"""Bytes; a file with more is another file."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A value, and who said so: `--workers`, `PGWORKER_WORKERS`, `pgworker.toml: workers`, `default`."""

    value: Any
    origin: str

    def blame(self, sentence: str) -> str:
        """A sentence that names the setting, with the place that is to be corrected in front of it."""
        place = self.origin.rpartition(": ")[0] or self.origin
        return sentence if self.origin.startswith("--") or self.origin == _DEFAULT else f"{place}: {sentence}"


@dataclass(frozen=True, slots=True)
class Sources:
    """What there is to ask. `flags` are by key, as written or None; `config` is what --config names."""

    environ: Mapping[str, str]
    directory: Path
    flags: Mapping[str, Any] = field(default_factory=dict)
    config: str | None = None


@dataclass(frozen=True, slots=True)
class Configuration:
    """All that a pool is told. `origins`: what the layers said, and which of them, by key; defaults are there too."""

    app: str | None
    settings: PoolSettings
    origins: Mapping[str, Setting]

    @property
    def starts_server(self) -> bool:
        return "embedded" in self.origins and self.origins["embedded"].value is not None

    def read_dsn(self) -> str | None:
        """Where the jobs are, by now; a file that holds the DSN is read here. None if nothing says so."""
        return _read_dsn(self.origins)


def configure(sources: Sources, *, workers: int) -> Configuration:
    """What the layers say, checked, for a pool of so many workers if they do not say how many.

    ConfigurationError, with the place and what to do, for the first thing that can't work.
    """
    found = _gather(sources, is_strict=True)
    found = {option.key: found.get(option.key) or Setting(option.default_value, _DEFAULT) for option in OPTIONS}
    if found["workers"].origin == _DEFAULT:
        found["workers"] = Setting(workers, _DEFAULT)
    of_the_pool = {option.key: found[option.key] for option in OPTIONS if option.is_of_the_pool}
    for key, setting in of_the_pool.items():
        _check_alone(key, setting)
    settings = PoolSettings(**{key: setting.value for key, setting in of_the_pool.items()})
    return Configuration(found["app"].value, settings, MappingProxyType(found))


def find_dsn(sources: Sources, *, is_strict: bool = True) -> str | None:
    """The DSN that the layers name, as libpq takes it or `embedded:DIR`; None if nothing does.

    ConfigurationError, without a word of the DSN. Not strict: what else the files say is not looked at.
    """
    return _read_dsn(_gather(sources, is_strict=is_strict))


def dsn_of_environment(environ: Mapping[str, str]) -> str | None:
    """Likewise, of the environment alone: what an App asks at every enqueue, so the usual case comes first."""
    if dsn := environ.get(_DSN):
        return accept_dsn(dsn, _DSN)
    return _read_dsn(_of_environment(environ, is_strict=False))


def likely_typos(environ: Mapping[str, str]) -> list[str]:
    """A sentence for each variable with our prefix that means nothing and looks like a setting's."""
    known = [option.variable.removeprefix(PREFIX) for option in OPTIONS] + _OTHER_VARIABLES
    ours = [name.removeprefix(PREFIX) for name in environ if name.startswith(PREFIX)]
    strange = [rest for rest in ours if rest not in known and not rest.startswith(_OF_TESTS)]
    close = {rest: get_close_matches(rest, known, n=1, cutoff=0.65) for rest in strange}
    return [f"{PREFIX}{rest} is no setting; did you mean {PREFIX}{names[0]}?" for rest, names in close.items() if names]


def _gather(sources: Sources, *, is_strict: bool) -> dict[str, Setting]:
    layers = [_of_flags(sources.flags), _of_environment(sources.environ, is_strict=is_strict)]
    if is_strict or not any(key in layer for layer in layers for key in DATABASE_KEYS):
        layers += _of_files(sources, is_strict=is_strict)
    found: dict[str, Setting] = {}
    for layer in layers:
        named = any(key in found for key in DATABASE_KEYS)
        found = {key: value for key, value in layer.items() if not (named and key in DATABASE_KEYS)} | found
    return found


def _of_flags(flags: Mapping[str, Any]) -> dict[str, Setting]:
    """What a command line says: words are as their kinds read them, repeated ones a tuple, switches bool."""
    found = {}
    for key, given in flags.items():
        if given is not None and given != ():
            value = BY_KEY[key].kind.parse(given) if isinstance(given, str) else given
            found[key] = Setting(value, BY_KEY[key].flags[-1].partition("/")[0])
    _refuse_two(found)
    return found


def _of_environment(environ: Mapping[str, str], *, is_strict: bool) -> dict[str, Setting]:
    """Of two that name the database the first one, in the order of DATABASE_KEYS: environments have many authors."""
    asked = OPTIONS if is_strict else [BY_KEY[key] for key in DATABASE_KEYS]
    found = {option.key: _variable(option, environ) for option in asked if environ.get(option.variable)}
    named = [key for key in DATABASE_KEYS if key in found and found[key].value is not None]
    for key in DATABASE_KEYS:
        if key not in named[:1]:
            found.pop(key, None)
    if not named and environ.get(DATABASE_URL):
        found["dsn"] = Setting(environ[DATABASE_URL], DATABASE_URL)
    return found


def _variable(option: Option, environ: Mapping[str, str]) -> Setting:
    try:
        return Setting(option.kind.parse(environ[option.variable]), option.variable)
    except ConfigurationError as error:
        raise ConfigurationError(f"{option.variable}: {error}") from None


def _of_files(sources: Sources, *, is_strict: bool) -> list[dict[str, Setting]]:
    named = sources.config or sources.environ.get(CONFIG_VARIABLE) or None
    own, project = Path(named or sources.directory / OWN_FILE), sources.directory / PROJECT_FILE
    layers = [_of_file(own, read_own(own, must_exist=named is not None, is_strict=is_strict))]
    if own != project:
        layers.append(_of_file(project, read_project(project, is_strict=is_strict)))
    return layers


def _of_file(path: Path, values: Mapping[str, Any]) -> dict[str, Setting]:
    found = {key: Setting(value, f"{path}: {key}") for key, value in values.items()}
    for key in DATABASE_KEYS:
        if key in found and found[key].value is None:  # embedded = false
            del found[key]
    _refuse_two(found)
    return found


def _refuse_two(found: Mapping[str, Setting]) -> None:
    named = [found[key].origin for key in DATABASE_KEYS if key in found]
    if len(named) > 1:
        raise ConfigurationError(f"{named[0]} and {named[1]} name two databases: give one of them")


def _check_alone(key: str, setting: Setting) -> None:
    """PoolSettings says what can't work; only here is known who has said it."""
    try:
        PoolSettings(**{**_OTHERS, key: setting.value})
    except ConfigurationError as error:
        raise ConfigurationError(setting.blame(str(error))) from None


def _read_dsn(found: Mapping[str, Setting]) -> str | None:
    named = {key: found[key] for key in DATABASE_KEYS if key in found and found[key].value is not None}
    if (dsn := named.get("dsn")) is not None:
        return accept_dsn(dsn.value, dsn.origin)
    if (directory := named.get("embedded")) is not None:
        return f"{EMBEDDED}{directory.value}"
    file = named.get("dsn_file")
    return None if file is None else accept_dsn(_read_secret(Path(file.value), file.origin), file.value)


def _read_secret(path: Path, origin: str) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST_DSN)
    except OSError as error:
        raise ConfigurationError(f"can't read the DSN from {path}, which {origin} names: {error.strerror}") from error
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}, which {origin} names, holds no DSN: it is not UTF-8 text") from None
