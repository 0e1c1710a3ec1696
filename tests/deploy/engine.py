"""An image without Docker: the Dockerfile's own steps in chroots, and its command as PID 1 of new namespaces.

No image is pulled, so this host's files stand in for the base images: what FROM brings (Python, a shell) is the
host's, and what the steps make of it is real. The tests' repository is out of sight in there. A container has its own
processes, mounts, network, IPC and host name, the user of the Dockerfile, and no capability. Seccomp, cgroups and user
namespaces are what it lacks.

Root's alone. Mounts are private to one process that sleeps, and end with it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.deploy.dockerfile_steps import ROOT, Stage, Step, as_json, context_files, stages
from tests.process.pool import eventually

PROGRAMS = ("unshare", "nsenter", "setpriv", "chroot", "mount", "ip")
_PYTHON = Path(sys.base_prefix) / "bin"
_PATH = f"{_PYTHON}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NAMESPACES = ("--pid", "--mount", "--net", "--ipc", "--uts")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_BUILD_WITHIN = 240.0  # seconds for one step: it may fetch what it installs
_PACKAGES_FROM = ("PIP_", "SSL_", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "no_proxy", "NO_PROXY")


def obstacle() -> str:
    """Why no container can be made here; empty if one can."""
    if os.geteuid() != 0:
        return "chroots and namespaces are root's"
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"no {', '.join(missing)} on this host"
    with tempfile.TemporaryDirectory() as directory, _mounts(Path(directory)) as mounts:
        tried = mounts.run(_overlay(mounts.memory / "probe"))
    return "" if tried.returncode == 0 else f"no overlay file system in a namespace here: {tried.stderr.strip()}"


@dataclass(frozen=True, slots=True)
class Image:
    """What a build leaves: the files that its steps have made, and how it wants to be run."""

    files: Path
    stage: Stage

    @property
    def environment(self) -> dict[str, str]:
        found = {"PATH": _PATH}
        for step in self.stage.steps:
            if step.name == "ENV":
                found |= {key: _expand(value, found) for key, value in step.pairs.items()}
        return found

    @property
    def user(self) -> tuple[str, str]:
        uid, _, gid = self.stage.last("USER").words[0].partition(":")
        return uid, gid


def built(directory: Path) -> Image | None:
    """What a build has left there, if one has come to its end."""
    files = directory / "image"
    return Image(files, stages()[-1]) if files.is_dir() else None


def build(directory: Path) -> Image:
    """Run every step of the Dockerfile, and leave in `directory` what its last stage has copied."""
    shutil.rmtree(directory, ignore_errors=True)
    context, files = directory / "context", directory / "unfinished"
    files.mkdir(parents=True)
    for file in context_files():
        (context / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, context / file)
    names: dict[str, Path] = {}
    *earlier, last = stages()
    with _mounts(directory) as mounts:
        for number, stage in enumerate(earlier):
            names[stage.name] = _build_stage(mounts, mounts.memory / f"stage{number}", stage, names, context)
        for step in last.steps:
            if step.name == "COPY":
                mounts.check(_copy(step, names, context, files, "/"), step)
            assert step.name != "RUN", "the runtime stage only copies: it needs no shell"
    return Image(files.rename(directory / "image"), last)


class Process(NamedTuple):
    """One of a container. `outside` is its pid here, `parent` its parent's pid inside."""

    outside: int
    parent: int
    state: str
    title: str


@dataclass(frozen=True, slots=True)
class Container:
    """A running one. `pid` is that of its PID 1 here, outside."""

    process: subprocess.Popen[bytes]
    pid: int
    namespace: Path
    image: Image
    log_file: Path

    def processes(self) -> dict[int, Process]:
        """Everything in its pid namespace, by pid inside."""
        fields = {}
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and (entry / "ns/pid").readlink() == self.namespace:
                    lines = (entry / "status").read_text(errors="replace").splitlines()
                    fields[int(entry.name)] = dict(line.split(":", 1) for line in lines if ":" in line)
        inside = {outside: int(found["NSpid"].split()[-1]) for outside, found in fields.items()}
        return {
            inside[outside]: Process(
                outside, inside.get(int(found["PPid"]), 0), found["State"].split()[0], _title(outside)
            )
            for outside, found in fields.items()
        }

    def enter(self, command: Sequence[str]) -> list[str]:
        """The command in the same namespaces and as the same user, as `docker exec` runs it."""
        into = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--net", "--ipc", "--uts", "--root", "--wd"]
        return [*into, *_as_user(self.image), *command]

    def execute(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            self.enter(command),
            env=self.image.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, within: float = 40.0) -> int:
        """Its exit code; not 0 if it was killed."""
        return self.process.wait(within)

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait_for_log(self, words: str) -> None:
        eventually(lambda: words in self.log() or self.process.poll() is not None, lambda: f"{words!r}: {self.log()}")
        assert words in self.log()


@contextmanager
def run(
    image: Image,
    directory: Path,
    *command: str,
    variables: Mapping[str, str] | None = None,
    binds: Mapping[Path, str] | None = None,
    has_tmp: bool = False,
) -> Iterator[Container]:
    """Start a container with a read-only root; `binds` are files and directories of the host, by their place inside.

    /tmp is writable if asked for, and nothing else is, /dev/shm not even there. At the end it is killed.
    """
    log_file = directory / f"container{len(list(directory.glob('container*.log')))}.log"
    with _mounts(directory) as mounts, log_file.open("wb") as log:
        lines = _prepare(mounts.memory / "run", image, binds or {}, has_tmp=has_tmp)
        entry = image.stage.last("ENTRYPOINT").words
        words = [*_as_user(image), *_with(image.environment | dict(variables or {})), *entry]
        words += command or image.stage.last("CMD").words
        inside = f"cd {image.stage.last('WORKDIR').words[0]} && exec {shlex.join(words)}"
        lines += [f"exec chroot {mounts.memory}/run/root sh -c {shlex.quote(inside)}"]
        process = subprocess.Popen(
            [*mounts.enter, "unshare", *_NAMESPACES, "--fork", "--kill-child", "sh", "-euc", "\n".join(lines)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            pid = _child(process)
            yield Container(process, pid, Path(f"/proc/{pid}/ns/pid").readlink(), image, log_file)
        finally:
            # What --kill-child asks of the kernel has no force after a change of user: PID 1 goes by its own name.
            for child in psutil.Process(process.pid).children() if process.poll() is None else ():
                child.kill()
            process.kill()
            process.wait()
            print(log_file.read_text(errors="replace"))  # noqa: T201  pytest shows it when the test fails


def _prepare(place: Path, image: Image, binds: Mapping[Path, str], *, has_tmp: bool) -> list[str]:
    """Commands that make the root of a container, and end what may be written there."""
    root = place / "root"
    lines = [
        _overlay(place),
        f"cp -a {image.files}/. {root}",
        _kernel(root),
    ]
    for outside, inside in binds.items():
        at = f"{root}{inside}"
        lines += [f"mkdir -p {at}" if outside.is_dir() else f"mkdir -p {Path(at).parent} && touch {at}"]
        lines += [f"mount --bind {outside} {at}"]
    lines += [f"mount -t tmpfs -o size=64m,mode=1777{'' if has_tmp else ',ro'} tmpfs {root}/tmp"]
    # Of these mounts alone (bind): a remount of a file system holds for everybody who sees it, our host too.
    lines += [f"mount -o remount,bind,ro {mount}" for mount in (root, f"{root}/dev")]
    return [*lines, "ip link set lo up"]


@dataclass(frozen=True, slots=True)
class _Mounts:
    """A mount namespace of our own, with a place in memory for what is only seen there."""

    pid: int
    memory: Path

    @property
    def enter(self) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--mount"]

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.enter, "sh", "-euc", script],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_BUILD_WITHIN,
            check=False,
        )

    def check(self, script: str, step: Step) -> None:
        ended = self.run(script)
        assert ended.returncode == 0, f"{as_json(step)}\n{ended.stdout}\n{ended.stderr}"


@contextmanager
def _mounts(directory: Path) -> Iterator[_Mounts]:
    memory = directory / "memory"
    memory.mkdir(exist_ok=True)
    script = f"mount -t tmpfs tmpfs {memory}; echo ready; exec sleep infinity"
    holder = subprocess.Popen(
        ["unshare", "--mount", "--propagation=private", "sh", "-euc", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        yield _Mounts(holder.pid, memory)
    finally:
        holder.kill()
        holder.wait()
        if holder.stdout is not None:
            holder.stdout.close()


def _overlay(place: Path) -> str:
    """Commands that mount at `place`/root the host's files without our repository; what is written stays in memory."""
    hidden = place / "upper" / ROOT.relative_to("/")
    reachable = [directory for directory in [_PYTHON, *_PYTHON.parents] if directory != Path("/")]
    return "\n".join(
        [
            f"mkdir -p {hidden.parent} {place}/work {place}/root && mknod {hidden} c 0 0",
            f"mount -t overlay overlay -o lowerdir=/,upperdir={place}/upper,workdir={place}/work {place}/root",
            f"chmod a+rx {' '.join(f'{place}/root{directory}' for directory in reachable)}",
        ]
    )


def _kernel(root: Path) -> str:
    """Commands that mount /proc, and a /dev with nothing in it but what every program may use."""
    devices = [f"touch {root}/dev/{name} && mount --bind /dev/{name} {root}/dev/{name}" for name in _DEVICES]
    return "\n".join([f"mount -t proc proc {root}/proc", f"mount -t tmpfs -o size=64k tmpfs {root}/dev", *devices])


def _build_stage(mounts: _Mounts, place: Path, stage: Stage, names: Mapping[str, Path], context: Path) -> Path:
    """Run its steps; where its files are, in the namespace."""
    root = place / "root"
    if stage.base == "scratch":
        assert mounts.run(f"mkdir -p {root}").returncode == 0
    else:
        made = mounts.run(f"{_overlay(place)}\n{_kernel(root)}")
        assert made.returncode == 0, made.stderr
    environment = {"PATH": _PATH, "HOME": "/root"}
    environment |= {name: value for name, value in os.environ.items() if name.startswith(_PACKAGES_FROM)}
    cwd = "/"
    for step in stage.steps:
        if step.name == "ENV":
            environment |= {key: _expand(value, environment) for key, value in step.pairs.items()}
        elif step.name == "WORKDIR":
            cwd = step.words[0]
            mounts.check(f"mkdir -p {root}{cwd}", step)
        elif step.name == "COPY":
            mounts.check(_copy(step, names, context, root, cwd), step)
        elif step.name == "RUN":
            line = f"cd {cwd} && exec {shlex.join([*_with(environment), '/bin/sh', '-c', step.words[0]])}"
            mounts.check(f"exec chroot {root} sh -c {shlex.quote(line)}", step)
        else:
            raise AssertionError(f"the tests don't know what this step does: {as_json(step)}")
    return root


def _copy(step: Step, names: Mapping[str, Path], context: Path, root: Path, cwd: str) -> str:
    """As COPY: of a directory what is in it; nothing that is there keeps its owner."""
    assert not step.flags.keys() - {"from"}, as_json(step)
    source = names[step.flags["from"]] if "from" in step.flags else context
    *given, target = step.words
    into = f"{root}{Path(cwd) / target}"
    lines = [f"mkdir -p {into if target.endswith('/') or len(given) > 1 else Path(into).parent}"]
    for word in given:
        path = f"{source}/{word.strip('/')}".rstrip("/")
        kept = "--preserve=mode,timestamps,links"
        lines += [
            f"if [ -d {path} ]; then mkdir -p {into}; cp -R {kept} {path}/. {into}; else cp {kept} {path} {into}; fi"
        ]
    return "\n".join(lines)


def _as_user(image: Image) -> list[str]:
    uid, gid = image.user
    limits = ["--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    return ["setpriv", f"--reuid={uid}", f"--regid={gid}", *limits, "--"]


def _with(environment: Mapping[str, str]) -> list[str]:
    return ["env", "-i", *(f"{key}={value}" for key, value in environment.items())]


def _expand(value: str, environment: Mapping[str, str]) -> str:
    return value.replace("$PATH", environment["PATH"])


def _title(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
    return ""


def _child(process: subprocess.Popen[bytes]) -> int:
    """What `unshare` has forked: PID 1 of the new namespace."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def look() -> int | None:
        with suppress(OSError):
            for pid in children.read_text().split():
                return int(pid)
        assert process.poll() is None, "the container ended before it began"
        return None

    found = eventually(look, "a PID 1")
    assert found is not None
    return found
