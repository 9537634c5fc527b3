"""Version 1 of the format, kept in files: read to exactly what it says, and written to exactly these bytes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from daskqueue_storage.command_line import main
from daskqueue_storage.errors import FormatError
from daskqueue_storage.format import RecordType, decode_file_header, encode_file_header
from daskqueue_storage.log import SegmentedLog
from daskqueue_storage.queue import DurableQueue
from daskqueue_storage.read_only import ReadOnlyQueue
from daskqueue_storage.testing.golden import UUID, golden_files
from daskqueue_storage.verify import verify

GOLDEN = Path(__file__).parent / "golden" / "v1"
NAMES = ("log", "queue", "compacted")
SCRIPT = Path(__file__).parents[2] / "scripts" / "make_golden_storage.py"
WORDS = {
    "stats": ["stats", "--json"],
    "dump": ["dump", "--json", "--bodies"],
    "messages": ["dump", "--json", "--bodies", "--messages"],
    "dead": ["dead", "--json"],
}
SAID = sorted(path.name for path in GOLDEN.iterdir() if path.is_file())


@pytest.fixture
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that is ours alone, and where we stand."""
    for name in NAMES:
        shutil.copytree(GOLDEN / name, tmp_path / name)
        (tmp_path / name).chmod(0o700)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_writer_writes_exactly_these_bytes() -> None:
    """Under the same clock, uuid, host and chance."""
    written = golden_files()
    there = {
        str(path.relative_to(GOLDEN)): path for name in NAMES for path in (GOLDEN / name).rglob("*") if path.is_file()
    }
    assert written.keys() == there.keys()
    for name, data in written.items():
        assert there[name].read_bytes() == data, f"{name} is another; is that a new version of the format?"


@pytest.mark.usefixtures("golden")
@pytest.mark.parametrize("name", SAID)
def test_it_is_read_to_exactly_this(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Value by value, what each looking command says."""
    directory, question, _ = name.split(".")
    assert main([*WORDS[question], directory]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said == [json.loads(line) for line in (GOLDEN / name).read_text(encoding="utf-8").splitlines()]


def test_every_record_that_is_written_is_among_them() -> None:
    """Each type has an example."""
    rows = [json.loads(line) for name in NAMES for line in (GOLDEN / f"{name}.dump.jsonl").read_text().splitlines()]
    assert {row["type"] for row in rows} == set(RecordType.__members__)


def test_it_is_whole(golden: Path) -> None:
    """So says verify, with the snapshots compared."""
    for name in NAMES:
        report = verify(golden / name)
        assert report.whole, report.problems
        assert report.index is None or report.index.compared == 1


def test_it_goes_on(golden: Path) -> None:
    """Today's writer opens it, and finds and adds what it should."""
    with SegmentedLog(golden / "log") as log:
        assert [data for _, data in log.scan()][-1] == "after it, in another epoch \N{SNOWMAN}".encode()
        assert log.append(b"more") == log.stats().end - 1
    with DurableQueue(golden / "queue", uuid=UUID, owners=["worker-2"]) as queue:
        lease = queue.lease(100, owner="anybody")
        assert lease is not None
        assert lease.ids == [19], "suspects are leased apart"
        queue.ack(lease)
        lease = queue.lease(100, owner="anybody")
        assert lease is not None
        bodies = [bytes(body) for part in lease.parts if part.lengths for body in part.bodies()]
        assert bodies[:8] == [b"equal", b"sizes", b"", b"bb", b"ccc", b"dddd", b"one", b"three"]
        assert bodies[8:] == [b"alone 0", b"alone 1", b"alone 2"]
    assert main(["unlock", "--force", "compacted"]) == 0, "nobody of that host is left to ask"
    with DurableQueue(golden / "compacted", owners=["worker-1"]) as queue:
        lease = queue.lease(100, owner="worker-1", request=7)
        assert lease is not None
        assert [bytes(body) for part in lease.parts for body in part.bodies()] == [b"stays", b"more" * 200]
    for name in NAMES:
        assert verify(golden / name).whole


@pytest.mark.parametrize("name", NAMES)
def test_a_newer_major_is_refused(golden: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By everybody who opens it, with the version that is needed; a newer minor is not."""
    path = golden / name / "FORMAT"
    header = decode_file_header(path.read_bytes())
    assert header is not None
    path.write_bytes(encode_file_header(header._replace(minor=9)))
    assert main(["stats", name]) == 0
    path.write_bytes(encode_file_header(header._replace(major=2)))
    before = {path: path.read_bytes() for path in golden.rglob("*") if path.is_file()}
    for command in ("stats", "verify", "dump"):
        assert main([command, name]) == 2
        said = capsys.readouterr().err
        assert "format 2.0, this version reads 1.0; open it with a newer daskqueue-storage" in said
    for opener in (SegmentedLog, DurableQueue, ReadOnlyQueue, verify):
        with pytest.raises(FormatError):
            opener(golden / name)  # type: ignore[operator]
    assert {path: path.read_bytes() for path in golden.rglob("*") if path.is_file()} == before


@pytest.mark.skipif(not SCRIPT.exists(), reason="the script is not part of the package")
def test_the_script_makes_them() -> None:
    """It finds nothing to write."""
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
