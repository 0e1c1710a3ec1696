"""A pool whose package is replaced on the disk while it runs, as `pip install --upgrade` does."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

from tests.process import jobs, test_pool
from tests.process.pool import ROOT, eventually, start
from tests.process.test_pool import Scene

scene = test_pool.scene


def test_whoever_is_forked_after_that_has_the_statements_of_the_pool_s_own_version(
    scene: Scene, dsn: str, tmp_path: Path
) -> None:
    for package in ("pgworker", "tests"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    with start(dsn, tmp_path / "pool.log", cwd=tmp_path) as pool:
        pool.wait_for_log("the pool is ready")
        assert str(tmp_path) in Path(f"/proc/{pool.master}/cwd").readlink().as_posix()
        monitor, workers = pool.monitor, pool.workers
        for file in (tmp_path / "pgworker" / "sql" / "queries").iterdir():
            file.write_text("select of_another_version()")
        (tmp_path / "pgworker" / "sql" / "migrations" / "0099_another.sql").write_text("select 1")
        for pid in (monitor, *workers):
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: pool.monitor != monitor and len(set(pool.workers) - set(workers)) == 2, "new processes")
        scene.wait_for_status("succeeded", scene.enqueue(jobs.quick, "one"))
        pool.send(signal.SIGTERM)
        assert pool.wait() == 0
