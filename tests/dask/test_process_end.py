"""Programs that end without tidying up: what they print, what they finish, and how they end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

LIMIT = 60


def run(tmp_path: Path, program: str) -> subprocess.CompletedProcess[str]:
    """What a program that is a file of its own has written, once it has ended."""
    path = tmp_path / "program.py"
    path.write_text(dedent(program))
    env = {**os.environ, "DASK_TEMPORARY_DIRECTORY": str(tmp_path)}
    return subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=LIMIT, env=env, check=False)


def test_an_executor_with_a_cluster_of_its_own(tmp_path: Path) -> None:
    """As in the standard library: the process does not end before its calls have, also if nobody holds the executor;
    a forked one is not concerned."""
    done = run(
        tmp_path,
        """
        import multiprocessing, threading
        from daskqueue import QueueExecutor

        def task(n):
            threading.Event().wait(0.1)
            print(n, flush=True)

        def main():
            executor = QueueExecutor(max_workers=1)
            for n in range(5):
                executor.submit(task, n)

        if __name__ == "__main__":
            main()
            child = multiprocessing.get_context("fork").Process(target=print, args=("child",))
            child.start()
            child.join()
            raise SystemExit(3)
        """,
    )
    lines = done.stdout.split()
    assert "child" in lines
    assert [line for line in lines if line != "child"] == ["0", "1", "2", "3", "4"]
    assert (done.stderr, done.returncode) == ("", 3)


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_work_under_way(tmp_path: Path, processes: bool) -> None:
    """A client's cluster ends with the process: it is not waited for, and there is no traceback."""
    done = run(
        tmp_path,
        f"""
        import threading
        from distributed import Client
        from daskqueue import ConsumerPool, QueuePool

        def task(n):
            threading.Event().wait(0.3)

        if __name__ == "__main__":
            client = Client(processes={processes}, n_workers=2, threads_per_worker=1, dashboard_address=":0")
            pool = QueuePool(client)
            ConsumerPool(client, pool).start()
            futures = [pool.submit(task, n) for n in range(1000)]
            futures[0].result()
        """,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == 0
