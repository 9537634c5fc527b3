"""A job of many file copies that outlives its cluster: kill everything in the middle, start again, and it finishes.

    python examples/resume.py [number of files]

The job itself is `copy_all`: a durable pool in a directory, and one task a file under the file's name. It does not ask
how far it came last time: whatever is submitted again under a key that the pool knows is not run again. Here it runs in
a process group of its own, is ended with SIGKILL, cluster and all, when a third of the files are there, and is started
once more. Then every byte is compared.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from distributed import Client, LocalCluster

from daskqueue import ConsumerPool, QueuePool

PATIENCE_S = 120


def copy(source: str, target: str, log: str) -> None:
    """Copy one file so that it is there whole or not at all; write down that it was done."""
    part = f"{target}.part"
    shutil.copyfile(source, part)
    time.sleep(0.002)  # a disk that is shared by many
    os.replace(part, target)
    line = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(line, f"{os.path.basename(target)}\n".encode())
    os.close(line)


def copy_all(root: Path) -> None:
    """The job: the same call begins it and goes on with it."""
    with LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as cluster, Client(cluster) as client:
        pool = QueuePool(client, durability="durable", dirpath=root / "queue")
        before = sum(queue.finished for queue in pool.stats())
        consumers = ConsumerPool(client, pool)
        consumers.start()
        for source in sorted((root / "from").iterdir()):
            target = root / "to" / source.name
            pool.options(key=source.name).submit(copy, str(source), str(target), str(root / "log"))
        consumers.join(timeout=PATIENCE_S)
        stats = pool.stats()[0]
        print(f"  {before} were done when it began, {stats.finished} are now, {stats.failed} failed")
        pool.shutdown()


def begin(root: Path) -> subprocess.Popen[bytes]:
    """The job in a process group of its own."""
    return subprocess.Popen([sys.executable, __file__, "--job", str(root)], start_new_session=True)


def main(count: int) -> None:
    """Begin the job, kill it, and begin it again."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "from").mkdir()
        (root / "to").mkdir()
        for number in range(count):
            (root / "from" / f"{number:06}.dat").write_bytes(os.urandom(2_000 + number % 1_000))

        print(f"{count} files; the job begins")
        job = begin(root)
        deadline = time.monotonic() + PATIENCE_S
        while sum(path.suffix == ".dat" for path in (root / "to").iterdir()) < count // 3:
            if job.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the job did not get as far as it should before it is killed")
            time.sleep(0.01)
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        done = sum(path.suffix == ".dat" for path in (root / "to").iterdir())
        print(f"killed, the whole cluster with it, when {done} files were there; the job begins again")

        if begin(root).wait(PATIENCE_S):
            raise SystemExit("the job failed the second time")
        names = os.listdir(root / "from")
        same = len(filecmp.cmpfiles(root / "from", root / "to", names, shallow=False)[0])
        runs = (root / "log").read_text().splitlines()
        print(f"{same} of {count} files are there and equal; {len(runs) - len(set(runs))} were copied twice")
        if same != count:
            raise SystemExit(1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        copy_all(Path(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 2_000)
