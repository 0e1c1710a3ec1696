"""What users write passes mypy strict, and what they must not write doesn't."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ("tests/architecture/typed_shop.py", "tests/unit/typed_example.py")
IGNORED = re.compile(r"  # type: ignore\[([\w-]+)\].*$")


def errors(source: str, tmp_path: Path) -> set[tuple[int, str]]:
    """Line and code of each error that mypy, as strict as we are, finds in this module.

    Under a name of its own: what mypy remembers of a module of the same name and text has the path of that one.
    """
    module = tmp_path / f"example_{uuid4().hex}.py"
    module.write_text(source)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context", str(module)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert ran.stderr == ""
    found = re.findall(rf"^{re.escape(str(module))}:(\d+): error: .*\[([\w-]+)\]$", ran.stdout, re.MULTILINE)
    assert len(found) == len(re.findall(": error: ", ran.stdout)), ran.stdout
    return {(int(line), code) for line, code in found}


@pytest.mark.parametrize("example", EXAMPLES)
def test_mypy_finds_in_the_examples_what_is_marked_as_wrong_and_nothing_else(example: str, tmp_path: Path) -> None:
    lines = (ROOT / example).read_text().splitlines()
    marked = {(number, match[1]) for number, line in enumerate(lines, 1) if (match := IGNORED.search(line))}
    assert len(marked) > 5
    assert errors("\n".join(IGNORED.sub("", line) for line in lines), tmp_path) == marked
