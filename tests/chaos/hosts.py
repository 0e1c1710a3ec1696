"""Hosts of their own for pools: network, host name and processes apart, on a bridge by which they reach PostgreSQL.

    with hosts(server_dsn, "ash", "oak") as (ash, oak):
        with start(ash.dsn, log, prefix=ash.prefix) as pool:
            ash.cut()  # no packet arrives, and nobody is told

No pool recognises another host's processes: their pids mean something in their own namespaces only. Files are shared.
On the way to the server each host has a `Proxy` of its own, which makes the line slow: few kernels have netem.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.chaos.proxy import Proxy
from tests.process.pool import Pool, eventually

PROGRAMS = ("ip", "unshare", "nsenter", "setpriv")
_NAMESPACES = ("--net", "--pid", "--uts", "--ipc", "--mount")
_networks = itertools.count()
_LOOK = 0.02  # seconds

# A host gets SIGKILL when the thread that forked it ends, so it is forked by one that lasts as long as this process.
_starter = ThreadPoolExecutor(1, "hosts")

# PID 1 of a host: it reaps whatever its children leave behind.
_INIT = """
import signal, socket, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
socket.sethostname(sys.argv[1])
print("up", flush=True)
while True:
    signal.pause()
"""


class Host:
    """One host, up until `kill`. `dsn` leads to the server from there, `prefix` runs a command there."""

    def __init__(self, name: str, network: Network, number: int, server_dsn: str) -> None:
        self.name = name
        self.proxy = Proxy.before(server_dsn, listen=network.address)
        self.dsn = self.proxy.dsn(server_dsn)
        self._network = network
        self._number = number
        self._link = f"{network.bridge}-{number}"
        self._shell: subprocess.Popen[bytes] | None = None
        self._init = 0

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("nsenter", f"--target={self._init}", *_NAMESPACES, "--")

    @property
    def is_up(self) -> bool:
        return self._init != 0

    def boot(self) -> None:
        """Start it, with a network and nothing else."""
        command = ["setpriv", "--pdeathsig=KILL", "unshare", *_NAMESPACES, "--mount-proc", "--fork", "--kill-child"]
        self._shell = _starter.submit(_shell, [*command, sys.executable, "-c", _INIT, self.name]).result()
        assert self._shell.stdout is not None
        assert self._shell.stdout.readline() == b"up\n"
        children = Path(f"/proc/{self._shell.pid}/task/{self._shell.pid}/children")
        self._init = int(children.read_text())
        self._network.plug(self._link, self._init, self._number)

    def cut(self) -> None:
        """Pull its cable: packets in both directions go nowhere, and no kernel hears of it."""
        _ip("link", "set", self._link, "nomaster")

    def slow(self, milliseconds: float) -> None:
        """Make a round trip to the server take so much longer."""
        self.proxy.delay(milliseconds / 1000)

    def heal(self) -> None:
        """Plug the cable in again, and make the line fast."""
        self.proxy.heal()
        if self._init:
            _ip("link", "set", self._link, "master", self._network.bridge)

    def kill(self) -> None:
        """Power loss: every process ends at once, and no connection says goodbye."""
        if self._shell is None:
            return
        if self._init:
            self.cut()
            with suppress(ProcessLookupError):
                os.kill(self._init, signal.SIGKILL)  # and with it the kernel kills its whole namespace
        while self._shell.poll() is None:
            self._wake_who_entered()
            time.sleep(_LOOK)
        assert self._shell.stdout is not None
        self._shell.stdout.close()
        self._shell, self._init = None, 0
        self._network.unplug(self._link)  # else the namespace does so when the kernel gets to it

    def _wake_who_entered(self) -> None:
        """`nsenter` stops itself when what it has started there is stopped, and the kernel waits until it is reaped."""
        for process in psutil.process_iter(["name", "cmdline"]):
            if process.info["name"] == "nsenter" and f"--target={self._init}" in (process.info["cmdline"] or ()):
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    def master_of(self, pool: Pool) -> int:
        """Its pid as we see it: the process that was started for the pool is `nsenter`."""
        return eventually(
            lambda: [pid for pid, title in pool.processes().items() if title.startswith("pgworker: master")], "a master"
        )[0]


class Network:
    """A bridge of our own, with an address that hosts on it reach."""

    def __init__(self) -> None:
        number = next(_networks)
        self.bridge = f"pgw{os.getpid()}-{number}"
        # Of 10.0.0.0/8, and other than those of the processes that test beside us.
        place = (5 * os.getpid() + number % 5) % 25_000
        self._prefix = f"10.{100 + place // 250}.{place % 250}"
        self.address = f"{self._prefix}.1"

    def __enter__(self) -> Network:
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("address", "add", f"{self.address}/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")
        return self

    def __exit__(self, *_: object) -> None:
        _ip("link", "delete", self.bridge)

    def plug(self, link: str, init: int, number: int) -> None:
        """A cable from the bridge to the host whose first process is `init`."""
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(init))
        _ip("link", "set", link, "master", self.bridge, "up")
        inside = ("nsenter", f"--target={init}", "--net", "ip")
        for words in (
            ("link", "set", "lo", "up"),
            ("address", "add", f"{self._prefix}.{number + 2}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
        ):
            subprocess.run([*inside, *words], check=True)

    def unplug(self, link: str) -> None:
        subprocess.run(["ip", "link", "delete", link], check=False, stderr=subprocess.DEVNULL)


@contextmanager
def hosts(server_dsn: str, *names: str) -> Iterator[list[Host]]:
    """So many hosts, up; all is gone at the end. Skips the test where there can be none."""
    refuse_without_hosts()
    with ExitStack() as stack:
        network = stack.enter_context(Network())
        made = [Host(name, network, number, server_dsn) for number, name in enumerate(names)]
        for host in made:
            stack.enter_context(host.proxy)
            stack.callback(host.kill)
            host.boot()
        yield made


def refuse_without_hosts() -> None:
    """Skip the test, by name of what is missing."""
    if missing := why_no_hosts():
        pytest.skip(missing)


def why_no_hosts() -> str | None:
    """What is missing here for hosts of their own; None: nothing."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        return f"needs {', '.join(missing)}"
    tried = subprocess.run(["unshare", *_NAMESPACES, "--fork", "true"], check=False, capture_output=True)
    if tried.returncode:
        return f"needs the right to make namespaces: {tried.stderr.decode().strip()}"
    probe = f"pgw{os.getpid()}-x"
    tried = subprocess.run(["ip", "link", "add", probe, "type", "bridge"], check=False, capture_output=True)
    if tried.returncode:
        return f"needs the right to make a bridge: {tried.stderr.decode().strip()}"
    _ip("link", "delete", probe)
    return None


def _shell(command: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
