from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pgworker.config.settings import PoolSettings, parse_cpus, parse_listen
from pgworker.config.sources import UNREADABLE, accept_dsn, embedded_directory, redact
from pgworker.errors import ConfigurationError

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("dsn", "resolved"),
    [
        ("postgresql://u@h/db", "postgresql://u@h/db"),
        ("postgres://u@h/db", "postgresql://u@h/db"),
        ("postgresql+psycopg://u@h/db?x=1", "postgresql://u@h/db?x=1"),
        ("postgresql+asyncpg://u@h/db", "postgresql://u@h/db"),
        ("postgresql+psycopg2://", "postgresql://"),
        ("postgresql://u@h/db\n", "postgresql://u@h/db"),
        ("host = h dbname='my db'", "host = h dbname='my db'"),
        ("embedded:./data", "embedded:./data"),
    ],
)
def test_every_usual_form_of_a_dsn_is_accepted_and_given_libpqs_scheme(dsn: str, resolved: str) -> None:
    assert accept_dsn(dsn, "--dsn") == resolved


@pytest.mark.parametrize(
    "dsn", ["", " ", f"mysql://u:{SECRET}@h/db", SECRET, "embedded:", "postgresql:/h/db", "sqlite:///x"]
)
def test_anything_else_is_refused_with_its_source_but_not_its_text(dsn: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^--dsn .*; use ") as caught:
        accept_dsn(dsn, "--dsn")
    assert SECRET not in str(caught.value)


def test_embedded_names_a_directory_and_nothing_else_does() -> None:
    assert embedded_directory("embedded:./data") == Path("data")
    assert embedded_directory("postgresql://embedded:x@h/db") is None


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        (f"postgresql://u:{SECRET}@h:5432/db", "u@h:5432/db"),
        (f"postgres://u:{SECRET}@h/db?sslmode=require&sslpassword={SECRET}", "u@h/db"),
        (f"postgresql+asyncpg://u:a@{SECRET}@h/db", "u@h/db"),
        (f"postgresql://u:a/{SECRET}@h/db", "u@h/db"),
        (f"postgresql://u:a#{SECRET}@h/db", "u@h/db"),
        (f"postgresql://u:a\n{SECRET}@h/db", "u@h/db"),
        (f"postgresql://:{SECRET}@h/db", "h/db"),
        (f"postgresql:///db?host=/run/pg&user=me&password={SECRET}", "me@/run/pg/db"),
        (f"postgresql://u:{SECRET}@h1:1,[::1]:2/db", "u@h1:1,[::1]:2/db"),
        (f"postgresql://u:{SECRET}@h:5433/db?hostaddr=10.0.0.1", "u@h:5433/db"),
        (f"postgresql://u:{SECRET}@:5433/db?hostaddr=10.0.0.1", "u@10.0.0.1:5433/db"),
        (f"postgresql://u:{SECRET}@h:5433/db?host=other", "u@other:5433/db"),
        (f"postgresql://u:{SECRET}@h1,h2/db?port=6", "u@h1:6,h2:6/db"),
        (f"postgresql://u:{SECRET}@h1:1,h2/db?hostaddr=10.0.0.1,10.0.0.2", "u@h1:1,h2/db"),
        (f"host=::1 port=5 user=u password={SECRET}", "u@[::1]:5"),
        (f"host=h port=5 user=u password={SECRET} dbname=db", "u@h:5/db"),
        (f"user=u  password = 'a {SECRET}\\' x' host=h", "u@h"),
        (f"password=a\\ {SECRET} host=h", "h"),
        (f"password='' sslpassword={SECRET} user='my user'", "my user@"),
        (f"password='{SECRET}'host=h", "h"),
        (f"service=prod password={SECRET}", "service prod"),
        (f"password={SECRET}", "(libpq's defaults)"),
        ("embedded:/var/lib/x", "embedded:/var/lib/x"),
    ],
)
def test_a_dsn_is_shown_as_a_place_without_its_secrets(dsn: str, shown: str) -> None:
    assert redact(dsn) == shown


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://u:{SECRET}",
        f"postgresql://u:a?{SECRET}@h/db",
        f"postgresql://u@h/db?password=a@{SECRET}",
        f"postgresql://u:a@h/db?password=a@{SECRET}",
        f"postgresql://me@example.org:{SECRET}@h/db",
        f"password=a {SECRET} host=h",
        f"password='a {SECRET} host=h",
        f"password='a'{SECRET} host=h",
        f"dbname=postgresql://u:{SECRET}@h/db",
        f"dbname='password={SECRET}'",
        f"mysql://u:{SECRET}@h/db",
        SECRET,
    ],
)
def test_a_dsn_that_could_be_misread_is_not_shown_at_all(dsn: str) -> None:
    assert redact(dsn) == UNREADABLE


def test_the_defaults_are_the_documented_ones() -> None:
    settings = PoolSettings(workers=4)
    assert (settings.queues, settings.metrics_listen, settings.log_format) == (("default",), "127.0.0.1:9464", "text")
    assert (settings.lease_ttl, settings.drain_timeout, settings.cancel_grace, settings.term_grace) == (60, 25, 10, 5)
    assert (settings.poll_interval, settings.heartbeat_interval) == (1, 5)
    assert (settings.prefetch_seconds, settings.max_batch) == (0.05, 500)
    assert settings.retention == 7 * 86_400
    assert (settings.restart_backoff.base, settings.restart_backoff.cap) == (0.5, 60)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"workers": 0}, "workers must be a whole number from 1 to 1024"),
        ({"workers": 1025}, "workers must be a whole number from 1 to 1024"),
        ({"workers": True}, "workers must be a whole number from 1 to 1024"),
        ({"workers": 2.0}, "workers must be a whole number from 1 to 1024"),
        ({"max_batch": 0}, "max_batch must be a whole number from 1 to 10000"),
        ({"queues": ()}, "name at least one queue"),
        ({"queues": "default"}, "name at least one queue"),
        ({"queues": ("a", "b c")}, "'b c' can't name a queue"),
        ({"queues": ("a", "a")}, "queues names a twice"),
        ({"lease_ttl": 0.5}, "lease_ttl must be at least 1 s, not 0.5"),
        ({"drain_timeout": -1}, "drain_timeout must be between 0 seconds and 100 years, not -1"),
        ({"poll_interval": 0}, "poll_interval must be at least 0.01 s, not 0"),
        ({"heartbeat_interval": float("nan")}, "heartbeat_interval must be between"),
        ({"retention": 86_399}, "retention must be from 1 to 14 days, not 0.99"),
        ({"retention": timedelta(days=15)}, "retention must be from 1 to 14 days, not 15"),
        ({"retention": None}, "retention must be a number of seconds or a timedelta, not NoneType"),
        ({"retention": "7d"}, "retention must be a number of seconds or a timedelta, not str"),
        ({"metrics_listen": "9464"}, "'9464' names no address"),
        ({"boot_timeout": 0}, "boot_timeout must be at least 1 s, not 0"),
        ({"max_jobs": 0}, "max_jobs must be a whole number from 1 to 1000000000"),
        ({"max_age": 0.5}, "max_age must be at least 1 s, not 0.5"),
        ({"max_memory": 1 << 20}, "max_memory must be a whole number of bytes, at least 16M"),
        ({"memory_limit": 1e9}, "memory_limit must be a whole number of bytes, at least 16M"),
        ({"max_memory": 1 << 30, "memory_limit": 1 << 30}, "max_memory must be less than memory_limit: a worker"),
        ({"nice": -1}, "nice must be a whole number from 0 to 19"),
        ({"nice": 20}, "nice must be a whole number from 0 to 19"),
        ({"cpus": "all"}, "cpus must be auto, none or a list of CPUs like 0-3,6, not 'all'"),
        ({"cpus": "0,0-1"}, "cpus names a CPU twice: 0,0-1"),
        ({"log_level": "INFO"}, "log_level must be debug, info or warning, not 'INFO'"),
        ({"log_format": "xml"}, "log_format must be text or json, not 'xml'"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_in_a_sentence(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{sentence}"):
        PoolSettings(**{"workers": 1, **wrong})


def test_durations_may_be_given_as_timedeltas() -> None:
    assert PoolSettings(workers=1, lease_ttl=timedelta(minutes=2)).lease_ttl == 120.0  # type: ignore[arg-type]
    assert PoolSettings(workers=1, retention=timedelta(days=14)).retention == 1_209_600.0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("127.0.0.1:9464", ("127.0.0.1", 9464)),
        ("localhost:0", ("localhost", 0)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_an_address_to_listen_on_is_host_and_port(text: str, parsed: tuple[str, int]) -> None:
    assert parse_listen(text) == parsed


@pytest.mark.parametrize(
    "text",
    ["", ":", "9464", ":9464", "h:", "h:x", "h:-1", "h:65536", "h:٣", "::1:80", "[::1]", "[::g]:1", "a b:1", "[]:1"],
)
def test_other_addresses_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"127\.0\.0\.1:|\[::1\]:9464"):
        parse_listen(text)


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("auto", ()), ("none", ()), ("0", (0,)), ("0-3,6", (0, 1, 2, 3, 6)), ("6,0-1", (6, 0, 1)), ("2-2", (2,))],
)
def test_a_list_of_cpus_is_numbers_and_ranges_in_the_order_given(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpus(text) == cpus


@pytest.mark.parametrize("text", ["", ",", "0,", "-1", "1-", "3-1", "0 1", "0x1", "٣", "99999", "0-99999", "Auto"])
def test_other_lists_of_cpus_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigurationError, match="like 0-3,6"):
        parse_cpus(text)
