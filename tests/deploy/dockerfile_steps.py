"""deploy/Dockerfile as a list of steps, and the files that its build context has."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import dockerfile

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction: its name, flags without their dashes, and its words."""

    name: str
    words: tuple[str, ...]
    flags: dict[str, str]

    @property
    def pairs(self) -> dict[str, str]:
        """Of ENV and LABEL."""
        return {key: shlex.split(value)[0] for key, value in zip(self.words[::2], self.words[1::2], strict=True)}


@dataclass(frozen=True, slots=True)
class Stage:
    """What stands between two FROM."""

    base: str
    name: str
    steps: list[Step] = field(default_factory=list)

    def last(self, name: str) -> Step:
        """The instruction of this name that counts."""
        return [step for step in self.steps if step.name == name][-1]


def stages() -> list[Stage]:
    """Of the Dockerfile, read by Docker's own parser."""
    found: list[Stage] = []
    arguments: dict[str, str] = {}
    for command in dockerfile.parse_file(str(DOCKERFILE)):
        flags = dict(flag.removeprefix("--").split("=", 1) for flag in command.flags)
        step = Step(command.cmd, command.value, flags)
        if step.name == "FROM":
            base = _substitute(step.words[0], arguments)
            found.append(Stage(base, step.words[2] if len(step.words) > 2 else ""))
        elif not found:
            arguments |= dict(word.split("=", 1) for word in step.words)
        else:
            found[-1].steps.append(step)
    return found


def health_command() -> list[str]:
    """What HEALTHCHECK runs."""
    kind, *words = stages()[-1].last("HEALTHCHECK").words
    assert kind == "CMD", "in the exec form, without a shell"
    return words


def is_in_context(path: str) -> bool:
    """Whether the builder sends this file of the repository: the last line of the ignore file that names it decides."""
    is_sent = True
    for line in DOCKERFILE.with_name("Dockerfile.dockerignore").read_text("utf-8").splitlines():
        pattern = line.removeprefix("!")
        if pattern and not pattern.startswith("#") and _names(pattern, path):
            is_sent = line.startswith("!")
    return is_sent


def context_files() -> Iterator[Path]:
    """Every file of the build context, relative to the root of the repository."""
    for top in sorted({line.removeprefix("!").split("/")[0] for line in _kept()}):
        found = [ROOT / top, *(ROOT / top).rglob("*")]
        yield from (path.relative_to(ROOT) for path in found if path.is_file() and is_in_context(_relative(path)))


def _kept() -> list[str]:
    lines = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text("utf-8").splitlines()
    return [line for line in lines if line.startswith("!")]


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _names(pattern: str, path: str) -> bool:
    """Whether it is the pattern's own, or in a directory that is."""
    parts = path.split("/")
    heads = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    if pattern.startswith("**/"):
        return any(fnmatch.fnmatchcase(part, pattern[3:]) for part in parts)
    return any(head.count("/") == pattern.count("/") and fnmatch.fnmatchcase(head, pattern) for head in heads)


def _substitute(text: str, arguments: dict[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda name: arguments[name[1]], text)


def as_json(step: Step) -> str:
    """For messages."""
    return json.dumps([step.name, *step.words])
