"""A real child works with a durable queue and is killed: what it said was done holds."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from daskqueue_storage.queue import DurableQueue

CHILD = """
import sys
from daskqueue_core.outcomes import Report
from daskqueue_storage.queue import DurableQueue

queue = DurableQueue(sys.argv[1], sync=sys.argv[2], segment_bytes=65536, wait=60.0, lock_ttl=10.0)
print("open", flush=True)
for round in range(100000):
    numbers = queue.put_many([b"%d" % n for n in range(20)])
    print("put", numbers.start, numbers.stop, flush=True)
    lease = queue.lease(15)
    for part in lease.parts:
        queue.settle(lease.id, [Report(part.start, part.stop, b"values")])
        print("done", part.start, part.stop, flush=True)
    if round % 7 == 6:
        queue.compact()
"""


@pytest.mark.parametrize("sync", ["batch", "none"])
def test_killed_again_and_again(tmp_path: Path, sync: str) -> None:
    """Three lives in one directory, each killed at a random moment, also amid snapshots and compaction."""
    put: set[int] = set()
    done: set[int] = set()
    chance = random.Random(sync)
    for _ in range(3):
        command = [sys.executable, "-c", CHILD, str(tmp_path / "queue"), sync]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for line in range(chance.randint(5, 60)):
                said = child.stdout.readline().split()
                assert said, f"the child died by itself before line {line}"
                take(said, put, done)
            child.send_signal(signal.SIGKILL)
            for rest in child.stdout:
                if rest.endswith("\n"):
                    take(rest.split(), put, done)
    with DurableQueue(tmp_path / "queue", wait=60.0) as queue:
        assert queue.report.whole
        queue.validate()
        left: set[int] = set()
        while (lease := queue.lease(1000)) is not None:
            left.update(lease.ids)
            queue.ack(lease)
    assert not done & left, "done, and delivered again"
    # One lease of the child may have been done without its having said so, in each life.
    assert len(put - done - left) <= 3 * 15, "put and lost"


def take(said: list[str], put: set[int], done: set[int]) -> None:
    """A line of the child."""
    if said[0] != "open":
        (put if said[0] == "put" else done).update(range(int(said[1]), int(said[2])))
