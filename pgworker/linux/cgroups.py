"""Where the cgroups of this process are, v1 and v2: its own and those above it, as far as they can be seen.

Sources: cgroups(7); Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc/self")


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A mounted hierarchy, and our own cgroup in it."""

    mount: Path
    own: Path

    def upwards(self) -> Iterator[Path]:
        """Our cgroup and its parents: a limit of any of them limits us."""
        directory = self.own
        while directory != self.mount:
            yield directory
            directory = directory.parent
        yield self.mount


def hierarchies(controller: str, proc: Path = PROC) -> list[Hierarchy]:
    """Where this controller may have files about us: the hierarchy of v2, and the one of v1 that has it, if any.

    OSError when /proc can't be read.
    """
    paths = _own_paths(proc)
    found = []
    for line in (proc / "mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        root, mount = left.split()[3:5]
        kind, _, options = right.split(" ", 2)
        if kind == "cgroup2" and "" in paths:
            found.append(_hierarchy(mount, root, paths[""]))
        elif kind == "cgroup" and controller in options.split(",") and controller in paths:
            found.append(_hierarchy(mount, root, paths[controller]))
    return found


def _own_paths(proc: Path) -> dict[str, str]:
    """The path of our cgroup by controller; v2 has the empty name."""
    paths = {}
    for line in (proc / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    return paths


def _hierarchy(mount: str, root: str, path: str) -> Hierarchy:
    """A container mounts its own part only, from `root` on, and may be told the path that the host sees."""
    prefix = root.rstrip("/")
    inside = path.removeprefix(prefix).lstrip("/") if path.startswith(prefix) else ""
    return Hierarchy(Path(mount), Path(mount) if ".." in inside.split("/") else Path(mount, inside))
