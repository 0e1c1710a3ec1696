"""Flags, variables, files, defaults: which one wins, and what is said of one that can't be read."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from pgworker.config.layers import Configuration, Sources, configure, dsn_of_environment, find_dsn
from pgworker.config.options import BY_KEY, OPTIONS
from pgworker.config.settings import PoolSettings
from pgworker.config.token import NoToken
from pgworker.errors import ConfigurationError

SECRET = "s3cr3t"
ONLY_FROM_PYTHON = {"beat_interval", "heartbeat_interval", "prefetch_seconds", "restart_backoff"}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(own: str = "", project: str = "", config: str | None = None, **flags: Any) -> Configuration:
    """What the files of this directory, written with this text, and flags say; variables are flags in capitals."""
    environ = {name: flags.pop(name) for name in list(flags) if name.isupper()}
    if own:
        Path("pgworker.toml").write_text(own)
    if project:
        Path("pyproject.toml").write_text(project)
    return configure(Sources(environ, Path(), flags, config), workers=3)


def refused(own: str = "", project: str = "", **flags: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read(own, project, **flags).read_dsn()
    assert SECRET not in str(caught.value)
    return str(caught.value)


def test_every_setting_of_a_pool_is_an_option_and_every_option_is_one_or_says_app_or_database() -> None:
    known = {field.name for field in fields(PoolSettings)}
    assert {option.key for option in OPTIONS if option.is_of_the_pool} == known - ONLY_FROM_PYTHON
    assert BY_KEY.keys() - known == {"app", "dsn", "dsn_file", "embedded"}


@pytest.mark.usefixtures("directory")
def test_flags_go_before_variables_before_pgworker_toml_before_pyproject_toml_before_defaults() -> None:
    project = "[tool.pgworker]\nslots = 1\nnice = 2\nmax_jobs = 3\nmax_batch = 4\n"
    own = "slots = 11\nnice = 12\nmax_jobs = 13\n"
    read_ = read(own, project, PGWORKER_SLOTS="21", PGWORKER_NICE="18", slots="31")
    got = read_.settings
    assert (got.slots, got.nice, got.max_jobs, got.max_batch, got.lease_ttl) == (31, 18, 13, 4, 60)
    said = [read_.origins[key].origin for key in ("slots", "nice", "max_jobs", "max_batch", "lease_ttl")]
    assert said == ["--slots", "PGWORKER_NICE", "pgworker.toml: max_jobs", "pyproject.toml: max_batch", "default"]
    assert (got.workers, read_.origins["workers"].origin) == (3, "default")


@pytest.mark.usefixtures("directory")
def test_the_whole_of_a_pool_can_be_said_in_a_file() -> None:
    got = read("""
        app = "shop:app"
        dsn = "dbname=shop"
        workers = 2
        queues = ["mail", "default"]
        drain_timeout = "1m"
        term_grace = 2.5
        max_memory = "512M"
        memory_limit = 1073741824
        metrics_listen = "off"
        preload = true
        log_format = "json"
        log_level = "debug"
    """)
    assert (got.app, got.read_dsn(), got.starts_server) == ("shop:app", "dbname=shop", False)
    assert got.settings == PoolSettings(
        workers=2,
        queues=("mail", "default"),
        drain_timeout=60.0,
        term_grace=2.5,
        max_memory=512 << 20,
        memory_limit=1 << 30,
        metrics_listen=None,
        preload=True,
        log_format="json",
        log_level="debug",
    )


@pytest.mark.usefixtures("directory")
def test_variables_say_the_same_in_the_words_of_flags() -> None:
    got = read(
        PGWORKER_APP="shop:app",
        PGWORKER_WORKERS=" 2",
        PGWORKER_QUEUES="mail, default",
        PGWORKER_DRAIN_TIMEOUT="1m",
        PGWORKER_MAX_MEMORY="512M",
        PGWORKER_METRICS_LISTEN="off",
        PGWORKER_LOG_LEVEL="warning",
    )
    assert got.app == "shop:app"
    assert got.settings == PoolSettings(
        workers=2,
        queues=("mail", "default"),
        drain_timeout=60.0,
        max_memory=512 << 20,
        metrics_listen=None,
        log_level="warning",
    )


@pytest.mark.usefixtures("directory")
@pytest.mark.parametrize(
    ("word", "meant"),
    [(word, True) for word in ("1", "true", "Yes", "on")] + [(word, False) for word in ("0", "FALSE", "no", "off")],
)
def test_a_switch_of_the_environment_has_eight_words(word: str, meant: bool) -> None:
    assert read(PGWORKER_PRELOAD=word).settings.preload is meant
    assert "'maybe' is neither on nor off" in refused(PGWORKER_PRELOAD="maybe")


@pytest.mark.usefixtures("directory")
def test_a_flag_switches_off_what_a_file_switches_on_and_off_takes_a_limit_away() -> None:
    own = 'preload = true\nmax_jobs = 5\nmax_age = "off"\n'
    assert read(own).settings.preload
    got = read(own, preload=False, max_jobs="off").settings
    assert (got.preload, got.max_jobs, got.max_age) == (False, None, None)


@pytest.mark.usefixtures("directory")
def test_an_empty_variable_counts_as_unset() -> None:
    got = read("slots = 4\n", PGWORKER_SLOTS="", PGWORKER_DSN="", DATABASE_URL="")
    assert (got.settings.slots, got.read_dsn()) == (4, None)


@pytest.mark.usefixtures("directory")
def test_variables_that_are_no_settings_are_nobodys_business() -> None:
    assert read(PGWORKER_TEST_DSN="x", PGWORKER_WOKERS="9", PGWORKER_PG_BINDIR="/x").settings.workers == 3


# The database


@pytest.mark.usefixtures("directory")
@pytest.mark.parametrize(
    ("given", "dsn"),
    [
        ({"dsn": "dbname=flag", "PGWORKER_DSN": "dbname=variable"}, "dbname=flag"),
        ({"embedded": "here", "PGWORKER_DSN": "dbname=variable"}, "embedded:here"),
        ({"PGWORKER_DSN": "dbname=variable", "DATABASE_URL": "dbname=url"}, "dbname=variable"),
        ({"PGWORKER_DSN": "dbname=variable", "PGWORKER_DSN_FILE": "/nowhere"}, "dbname=variable"),
        ({"PGWORKER_EMBEDDED": "yes", "DATABASE_URL": "dbname=url"}, "embedded:.pgworker"),
        ({"PGWORKER_EMBEDDED": "no", "DATABASE_URL": "dbname=url"}, "dbname=url"),
        ({"PGWORKER_EMBEDDED": "data"}, "embedded:data"),
        ({"DATABASE_URL": "dbname=url"}, "dbname=url"),
        ({}, "dbname=file"),
    ],
)
def test_the_first_layer_that_names_a_database_decides(given: dict[str, str], dsn: str) -> None:
    assert read('dsn = "dbname=file"\n', '[tool.pgworker]\ndsn_file = "/nowhere"\n', **given).read_dsn() == dsn


@pytest.mark.usefixtures("directory")
def test_a_database_in_pyproject_toml_is_the_last_one_asked() -> None:
    project = "[tool.pgworker]\nembedded = true\n"
    got = read("embedded = false\n", project)
    assert (got.read_dsn(), got.starts_server) == ("embedded:.pgworker", True)
    got = read('dsn = "dbname=file"\n', project)
    assert (got.read_dsn(), got.starts_server) == ("dbname=file", False)


@pytest.mark.usefixtures("directory")
def test_two_databases_in_one_place_are_refused() -> None:
    assert refused(dsn="dbname=a", embedded="b") == "--dsn and --embedded name two databases: give one of them"
    assert refused('dsn = "dbname=a"\ndsn_file = "b"\n').startswith("pgworker.toml: dsn and pgworker.toml: dsn_file")


def test_a_file_with_the_dsn_is_read_late_and_found_beside_the_file_that_names_it(directory: Path) -> None:
    elsewhere = directory / "etc"
    elsewhere.mkdir()
    (elsewhere / "mail.toml").write_text('dsn_file = "dsn"\n')
    got = read("nice = 3\n", "[tool.pgworker]\nslots = 2\n", config=str(elsewhere / "mail.toml"))
    assert (got.settings.nice, got.settings.slots) == (0, 2), "it is read in place of pgworker.toml"
    (elsewhere / "dsn").write_text("postgres://app@db/shop\n")
    assert got.read_dsn() == "postgresql://app@db/shop"
    assert find_dsn(Sources({"PGWORKER_CONFIG": str(elsewhere / "mail.toml")}, Path())) == got.read_dsn()


@pytest.mark.usefixtures("directory")
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "can't read the DSN from secret, which PGWORKER_DSN_FILE names: No such file or directory"),
        (b"", "secret is empty; use postgresql://"),
        (SECRET.encode(), "secret is not a PostgreSQL DSN; use postgresql://"),
        (f"mysql://u:{SECRET}@h/d".encode(), "secret is not a PostgreSQL DSN; use postgresql://"),
        (b"\xff\xfe" + SECRET.encode(), "secret, which PGWORKER_DSN_FILE names, holds no DSN: it is not UTF-8 text"),
    ],
)
def test_a_file_without_a_dsn_is_named_and_its_content_is_not(content: bytes | None, sentence: str) -> None:
    if content is not None:
        Path("secret").write_bytes(content)
    assert refused(PGWORKER_DSN_FILE="secret").startswith(sentence)


@pytest.mark.usefixtures("directory")
def test_the_file_of_a_token_is_found_beside_the_file_that_names_it_and_off_is_no_file() -> None:
    Path("etc").mkdir()
    settings = Path("etc/mail.toml")
    for said, meant in (
        ("token", "etc/token"),
        ("/run/token", "/run/token"),
        ("off", NoToken.OFF),
        ("", NoToken.UNSAID),
    ):
        settings.write_text(f'metrics_token_file = "{said}"\n')
        assert read(config=str(settings)).settings.metrics_token_file == meant
    assert read(PGWORKER_METRICS_TOKEN_FILE="token").settings.metrics_token_file == "token"
    assert (
        read(metrics_token_file="off", PGWORKER_METRICS_TOKEN_FILE="token").settings.metrics_token_file is NoToken.OFF
    )


@pytest.mark.usefixtures("directory")
def test_address_and_token_may_come_from_different_layers() -> None:
    own = 'metrics_listen = "0.0.0.0:9464"\n'
    assert "needs --metrics-token-file FILE" in refused(own)
    assert read(own, metrics_token_file="off").settings.metrics_listen == "0.0.0.0:9464"
    assert read(own, PGWORKER_METRICS_TOKEN_FILE="token").settings.metrics_token_file == "token"
    assert read(own, metrics_listen="127.0.0.1:9464").settings.metrics_token_file is NoToken.UNSAID


@pytest.mark.usefixtures("directory")
def test_an_app_looks_for_its_database_only() -> None:
    Path("pgworker.toml").write_text('dsn = "dbname=file"\nfrom_a_later_release = 1\nnice = "x"\n')
    assert find_dsn(Sources({}, Path()), is_strict=False) == "dbname=file"
    assert dsn_of_environment({"PGWORKER_SLOTS": "x", "PGWORKER_DSN": "dbname=a"}) == "dbname=a"
    assert dsn_of_environment({}) is None


# What can't be read


@pytest.mark.usefixtures("directory")
@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ("wokers = 3\n", "pgworker.toml: there is no setting 'wokers'; did you mean workers?"),
        ("drain-timeout = 3\n", "pgworker.toml: there is no setting 'drain-timeout'; did you mean drain_timeout?"),
        ("[shop]\nx = 1\n", "pgworker.toml: there is no setting 'shop', and none is a table: write the keys"),
        ("zzz = 1\n", "pgworker.toml: there is no setting 'zzz'; `pgworker start --help` lists them all"),
        ('config = "x"\n', "pgworker.toml: config can't name another file here: give --config"),
        (f'workers = "{SECRET}"\n', "pgworker.toml: workers: this must be a whole number, not text"),
        ("workers = true\n", "pgworker.toml: workers: this must be a whole number, not true or false"),
        ("workers = 2.5\n", "pgworker.toml: workers: this must be a whole number, not a number"),
        ("workers = 0\n", "pgworker.toml: workers must be a whole number from 1 to 1024"),
        ("dsn = 5\n", "pgworker.toml: dsn: this must be text in quotes, not a number"),
        ('queues = "mail"\n', "pgworker.toml: queues: this must be a list of texts such as"),
        ("queues = [1]\n", "pgworker.toml: queues: this must be a list of texts such as"),
        ('queues = ["a b"]\n', "pgworker.toml: 'a b' can't name a queue"),
        ("preload = 1\n", "pgworker.toml: preload: this must be true or false, not a number"),
        ("drain_timeout = 2026-01-01\n", "pgworker.toml: drain_timeout: this must be a number of seconds or a time"),
        ('drain_timeout = "soon"\n', "pgworker.toml: drain_timeout: 'soon' is no time: give seconds"),
        ("drain_timeout = nan\n", "pgworker.toml: drain_timeout must be between 0 seconds"),
        ('max_memory = "much"\n', "pgworker.toml: max_memory: 'much' is no size"),
        ("max_memory = 1\n", "pgworker.toml: max_memory must be a whole number of bytes, at least 16M"),
        ('log_level = "loud"\n', "pgworker.toml: log_level: 'loud' is not one of debug, info, warning"),
        (f'nice = 1\ndsn = "{SECRET}\n', "pgworker.toml is not TOML: "),
    ],
)
def test_a_mistake_in_a_file_is_told_with_file_and_key(own: str, sentence: str) -> None:
    assert refused(own).startswith(sentence)


@pytest.mark.usefixtures("directory")
def test_a_line_that_is_no_toml_is_told_with_its_number() -> None:
    assert "pgworker.toml is not TOML: " in (told := refused("nice = 1\nslots 3\n"))
    assert "line 2" in told


def test_a_file_that_is_missing_or_can_not_be_read_is_named(directory: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"^there is no file absent\.toml: correct --config or PGWORKER_CONFIG"
    ):
        read(config="absent.toml")
    (directory / "pgworker.toml").write_bytes(b"nice = 1 # \xe4\n")
    assert refused() == "pgworker.toml is not UTF-8, as TOML must be: save it anew (byte 11)"
    (directory / "pgworker.toml").unlink()
    (directory / "pgworker.toml").mkdir()
    assert refused().startswith("can't read pgworker.toml: Is a directory")


@pytest.mark.usefixtures("directory")
def test_a_mistake_in_pyproject_toml_or_in_a_variable_is_told_likewise() -> None:
    table = "pyproject.toml [tool.pgworker]"
    assert refused(project="[tool.pgworker]\nslot = 2\n").startswith(f"{table}: there is no setting 'slot'; did you")
    assert refused(project="[tool]\npgworker = 2\n").startswith("pyproject.toml: tool.pgworker is no table")
    Path("pyproject.toml").unlink()
    assert refused(PGWORKER_NICE="20") == "PGWORKER_NICE: nice must be a whole number from 0 to 19"
    assert refused(PGWORKER_NICE="2O") == "PGWORKER_NICE: '2O' is not a whole number"
    assert refused(PGWORKER_QUEUES="a,,b").startswith("PGWORKER_QUEUES: '' can't name a queue")


@pytest.mark.usefixtures("directory")
def test_a_named_pyproject_toml_is_read_as_one() -> None:
    Path("pyproject.toml").write_text("[tool.pgworker]\nslots = 7\n[tool.other]\nx = 1\n")
    assert read(config="pyproject.toml").settings.slots == 7


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("drain_timeout", 25.0, "25s"),
        ("drain_timeout", 60.0, "60s"),
        ("drain_timeout", 300.0, "5m"),
        ("drain_timeout", 0.05, "0.05s"),
        ("retention", 604_800.0, "7d"),
        ("max_memory", 512 << 20, "512M"),
        ("max_memory", (1 << 30) + 1, "1073741825"),
        ("max_age", None, "off"),
        ("preload", False, "false"),
        ("queues", ("a", "b"), "a, b"),
        ("metrics_token_file", NoToken.OFF, "off"),
        ("metrics_token_file", NoToken.UNSAID, ""),
        ("metrics_token_file", "/run/token", "/run/token"),
    ],
)
def test_a_value_is_shown_as_it_may_be_written(key: str, value: object, shown: str) -> None:
    kind = BY_KEY[key].kind
    assert kind.show(value) == shown
    assert kind.parse(shown) == value
