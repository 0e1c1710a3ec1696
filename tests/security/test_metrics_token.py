"""/metrics shows itself to whoever sends the token in its file, and to nobody else; the token shows itself nowhere."""

from __future__ import annotations

import ast
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from pgworker.config.settings import PoolSettings, is_loopback
from pgworker.config.token import LONGEST, SHORTEST, NoToken, is_readable_by_all, read_token
from pgworker.errors import EXIT_CONFIGURATION, ConfigurationError
from pgworker.monitor.bearer import Bearer
from pgworker.monitor.http import Pages
from tests.acceptance.test_cli import environment
from tests.process import jobs, test_pool
from tests.process.pool import APP, DEADLINE, ROOT, Pool, eventually, free_port
from tests.process.test_pool import Scene, StartPool
from tests.security.test_secrets import titles, told_to_children

scene = test_pool.scene
start_pool = test_pool.start_pool

TOKEN = "kanarienvogel-7d0c2f9be1"
OTHER = "zeisig-5f3e8a90c46d7b21"
SHOWS = ("kanarien", "vogel-7d0c")
"""Halves of the token: what shows one of them shows too much."""
METRIC = "pgworker_workers"
SAID_BY_ALL = {"server", "date", "content-type", "content-length"}

GUARDS = ("pgworker/monitor/bearer.py", "pgworker/monitor/http.py", "pgworker/config/token.py")


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: str


@dataclass(frozen=True, slots=True)
class Guarded:
    """A pool whose /metrics asks for a token."""

    pool: Pool
    port: int
    file: Path

    def ask(self, *headers: str, path: str = "/metrics", method: str = "GET") -> Answer:
        """Asked by hand, as no library would write some of these headers."""
        return asked(self.port, "\r\n".join([f"{method} {path} HTTP/1.0", *headers, "", ""]).encode("latin-1"))

    def write(self, content: str) -> None:
        """As it should be done: another file in the place of the old one."""
        new = self.file.with_suffix(".new")
        new.touch(0o600)
        new.write_text(content)
        new.replace(self.file)


def asked(port: int, request: bytes, host: str = "127.0.0.1") -> Answer:
    with closing(socket.create_connection((host, port), timeout=DEADLINE)) as connection:
        said = b""
        with suppress(ConnectionError):  # hung up on before all of the request was read
            connection.sendall(request)
        with suppress(ConnectionError):
            while more := connection.recv(65536):
                said += more
    head, _, body = said.decode("latin-1").partition("\r\n\r\n")
    status, *lines = head.split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Answer(int(status.split()[1]) if " " in status else 0, headers, body)


def token_file(directory: Path, content: str | bytes = f"{TOKEN}\n", mode: int = 0o600) -> Path:
    file = directory / "metrics_token"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    file.chmod(mode)
    return file


@pytest.fixture
def guarded(start_pool: StartPool, tmp_path: Path) -> Guarded:
    port, file = free_port(), token_file(tmp_path)
    pool = start_pool(metrics_listen=f"127.0.0.1:{port}", metrics_token_file=str(file), log_level="debug")
    found = Guarded(pool, port, file)
    eventually(lambda: found.ask(path="/readyz").status == 200, "a pool that is ready")
    return found


LET_IN = (
    f"Authorization: Bearer {TOKEN}",
    f"authorization:   bearer {TOKEN}",
    f"AUTHORIZATION: BEARER   {TOKEN}  ",
)
KEPT_OUT: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "empty": ("Authorization:",),
    "no token": ("Authorization: Bearer",),
    "a blank": ("Authorization: Bearer ",),
    "another": (f"Authorization: Bearer {OTHER}",),
    "a beginning": (f"Authorization: Bearer {TOKEN[:-1]}",),
    "more than it": (f"Authorization: Bearer {TOKEN}0",),
    "an end": (f"Authorization: Bearer {TOKEN[1:]}",),
    "in capitals": (f"Authorization: Bearer {TOKEN.upper()}",),
    "two words": (f"Authorization: Bearer {TOKEN} {TOKEN}",),
    "another scheme": (f"Authorization: Basic {TOKEN}",),
    "no scheme": (f"Authorization: {TOKEN}",),
    "a scheme that goes on": (f"Authorization: Bearers {TOKEN}",),
    "a tab": (f"Authorization: Bearer\t{TOKEN}",),
    "beyond ASCII": (f"Authorization: Bearer {TOKEN}\xe9",),
    "no ASCII at all": ("Authorization: Bearer \xe4\xf6\xfc\xdf",),
    "twice": (f"Authorization: Bearer {TOKEN}", f"Authorization: Bearer {TOKEN}"),
    "a wrong one, then it": (f"Authorization: Bearer {OTHER}", f"Authorization: Bearer {TOKEN}"),
    "it, then a wrong one": (f"Authorization: Bearer {TOKEN}", f"Authorization: Bearer {OTHER}"),
    "folded": ("Authorization: Bearer", f" {TOKEN}"),
    "elsewhere": (f"X-Authorization: Bearer {TOKEN}", f"Proxy-Authorization: Bearer {TOKEN}", f"Cookie: {TOKEN}"),
    "long": (f"Authorization: Bearer {TOKEN}{'0' * 60_000}",),
}


def test_the_token_is_asked_for_whatever_the_request_looks_like(guarded: Guarded) -> None:
    for line in LET_IN:
        answer = guarded.ask(line)
        assert (answer.status, METRIC in answer.body) == (200, True), line
        assert "www-authenticate" not in answer.headers
    for name, lines in KEPT_OUT.items():
        for method in ("GET", "HEAD"):
            answer = guarded.ask(*lines, method=method)
            assert (answer.status, answer.body, answer.headers["content-length"]) == (401, "", "0"), name
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers.keys() == SAID_BY_ALL | {"www-authenticate"}
    for path in (f"/metrics?token={TOKEN}", "/metrics?", "//metrics", "/metrics#x"):
        assert guarded.ask(path=path).status in (401, 404), path
        assert METRIC not in guarded.ask(path=path).body
    head = guarded.ask(LET_IN[0], method="HEAD")
    assert (head.status, head.body) == (200, "")
    assert int(head.headers["content-length"]) > 1000


def test_a_header_without_end_and_a_request_of_the_oldest_kind_are_answered_with_nothing_of_the_page(
    guarded: Guarded,
) -> None:
    endless = guarded.ask(f"Authorization: Bearer {TOKEN}{'0' * 100_000}")
    assert endless.status in (0, 431), "hung up on, or told"
    assert METRIC not in endless.body
    many = guarded.ask(*[f"Authorization: Bearer {OTHER}{number}" for number in range(200)], LET_IN[0])
    assert (many.status, METRIC in many.body) == (431, False)
    for oldest in (b"GET /metrics\r\n\r\n", f"GET /metrics\r\nAuthorization: Bearer {OTHER}\r\n\r\n".encode()):
        with closing(socket.create_connection(("127.0.0.1", guarded.port), timeout=DEADLINE)) as connection:
            connection.sendall(oldest)
            assert connection.recv(65536) == b""


def test_the_health_pages_ask_for_nothing_and_say_nothing_but_their_state(guarded: Guarded) -> None:
    for path, told in {
        "/healthz": {"alive\n", "the monitor is stuck\n"},
        "/readyz": {"ready\n", "no worker is ready, or no database\n"},
    }.items():
        for lines in ((), (f"Authorization: Bearer {OTHER}",), LET_IN[:1]):
            answer = guarded.ask(*lines, path=path)
            assert answer.status == 200
            assert answer.body in told
            assert answer.headers.keys() == SAID_BY_ALL
            assert (answer.headers["server"].strip(), answer.headers["content-type"]) == (
                "pgworker",
                "text/plain; charset=utf-8",
            )


def test_nor_do_they_say_more_when_something_is_wrong(tmp_path: Path) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    bearer = Bearer(str(token_file(tmp_path)))
    pages = Pages(listening, CollectorRegistry(), bearer, lambda: False, lambda: False)
    pages.serve_in_thread()
    try:
        port = listening.getsockname()[1]
        for path, told in {
            "/healthz": "the monitor is stuck\n",
            "/readyz": "no worker is ready, or no database\n",
        }.items():
            answer = asked(port, f"GET {path} HTTP/1.0\r\n\r\n".encode())
            assert (answer.status, answer.body, set(answer.headers)) == (503, told, SAID_BY_ALL)
        assert asked(port, b"GET /metrics HTTP/1.0\r\n\r\n").status == 401
    finally:
        pages.shutdown()
        pages.server_close()


def test_another_token_in_the_file_holds_from_the_next_request_on(guarded: Guarded) -> None:
    old, new = (f"Authorization: Bearer {token}" for token in (TOKEN, OTHER))
    assert (guarded.ask(old).status, guarded.ask(new).status) == (200, 401)
    guarded.write(f"{OTHER}\n")
    assert (guarded.ask(old).status, guarded.ask(new).status) == (401, 200)
    assert set(guarded.pool.workers) <= guarded.pool.processes().keys()


def test_while_the_file_holds_no_token_nobody_is_let_in_and_the_log_says_why(guarded: Guarded) -> None:
    for content in ("", "short", "two words are no token"):
        guarded.write(content)
        for lines in (LET_IN[:1], ("Authorization: Bearer ",), (f"Authorization: Bearer {content}",)):
            assert guarded.ask(*lines).status == 401, content
    guarded.file.unlink()
    assert guarded.ask(LET_IN[0]).status == 401
    line = guarded.pool.wait_for_log("event=token_unreadable")
    assert "nobody can see /metrics" in line
    assert str(guarded.file) in line
    assert guarded.ask(path="/readyz").status == 200
    guarded.write(TOKEN)
    assert guarded.ask(LET_IN[0]).status == 200


def test_the_token_shows_in_no_title_environment_log_page_or_command(
    guarded: Guarded, scene: Scene, tmp_path: Path
) -> None:
    scene.wait_for_status("succeeded", scene.enqueue(jobs.quick, "x"))
    pages = [guarded.ask(LET_IN[0], path=path).body for path in ("/", "/metrics", "/healthz", "/readyz")]
    assert METRIC in pages[1]
    guarded.ask(f"Authorization: Bearer {TOKEN}0")
    guarded.write(f"{TOKEN} twice {TOKEN}")
    assert guarded.ask(LET_IN[0]).status == 401
    guarded.pool.wait_for_log("event=token_unreadable")
    guarded.pool.send(signal.SIGUSR1)
    guarded.pool.wait_for_log("event=stack")
    shown = [titles(guarded.pool), told_to_children(guarded.pool), *pages]
    for words in (["config", "show", "--origin"], ["config", "show", "--json"]):
        shown.append(
            subprocess.run(
                [sys.executable, "-m", "pgworker", *words],
                env=environment(PGWORKER_METRICS_TOKEN_FILE=str(guarded.file)),
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=DEADLINE,
                check=True,
            ).stdout
        )
        assert guarded.file.name in shown[-1]
    guarded.pool.send(signal.SIGTERM)
    assert guarded.pool.wait() == 0
    shown.append(guarded.pool.log())
    assert [word for word in SHOWS if any(word in text for text in shown)] == []


def test_a_thousand_wrong_tokens_at_once_let_nobody_in_and_keep_nobody_out(guarded: Guarded) -> None:
    answers: list[int] = []

    def guess(number: int) -> None:
        answers.extend(
            guarded.ask(f"Authorization: Bearer {TOKEN[:-3]}{number:03}").status for number in range(number, 1000, 4)
        )

    threads = [threading.Thread(target=guess, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [401] * 1000
    assert guarded.ask(LET_IN[0]).status == 200


def compared(tree: ast.AST) -> list[str]:
    """Comparisons by == or != of something whose name says that it is a token, or what was sent as one."""
    suspects = ("token", "sent", "given", "secret", "authorization")
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and any(isinstance(sign, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for sign in node.ops)
        and any(isinstance(part, ast.Name) and any(word in part.id for word in suspects) for part in ast.walk(node))
        and not all(isinstance(one, ast.Constant) or ast.unparse(one).startswith("len(") for one in node.comparators)
    ]


def test_tokens_are_compared_in_constant_time_and_in_no_other_way() -> None:
    trees = {name: ast.parse((ROOT / name).read_text()) for name in GUARDS}
    calls = [
        (name, ast.unparse(node.func))
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("compare_digest")
    ]
    assert calls == [(GUARDS[0], "hmac.compare_digest")]
    assert [found for tree in trees.values() for found in compared(tree)] == []
    assert compared(ast.parse("sent == token")) == ["sent == token"], "it would be found"
    assert compared(ast.parse("token in (sent, old_token)")) != []


# What is refused at the start


BAD_FILES: dict[str, tuple[bytes | None, str]] = {
    "missing": (None, "No such file or directory"),
    "empty": (b"", "it is empty"),
    "blank": (b" \n\t\n", "it is empty"),
    "short": (TOKEN[: SHORTEST - 1].encode(), f"a token has from {SHORTEST} to {LONGEST} characters"),
    "long": (b"x" * (LONGEST + 1), f"a token has from {SHORTEST} to {LONGEST} characters"),
    "huge": (b"x" * (1 << 20), f"a token has from {SHORTEST} to {LONGEST} characters"),
    "umlauts": (f"{TOKEN}ä".encode(), "one word of printable ASCII"),
    "bytes": (b"\xff\x00" + TOKEN.encode(), "one word of printable ASCII"),
    "lines": (f"{TOKEN}\n{OTHER}\n".encode(), "one word of printable ASCII"),
    "two words": (f"{TOKEN} {OTHER}\n".encode(), "one word of printable ASCII"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_without_a_token_is_named_with_what_to_do_and_without_its_content(name: str, tmp_path: Path) -> None:
    content, sentence = BAD_FILES[name]
    file = tmp_path / "metrics_token" if content is None else token_file(tmp_path, content)
    with pytest.raises(ConfigurationError) as caught:
        read_token(file)
    told = str(caught.value)
    assert sentence in told
    assert str(file) in told
    assert ("openssl rand -hex 32" in told) == (content is not None)
    assert not any(word in told for word in SHOWS)


@pytest.mark.parametrize(
    "content", [TOKEN, f"\n {TOKEN}\r\n", "x" * SHORTEST, "x" * LONGEST, "!#$%&'()*+,-./:;<=>?@[]^_`{|}~"]
)
def test_a_token_is_what_the_file_holds_without_blanks_around_it(content: str, tmp_path: Path) -> None:
    assert read_token(token_file(tmp_path, content)) == content.strip().encode()


def test_a_pipe_and_a_directory_hold_no_token_and_nobody_waits_for_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ConfigurationError, match="is no regular file"):
        read_token(pipe)
    with pytest.raises(ConfigurationError, match=r"no regular file|Is a directory"):
        read_token(tmp_path)


def test_who_may_read_the_file_is_found_out(tmp_path: Path) -> None:
    assert [is_readable_by_all(token_file(tmp_path, mode=mode)) for mode in (0o400, 0o440, 0o600, 0o444, 0o604)] == [
        *(False, False, False),
        *(True, True),
    ]


NEEDS = "beyond this host, needs --metrics-token-file FILE (or PGWORKER_METRICS_TOKEN_FILE), or off"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "[::1]", "localhost", "LocalHost"])
def test_on_loopback_no_token_is_needed(host: str) -> None:
    PoolSettings(workers=1, metrics_listen=f"{host}:9464")
    PoolSettings(workers=1, metrics_listen=f"{host}:9464", metrics_token_file="token")


@pytest.mark.parametrize(
    "host",
    [
        *("0.0.0.0", "[::]", "10.0.0.1", "192.168.1.1", "[fe80::1]", "[2001:db8::1]", "[::ffff:10.0.0.1]", "128.0.0.1"),
        *("web-1.example", "127.0.0.1.example", "localhost.example", "127", "0"),
    ],
)
def test_beyond_this_host_there_is_a_token_or_somebody_has_said_that_none_is_needed(host: str) -> None:
    listen = f"{host}:9464"
    with pytest.raises(ConfigurationError) as caught:
        PoolSettings(workers=1, metrics_listen=listen)
    assert NEEDS in str(caught.value)
    assert str(caught.value).startswith(f"/metrics at {listen}, ")
    PoolSettings(workers=1, metrics_listen=listen, metrics_token_file=NoToken.OFF)
    PoolSettings(workers=1, metrics_listen=listen, metrics_token_file="token")


def test_an_address_counts_as_loopback_only_where_the_kernel_thinks_so_too() -> None:
    """Each that we take for one can be reached by a socket that is bound to 127.0.0.1 or ::1, and by no other."""
    for host in ("127.0.0.1", "127.8.9.10", "localhost", "::1"):
        assert is_loopback(host)
        with suppress(OSError):  # no IPv6 on this host
            (family, *_, address) = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
            with closing(socket.create_server(address[:2], family=family)) as listening:
                found = listening.getsockname()[0]
                assert found == "::1" or found.startswith("127.")


def start_words(*words: str, directory: Path, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pgworker", "start", "--app", APP, "-w", "1", *words]
    return subprocess.Popen(
        command,
        cwd=directory,
        env=environment(PYTHONPATH=str(ROOT), **variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_pool_refuses_to_start_with_78_and_a_sentence(dsn: str, tmp_path: Path) -> None:
    """By flag, variable and file; told before the port is bound."""
    short = tmp_path / "short"
    short.write_text(TOKEN[:8])
    (tmp_path / "mine.toml").write_text('metrics_listen = "0.0.0.0:1"\n')
    everywhere = ("--metrics-listen", f"0.0.0.0:{free_port()}")
    asked: dict[str, tuple[tuple[str, ...], dict[str, str], str]] = {
        "flag": (everywhere, {}, NEEDS),
        "variable": ((), {"PGWORKER_METRICS_LISTEN": "[::]:1"}, NEEDS),
        "file": (("--config", "mine.toml"), {}, NEEDS),
        "empty": (everywhere, {"PGWORKER_METRICS_TOKEN_FILE": ""}, NEEDS),
        "empty flag": ((*everywhere, "--metrics-token-file", ""), {}, NEEDS),
        "missing": (("--metrics-token-file", "nowhere"), {}, "nowhere: No such file or directory. Correct"),
        "short": ((), {"PGWORKER_METRICS_TOKEN_FILE": str(short)}, f"{short} holds no token for /metrics: a token has"),
    }
    with ExitStack() as started:
        running = {
            name: started.enter_context(start_words(*words, "--dsn", dsn, directory=tmp_path, **variables))
            for name, (words, variables, _) in asked.items()
        }
        for name, (*_, sentence) in asked.items():
            told = running[name].communicate(timeout=DEADLINE)[1]
            assert running[name].returncode == EXIT_CONFIGURATION, (name, told)
            assert told.startswith("pgworker: ")
            assert sentence in told, name
            assert len(told.splitlines()) == 1, told
            assert "Traceback" not in told
            assert not any(word in told for word in SHOWS)


def own_address() -> str:
    """Another address of this host than its loopback; nothing is sent to find it."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("needs an address beside 127.0.0.1")
        return str(probe.getsockname()[0])


def test_on_all_addresses_a_pool_starts_with_a_token_and_tells_if_others_may_read_it(
    start_pool: StartPool, tmp_path: Path
) -> None:
    where, port, file = own_address(), free_port(), token_file(tmp_path, mode=0o644)
    pool = start_pool(workers=1, metrics_listen=f"0.0.0.0:{port}", metrics_token_file=str(file))
    assert asked(port, b"GET /metrics HTTP/1.0\r\n\r\n", where).status == 401
    request = f"GET /metrics HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
    assert asked(port, request, where).status == 200
    assert f"chmod o= {file}" in pool.wait_for_log("event=token_readable")
    assert not any(word in pool.log() for word in SHOWS)


def test_with_off_on_purpose_everybody_is_let_in(start_pool: StartPool) -> None:
    where, port = own_address(), free_port()
    start_pool(workers=1, metrics_listen=f"0.0.0.0:{port}", metrics_token_file="off")
    assert asked(port, b"GET /metrics HTTP/1.0\r\n\r\n", where).status == 200


def test_a_relative_path_is_meant_from_where_its_file_is_and_holds_though_the_app_goes_elsewhere(
    start_pool: StartPool, tmp_path: Path
) -> None:
    token_file(tmp_path)
    port = free_port()
    settings = tmp_path / "mine.toml"
    settings.write_text('metrics_token_file = "metrics_token"\npreload = true\n')
    wanderer = tmp_path / "wanderer.py"
    wanderer.write_text("import os\nfrom pgworker import App\napp = App()\nos.chdir('/')\n")
    options = {"config": settings.name, "metrics_listen": f"127.0.0.1:{port}"}
    start_pool(workers=1, app="wanderer:app", cwd=tmp_path, **options)
    request = f"GET /metrics HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
    assert [asked(port, one).status for one in (b"GET /metrics HTTP/1.0\r\n\r\n", request)] == [401, 200]


def test_where_there_is_no_page_the_file_is_not_asked_for(start_pool: StartPool, tmp_path: Path) -> None:
    start_pool(workers=1, metrics_listen="off", metrics_token_file=str(tmp_path / "nowhere"))
