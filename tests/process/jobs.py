"""The app of the pools under test: handlers that say in a ledger when they run, and die, hang or write as asked.

The ledger and the gates are files in `directory`. A gate is open once the file of its name exists.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import psycopg
from psycopg.rows import dict_row

from pgworker import App, Backoff, Context, Job, Retry, Snooze
from tests.chaos.evidence import append

app = App()
_SOON = Backoff(base=0.05, cap=0.2)
_LOOK = 0.01  # seconds between two looks at a gate


def note(ctx: Context, directory: str, event: str, name: str) -> None:
    """Append a line to the ledger: whole also when the next instruction kills this process."""
    append(Path(directory, "ledger"), event, name, ctx.job.execution, os.getpid())


def wait_for_gate(directory: str, name: str) -> None:
    while not Path(directory, name).exists():
        time.sleep(_LOOK)


async def wait_for_gate_async(directory: str, name: str) -> None:
    while not Path(directory, name).exists():
        await asyncio.sleep(_LOOK)


@app.task(backoff=_SOON)
def quick(ctx: Context, directory: str, name: str, seconds: float = 0.0) -> None:
    """Take a moment, and no more."""
    note(ctx, directory, "start", name)
    time.sleep(seconds)


@app.task(backoff=_SOON)
def hold(ctx: Context, directory: str, name: str) -> None:
    """Run until the gate opens, deaf to everything else."""
    note(ctx, directory, "start", name)
    wait_for_gate(directory, name)
    note(ctx, directory, "end", name)


@app.task(backoff=Backoff(base=10_000))
def hold_patiently(ctx: Context, directory: str, name: str) -> None:
    """As `hold`, to be tried again much later."""
    hold(ctx, directory, name)


@app.task(backoff=_SOON)
def cooperate(ctx: Context, directory: str, name: str) -> None:
    """Run until asked to stop."""
    note(ctx, directory, "start", name)
    ctx.wait_cancelled(60)
    note(ctx, directory, "stop", name)
    ctx.raise_if_cancelled()


@app.task(backoff=_SOON)
def stop_quietly(ctx: Context, directory: str, name: str) -> str:
    """Run until asked to stop; return then, with what there is by now."""
    note(ctx, directory, "start", name)
    while not ctx.cancelled:
        time.sleep(_LOOK)
    note(ctx, directory, "stop", name)
    return "half of it"


@app.task(backoff=_SOON)
async def hold_async(ctx: Context, directory: str, name: str) -> None:
    """Wait for the gate without a look at the flag; say so when cancelled."""
    note(ctx, directory, "start", name)
    try:
        await wait_for_gate_async(directory, name)
    except asyncio.CancelledError:
        note(ctx, directory, "stop", name)
        raise
    note(ctx, directory, "end", name)


@app.task(backoff=_SOON)
async def cooperate_async(ctx: Context, directory: str, name: str) -> None:
    """Await until asked to stop; return then."""
    note(ctx, directory, "start", name)
    while not ctx.cancelled:
        await asyncio.sleep(_LOOK)
    note(ctx, directory, "stop", name)


@app.task(backoff=_SOON)
async def resist(ctx: Context, directory: str, name: str) -> None:
    """Swallow the cancellation, in the first execution, and block the event loop from then on."""
    note(ctx, directory, "start", name)
    try:
        await wait_for_gate_async(directory, name)
    except asyncio.CancelledError:
        note(ctx, directory, "stop", name)
        wait_for_gate(directory, name)


@app.task(backoff=_SOON)
async def block_the_loop(ctx: Context, directory: str, name: str) -> None:
    """Keep all that is on the event loop from going on until the gate opens."""
    note(ctx, directory, "start", name)
    wait_for_gate(directory, name)
    note(ctx, directory, "end", name)


@app.task(backoff=_SOON)
async def cancel_oneself(ctx: Context, directory: str, name: str, what: str) -> None:
    """Leave a cancellation behind for whatever this task, or every task of the loop, awaits next."""
    note(ctx, directory, "start", name)
    async with ctx.transaction_async() as connection:
        await connection.execute("insert into effect values (%s, %s)", [ctx.job.id, ctx.job.execution])
    if ctx.job.execution > 1:
        return
    if what == "this task":
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
    elif what == "the loop":
        asyncio.get_running_loop().stop()


@app.task(backoff=_SOON, max_attempts=3)
def nap(ctx: Context, directory: str, name: str, seconds: float = 0.0, failures: int = 0) -> None:
    """Say when it starts and ends; fail in the first so many executions."""
    note(ctx, directory, "start", name)
    time.sleep(seconds)
    note(ctx, directory, "end", name)
    if ctx.job.failures < failures:
        raise ValueError("as asked")


@app.task(backoff=_SOON, max_attempts=3)
async def nap_async(ctx: Context, directory: str, name: str, seconds: float = 0.0, failures: int = 0) -> None:
    """As `nap`."""
    note(ctx, directory, "start", name)
    await asyncio.sleep(seconds)
    note(ctx, directory, "end", name)
    if ctx.job.failures < failures:
        raise ValueError("as asked")


@app.task(backoff=_SOON)
def hold_the_gil(ctx: Context, directory: str, name: str, seconds: float) -> None:
    """Sleep in C without letting another thread of this process run."""
    note(ctx, directory, "start", name)
    ctypes.PyDLL(None).usleep(round(seconds * 1e6))
    note(ctx, directory, "end", name)


@app.task(backoff=_SOON)
def lock_up_the_gil(ctx: Context, directory: str, name: str) -> None:
    """Wait in C, for ever and with the GIL, for a mutex of one's own; no signal ends that."""
    note(ctx, directory, "start", name)
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)


@app.task(backoff=_SOON)
def leave_a_child(ctx: Context, directory: str, name: str) -> None:
    """Start a process that nobody waits for."""
    note(ctx, directory, "start", name)
    os.posix_spawnp("sleep", ["sleep", "1000"], os.environ)


@app.task(backoff=_SOON)
def die(ctx: Context, directory: str, name: str, how: str, executions: int = 1) -> None:
    """End the process in the first so many executions."""
    note(ctx, directory, "start", name)
    if ctx.job.execution <= executions:
        end_process(how)


@app.task(backoff=_SOON, max_attempts=1)
def die_late(ctx: Context, directory: str, name: str) -> None:
    """End the process: the second time when the gate opens, then on trial, but later than a first trial lasts."""
    note(ctx, directory, "start", name)
    if ctx.job.execution == 2:
        wait_for_gate(directory, name)
    elif ctx.job.execution > 2:
        time.sleep(0.8)
    end_process("exit")


@app.task(backoff=_SOON, max_attempts=1)
def die_beside(ctx: Context, directory: str, name: str, other: str) -> None:
    """End the process: the first two times a fifth of a second after that other job has begun beside this one."""
    note(ctx, directory, "start", name)
    if ctx.job.execution < 3:
        begun = f"start {other} {ctx.job.execution} {os.getpid()}"
        while begun not in Path(directory, "ledger").read_text().splitlines():
            time.sleep(_LOOK)
        time.sleep(0.2)
    end_process("exit")


@app.task(backoff=_SOON)
async def die_async(ctx: Context, directory: str, name: str, how: str, executions: int = 1) -> None:
    """As `die`, on the event loop."""
    note(ctx, directory, "start", name)
    if ctx.job.execution <= executions:
        end_process(how)


def end_process(how: str) -> None:
    """By kill, segfault or exit."""
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "segfault":
        ctypes.string_at(0)
    elif how == "exit":
        os._exit(3)
    elif how == "exit quietly":
        os._exit(0)


@app.task(backoff=_SOON)
def effect(ctx: Context, directory: str, name: str, then: str = "") -> None:
    """Write a row in the job's own transaction; in its first execution, go wrong as asked."""
    note(ctx, directory, "start", name)
    goes_wrong = ctx.job.execution == 1
    if goes_wrong and then == "wait":
        wait_for_gate(directory, name)
    with ctx.transaction() as connection:
        connection.execute("insert into effect values (%s, %s)", [ctx.job.id, ctx.job.execution])
        if goes_wrong and then == "raise":
            raise ValueError("before the commit")
        if goes_wrong and then == "roll back":
            raise psycopg.Rollback
        if goes_wrong and then == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
    if goes_wrong and then == "raise after":
        raise ValueError("after the commit")


@app.task(backoff=_SOON)
async def effect_async(ctx: Context, directory: str, name: str, then: str = "") -> None:
    """As `effect`, on the event loop."""
    note(ctx, directory, "start", name)
    goes_wrong = ctx.job.execution == 1
    if goes_wrong and then == "wait":
        await wait_for_gate_async(directory, name)
    async with ctx.transaction_async() as connection:
        await connection.execute("insert into effect values (%s, %s)", [ctx.job.id, ctx.job.execution])
        if goes_wrong and then == "wait inside":
            note(ctx, directory, "inside", name)
            await wait_for_gate_async(directory, name)
        if goes_wrong and then == "raise":
            raise ValueError("before the commit")
        if goes_wrong and then == "roll back":
            raise psycopg.Rollback
        if goes_wrong and then == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
    if goes_wrong and then == "raise after":
        raise ValueError("after the commit")


@app.task(max_attempts=1)
def take_the_wrong_transaction(ctx: Context) -> None:
    """That of the event loop, in a thread."""

    async def enter() -> None:
        async with ctx.transaction_async():
            raise AssertionError("entered")

    asyncio.run(enter())


@app.task(max_attempts=1)
async def take_the_wrong_transaction_async(ctx: Context) -> None:
    """That of a thread, on the event loop."""
    with ctx.transaction():
        raise AssertionError("entered")


_MESS = (
    "create temp table mess (id integer)",
    "listen mess",
    "set work_mem = '77MB'",
    "select pg_advisory_lock(77)",
    "prepare mess as select 1",
)
_STATE = """
    select pg_backend_pid(), coalesce(to_regclass('pg_temp.mess')::text, ''),
           (select count(*) from pg_listening_channels()), current_setting('work_mem'),
           (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()),
           (select count(*) from pg_prepared_statements), current_setting('transaction_isolation')
"""


@app.task(backoff=_SOON)
async def leave_a_mess(ctx: Context, directory: str, name: str) -> None:
    """Change all that a session has; what it had before goes to a file."""
    async with ctx.transaction_async() as connection:
        cursor = await connection.execute(_STATE)
        found = await cursor.fetchone()
        Path(directory, name).write_text(json.dumps(found))
        for statement in _MESS:
            await connection.execute(statement.encode())
        connection.row_factory = dict_row  # type: ignore[assignment]  # the mess that is meant
    await connection.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
    await connection.set_autocommit(False)
    await connection.execute("select 'a transaction that nobody ends'")


def _cannot_tell(job: Job, error: BaseException) -> bool:
    raise KeyError(f"no rule for {error!r}")


@app.task(backoff=_SOON, max_attempts=2, should_retry=_cannot_tell)
def fail_for_a_judge_that_fails(ctx: Context, directory: str, name: str) -> None:
    """Fail, and have a `should_retry` that fails too."""
    note(ctx, directory, "start", name)
    raise ValueError("an ordinary failure")


@app.task(backoff=_SOON, max_attempts=2)
def ask_for_nonsense(ctx: Context, directory: str, name: str, what: str) -> None:
    """Say how the job is to go on, in a way that means nothing."""
    note(ctx, directory, "start", name)
    if what == "a retry in the past":
        raise Retry(after=-1)
    if what == "a snooze until a naive time":
        raise Snooze(datetime(2099, 1, 1))  # noqa: DTZ001 - the mistake that is meant
    raise Snooze("tomorrow")  # type: ignore[arg-type]


@app.task(backoff=_SOON, max_attempts=1)
def fork(ctx: Context, directory: str, name: str, child: str, parent: str) -> None:
    """Fork, and end both processes as asked: return, raise or exit. The parent waits for the child, but not long."""
    note(ctx, directory, "start", name)
    pid = os.fork()
    patience = time.monotonic() + 2
    while pid and time.monotonic() < patience and os.waitpid(pid, os.WNOHANG) == (0, 0):
        time.sleep(_LOOK)
    end = parent if pid else child
    if end == "raise":
        raise ValueError("as asked")
    if end == "exit":
        sys.exit(0)


@app.task(backoff=_SOON)
def end_once_dumped(ctx: Context, directory: str, name: str) -> None:
    """Run until the master has asked for the stacks of this process: the first step to kill it."""
    note(ctx, directory, "start", name)
    stacks = find_stacks()
    while not os.fstat(stacks).st_size:
        time.sleep(_LOOK)


@app.task(backoff=_SOON)
def die_behind_a_mess(ctx: Context, directory: str, name: str) -> None:
    """Fill the file for stacks with what is no text, and die; only the first time."""
    note(ctx, directory, "start", name)
    if ctx.job.execution > 1:
        return
    os.write(find_stacks(), b"\xff" * 40_000)
    os.kill(os.getpid(), signal.SIGKILL)


def find_stacks() -> int:
    """The descriptor of this worker's file for stacks."""
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor that lists the directory
            if "pgworker-stacks" in str(entry.readlink()):
                return int(entry.name)
    raise AssertionError("this worker has no file for stacks")


_leaked: list[int] = []


@app.task(backoff=_SOON)
def leak(ctx: Context, directory: str, name: str) -> None:
    """Take all file descriptors that there are, and keep them; only the first time. Wait for the gate then."""
    note(ctx, directory, "start", name)
    if ctx.job.execution > 1:
        return
    with suppress(OSError):
        while True:
            _leaked.append(os.open(os.devnull, os.O_RDONLY))
    wait_for_gate(directory, name)


@app.task(backoff=_SOON, max_attempts=2)
def close_all(ctx: Context, directory: str, name: str) -> None:
    """Close what is not its own: its worker dies of that, a moment after the job has ended."""
    note(ctx, directory, "start", name)
    time.sleep(0.1)  # or the clerk, before it sleeps, could die of it in the middle of the job
    os.closerange(3, 256)


@app.task(backoff=_SOON)
def leak_until(ctx: Context, directory: str, name: str) -> None:
    """Take all file descriptors that there are, until the gate opens."""
    note(ctx, directory, "start", name)
    taken = []
    with suppress(OSError):
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    wait_for_gate(directory, name)
    for descriptor in taken:
        os.close(descriptor)


@app.task(backoff=_SOON)
def rest(seconds: float) -> None:
    """Take a moment, and open nothing."""
    time.sleep(seconds)


_hoarded: list[bytes] = []


@app.task(backoff=_SOON)
def hoard(ctx: Context, directory: str, name: str, mebibytes: int) -> None:
    """Keep so much memory for ever."""
    note(ctx, directory, "start", name)
    _hoarded.append(os.urandom(mebibytes << 20))


@app.task(backoff=_SOON)
def hog(ctx: Context, directory: str, name: str, piece: int) -> None:
    """Take memory until there is no more, a piece at a time."""
    note(ctx, directory, "start", name)
    taken = []
    while True:
        taken.append(bytearray(piece))


def _tell(ctx: Context, directory: str, name: str) -> None:
    """Say how far one is, with a checkpoint, and in the ledger of which execution the checkpoint was that came."""
    note(ctx, directory, f"from-{(ctx.checkpoint or {}).get('execution')}", name)
    ctx.progress(0.25, "a quarter", checkpoint={"execution": ctx.job.execution})
    ctx.progress(0.5, "half")


def _go_wrong(then: str) -> None:
    if then in ("raise", "transaction"):
        raise ValueError("as asked")
    if then == "retry":
        raise Retry(after=0)
    if then == "snooze":
        raise Snooze(0)


@app.task(backoff=_SOON, max_attempts=3)
def tell(ctx: Context, directory: str, name: str, then: str = "") -> None:
    """Say how far it is; in the first execution, go on as asked."""
    _tell(ctx, directory, name)
    if ctx.job.failures == 0 and ctx.job.execution == 1:
        _go_wrong(then)
        if then == "wait":
            wait_for_gate(directory, name)
        if then == "say more and die":
            wait_for_gate(directory, name)
            ctx.progress(0.75, checkpoint={"execution": "1-later"})
            os.kill(os.getpid(), signal.SIGKILL)
        if then == "cooperate":
            ctx.wait_cancelled(60)
            ctx.raise_if_cancelled()
    elif then == "transaction":
        with ctx.transaction():
            wait_for_gate(directory, name)
            ctx.progress(1, "all but committed")


@app.task(backoff=_SOON, max_attempts=3)
async def tell_async(ctx: Context, directory: str, name: str, then: str = "") -> None:
    """As `tell`, on the event loop."""
    _tell(ctx, directory, name)
    if ctx.job.failures == 0 and ctx.job.execution == 1:
        _go_wrong(then)
        if then == "wait":
            await wait_for_gate_async(directory, name)
    elif then == "transaction":
        async with ctx.transaction_async():
            await wait_for_gate_async(directory, name)
            ctx.progress(1, "all but committed")


@app.task(max_attempts=1)
def give_up(ctx: Context, directory: str, name: str) -> None:
    """Say how far it is, and fail for good unless there is a checkpoint."""
    _tell(ctx, directory, name)
    if ctx.checkpoint is None:
        raise ValueError("as asked")


@app.task
def chatter(ctx: Context, directory: str, name: str) -> None:
    """Say how far it is as often as can be, until the gate opens."""
    while not Path(directory, name).exists():
        for part in range(10_000):
            ctx.progress(part / 10_000, "still", checkpoint={"part": part})


@app.task
def fill(ctx: Context, directory: str, size: int) -> str:
    """Return so many bytes of JSON."""
    return "x" * (size - 2)
