"""The README of 0.2.0 still runs: its example (imports, names, order of calls), and its use, copying files.

Both are scripts of their own, since that is what users write: functions and classes of `__main__`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LIMIT = 60

EXAMPLE = """
from distributed import Client
from daskqueue import QueuePool, ConsumerPool
from daskqueue.utils import logger

def process_item():
    return sum(i * i for i in range(10**4))

if __name__ == "__main__":
    client = Client(n_workers=5, threads_per_worker=1, direct_to_workers=True)
    queue_pool = QueuePool(client, n_queues=1)
    consumer_pool = ConsumerPool(client, queue_pool, n_consumers=5)
    consumer_pool.start()
    for i in range(5):
        queue_pool.submit(process_item)
    consumer_pool.join()
    results = consumer_pool.results()
"""

COPY = """
import shutil
import sys
from pathlib import Path
from distributed import Client
from daskqueue import QueuePool, ConsumerPool, ConsumerBaseClass

class CopyFile(ConsumerBaseClass):
    def process_item(self, item):
        source, target = item
        shutil.copy(source, target)

if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    client = Client(n_workers=2, threads_per_worker=1, direct_to_workers=True)
    queue_pool = QueuePool(client, n_queues=2)
    consumer_pool = ConsumerPool(client, queue_pool, ConsumerClass=CopyFile, n_consumers=4)
    queue_pool.put_many([(file, target / file.name) for file in source.iterdir()])
    consumer_pool.start()
    consumer_pool.join()
"""


def run(path: Path, code: str, *arguments: object) -> str:
    """Run a script as a user does; returns what it printed."""
    path.write_text(code)
    done = subprocess.run(
        [sys.executable, str(path), *map(str, arguments)], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_readme_example_runs(tmp_path: Path) -> None:
    """Imports, names, order of calls; and `results` holds 5 values."""
    check = "    print(len(results), set(results.values()))\n"
    expected = sum(i * i for i in range(10**4))
    assert run(tmp_path / "example.py", EXAMPLE + check) == f"5 {{{expected}}}\n"


def test_copying_files(tmp_path: Path) -> None:
    """A consumer class of `__main__` copies files that were put before it started."""
    source, target = tmp_path / "from", tmp_path / "to"
    source.mkdir()
    target.mkdir()
    for n in range(40):
        (source / f"{n}.txt").write_text(f"file {n}")
    run(tmp_path / "copy_files.py", COPY, source, target)
    assert {file.name: file.read_text() for file in target.iterdir()} == {f"{n}.txt": f"file {n}" for n in range(40)}
