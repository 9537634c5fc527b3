"""Ten million: cycles through one queue, and messages that wait in one while it is opened again. Prints what they cost.

Slow: two minutes together. In processes of their own, so that memory is theirs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]

COMMON = """
import json, os, signal, sys, time
from pathlib import Path
from daskqueue_storage.queue import DurableQueue

path, count, batch = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def memory():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")

def disk():
    return sum(file.stat().st_blocks * 512 for file in path.rglob("*") if file.is_file())

def tell(**what):
    print(json.dumps(what), flush=True)
"""

CYCLES = """
queue = DurableQueue(path)
bodies = [b"%0100d" % number for number in range(batch)]
start = time.perf_counter()
for done in range(0, count, batch):
    queue.put_many(bodies)
    lease = queue.lease(batch)
    assert len(lease) == batch
    assert queue.ack(lease) == batch
    if (done + batch) % (count // 10) == 0:
        tell(done=done + batch, memory=memory(), disk=disk(), seconds=time.perf_counter() - start)
assert queue.stats().finished == count
queue.close()
logs, indexes = (sorted(path.glob(f"{part}/*")) for part in ("log", "index"))
tell(logs=len(logs), indexes=len(indexes), disk=disk())
"""

FILL = """
queue = DurableQueue(path, sync="none")
body = b"%0100d" % 7
start = time.perf_counter()
for _ in range(0, count, batch):
    queue.put_many([body] * batch) if batch > 1 else queue.put(body)
tell(seconds=time.perf_counter() - start, disk=disk())
if sys.argv[4] == "close":
    queue.close()
else:
    queue.sync()
    os.kill(os.getpid(), signal.SIGKILL)
"""

OPEN = """
before, start = memory(), time.perf_counter()
queue = DurableQueue(path, wait=60)
opened = time.perf_counter() - start
after = memory()
lease = queue.lease(10)
tell(opened=opened, first=time.perf_counter() - start, each=(after - before) / count)
assert queue.ready == count - len(lease), queue.ready
assert queue.report.whole, queue.report
os._exit(0)
"""


def run(script: str, *arguments: object) -> list[dict[str, Any]]:
    """What a child told; that it prints is shown at once."""
    words = [sys.executable, "-c", COMMON + script, *map(str, arguments)]
    told = []
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            told.append(json.loads(line))
            print(", ".join(f"{name} {value:,.3f}".rstrip("0").rstrip(".") for name, value in told[-1].items()))  # noqa: T201
    assert child.returncode in (0, -9)
    return told


def test_ten_million_cycles(tmp_path: Path) -> None:
    """Put, lease, ack, by the thousand: memory and disk stay where they were, and at the end nearly nothing is left."""
    told = run(CYCLES, tmp_path / "queue", 10_000_000, 1000)
    first, *_, last, end = told
    assert last["done"] == 10_000_000
    assert last["memory"] - first["memory"] < 32 << 20
    assert max(each["disk"] for each in told) < 4 * (64 << 20)
    assert (end["logs"], end["indexes"]) <= (1, 2)
    assert end["indexes"] <= 2


@pytest.mark.parametrize("end", ["close", "kill"])
@pytest.mark.parametrize(("count", "batch"), [(10_000_000, 1000), (1_000_000, 1)])
def test_millions_that_wait(tmp_path: Path, count: int, batch: int, end: str) -> None:
    """How long it takes to open them again, and what each takes in memory."""
    run(FILL, tmp_path / "queue", count, batch, end)
    [told] = run(OPEN, tmp_path / "queue", count, batch)
    assert told["each"] < (10 if batch > 1 else 40)  # of single ones after a kill also what the replay took
