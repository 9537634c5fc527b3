"""A queue's directory that changed behind its back: bits, cuts, missing, swapped and foreign files, log and index.

Opening never fails but with an error of ours, no wrong payload is delivered, no wrong result told, and what is lost is
reported: by the report of opening, or, when a payload is not read before it is delivered, as a dead letter.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable

import pytest

from daskqueue_core.batch import Batch, Keep, Kind, lengths_column
from daskqueue_core.outcomes import Report
from daskqueue_storage.errors import StorageError
from daskqueue_storage.format import (
    FILE_HEADER_SIZE,
    RECORD_HEADER_SIZE,
    RecordHeader,
    decode_file_header,
    record_salt,
)
from daskqueue_storage.queue import DurableQueue
from daskqueue_storage.scan import scan
from daskqueue_storage.testing import SimFiles
from daskqueue_storage.verify import verify

pytestmark = pytest.mark.timeout(1800)  # with many rounds
BODIES = [b"message %d " % at + b"x" * (7 * at) for at in range(8)]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Damage is logged, and here it is everywhere."""
    caplog.set_level(logging.CRITICAL, "daskqueue_storage")


def opened(files: SimFiles) -> DurableQueue:
    """The queue of this disk."""
    return DurableQueue("/queue", files=files, segment_bytes=4096, wait=100.0, result_ttl=None)


def small_directory() -> SimFiles:
    """Two epochs, two snapshots, messages in every state, closed cleanly. Results are named after their message."""
    files = SimFiles()
    with opened(files) as queue:
        for first in range(0, 8, 2):
            bodies = BODIES[first : first + 2]
            options = {"kind": Kind.CALL, "client": 7, "first": first, "keep": Keep.KEEP}
            queue.admit([Batch(2, b"".join(bodies), lengths_column(bodies), b"shared", **options)])
        lease = queue.lease(2)
        assert lease is not None
        queue.settle(lease.id, [Report(0, 1, b"value 0")])
        queue._snapshot()
        queue.settle(lease.id, [Report(1, 2, b"value 1")])
    with opened(files) as queue:
        lease = queue.lease(2)
        assert lease is not None
        queue.settle(lease.id, [Report(2, 3, b"value 2")])
        queue.nack(lease, [3], error=b"E", text="no")
    return files


def check(files: SimFiles) -> tuple[set[int], bool]:
    """Open and look at everything: which messages are there in some state, and whether something was reported."""
    with opened(files) as queue:
        queue.validate()
        there: set[int] = set()
        for _, outcome in queue.read_kept()[1]:
            if outcome.values:
                assert bytes(outcome.values) == b"value %d" % (outcome.first + outcome.index)
                there.add(outcome.first + outcome.index)
        letters = queue.dead_letters()
        there |= {letter.number for letter in letters if "DamagedPayload" not in letter.text}
        while (lease := queue.lease(50, owner=f"w{len(there)}")) is not None:
            for part in lease.parts:
                for at, body in enumerate(part.bodies()):
                    assert bytes(body) == BODIES[part.first + at], f"a wrong payload under {part.first + at}"
                    there.add(part.first + at)
        damaged = any("DamagedPayload" in letter.text for letter in queue.dead_letters())
        return there, damaged or not queue.report.whole or bool(queue.report.tail_bytes)


def test_the_directory_is_whole() -> None:
    """What all the others change."""
    assert check(small_directory().crash("kill")) == (set(range(8)), False)


@pytest.mark.parametrize("part", ["log", "idx", "FORMAT"])
def test_every_flip(part: str, rounds: int) -> None:
    """No more than one record's messages are lost, and `verify` names the place.

    By default some bits; if asked every bit of a log and of headers, and of all else some bits of every byte.
    """
    files = small_directory()
    for path, data in files.tree().items():
        if not path.endswith(part):
            continue
        whole = len(data) if part != "idx" else 300
        bits = range(0, 8 * len(data), 797 if part == "idx" else 203)
        if rounds > 1:
            bits = [*range(8 * whole), *range(8 * whole, 8 * len(data), 7)]
        flip(files, path, bits, messages=8)


@pytest.mark.slow
def test_every_bit() -> None:
    """Of the smallest queue that has a snapshot, in both logs and FORMAT: none is wrong, and none goes unnoticed."""
    files = SimFiles()
    with opened(files) as queue:
        options = {"kind": Kind.CALL, "client": 7, "first": 0, "keep": Keep.KEEP}
        queue.admit([Batch(2, b"".join(BODIES[:2]), lengths_column(BODIES[:2]), b"shared", **options)])
        lease = queue.lease(1)
        assert lease is not None
        queue.settle(lease.id, [Report(0, 1, b"value 0")])
    for path, data in files.tree().items():
        if "lock" not in path:
            flip(files, path, range(8 * len(data)), messages=2)


def flip(files: SimFiles, path: str, bits: Iterable[int], *, messages: int) -> None:
    """Each of these bits, in a copy."""
    data = files.tree()[path]
    padding = paddings(path, data)
    for bit in bits:
        at = bit // 8
        broken = bytearray(data)
        broken[at] ^= 1 << bit % 8
        copy = files.crash("kill")
        copy.edit(path, bytes(broken))
        found = verify("/queue", files=copy.also())
        named = any(problem.path == path and problem.offset <= at for problem in found.problems)
        assert named is not (at in padding), f"bit {bit} of {path}: {found.problems}"
        there, told = check(copy)
        lost = set(range(messages)) - there
        assert told or not lost, f"bit {bit} of {path}: {lost} are lost, and nobody says so"
        assert len(lost) <= 2, f"bit {bit} of {path} costs {lost}"


def paddings(path: str, data: bytes) -> set[int]:
    """The bytes that mean nothing."""
    if path.endswith("FORMAT"):
        return set()
    header = decode_file_header(data[:FILE_HEADER_SIZE])
    assert header is not None
    salt = record_salt(header.uuid, header.number, header.epoch)
    found: set[int] = set()
    for record in scan(lambda size, at: data[at : at + size], FILE_HEADER_SIZE, len(data), salt):
        assert isinstance(record, RecordHeader)
        found.update(range(record.pos + RECORD_HEADER_SIZE + record.blen, record.end))
    return found


def test_every_cut(rounds: int) -> None:
    """Each length that each file may be cut to."""
    files = small_directory()
    for path, data in files.tree().items():
        if "lock" in path:
            continue
        for size in range(0, len(data), 8 if rounds > 1 else 400):
            copy = files.crash("kill")
            copy.edit(path, data[:size])
            there, told = check(copy)
            assert told or len(there) == 8, f"{path} cut to {size}"


def test_a_missing_file_is_noticed() -> None:
    """Whichever it is: named, if it held anything."""
    files = small_directory()
    for path in files.tree():
        if "lock" in path:
            continue
        copy = files.crash("kill")
        copy.edit(path, None)
        there, told = check(copy)
        assert told, f"{path} is gone, and nobody says so"
        assert path.endswith(".log") or len(there) == 8 or "idx" in path


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("closed", [False, True])
def test_the_end_of_the_log_is_gone(closed: bool, every: bool) -> None:
    """A snapshot knows how much there was: the report says what is lost, and what is put from now on is not."""
    files = SimFiles()
    queue = opened(files)
    for body in (b"first" * 900, b"last" * 900):  # a segment each
        queue.put(body)
    queue._snapshot()
    if closed:
        queue.close()
    copy = files.crash("kill")
    logs = sorted(path for path in copy.tree() if "/log/" in path)
    for path in logs if every else logs[1:]:
        copy.edit(path, None)
    with opened(copy) as queue:
        assert queue.report.missing_files
        assert (queue.stats().lost, queue.stats().ready) == (queue.report.lost_records, 2)
        assert len(queue.report.missing_files) == 1
        assert queue.stats().lost == queue._store.snapshot.covered - (
            0 if every else queue._store.shelf.segments[0].last_rno + 1
        )
        assert queue.report.reused_snapshot
        seq = queue.put(b"new")
    with opened(copy.crash("kill")) as queue:
        lease = queue.lease(9)
        assert lease is not None
        bodies = [bytes(body) for part in lease.parts for body in part.bodies()]
        assert bodies == ([b"new"] if every else [b"first" * 900, b"new"])
        assert lease.ids[-1] == seq
        assert len(queue.dead_letters()) == (2 if every else 1)


def test_files_that_changed_places() -> None:
    """Two of one log, or of both: a record knows where it belongs, so it is damage and nothing else."""
    files = small_directory()
    segments = sorted(path for path in files.tree() if path.endswith((".log", ".idx")))
    for at, first in enumerate(segments):
        for second in segments[at + 1 :]:
            copy, contents = files.crash("kill"), files.tree()
            copy.edit(first, contents[second])
            copy.edit(second, contents[first])
            _, told = check(copy)
            assert told, f"{first} and {second} were exchanged, and nobody says so"


def test_files_of_another_queue() -> None:
    """Under the right name and all: nothing of them comes in."""
    files, other = small_directory(), SimFiles(seed=9)
    with opened(other) as queue:
        queue.put_many([b"not ours"] * 3)
        queue._snapshot()
    foreign = {path.rpartition(".")[2]: data for path, data in other.tree().items()}
    for path in files.tree():
        kind = path.rpartition(".")[2]
        if kind in ("log", "idx"):
            copy = files.crash("kill")
            copy.edit(path, foreign[kind])
            _, told = check(copy)
            assert told, path


def test_random_bytes(rounds: int) -> None:
    """Somewhere, some bytes; or anywhere in several files at once. Open, or an error of ours."""
    files = small_directory()
    for seed in range(40 * rounds):
        chance, copy = random.Random(seed), files.crash("kill")
        for path, data in files.tree().items():
            if chance.random() < 0.4 and "lock" not in path:
                start = chance.randrange(len(data))
                some = chance.randbytes(chance.randint(1, 200))
                copy.edit(path, (data[:start] + some + data[start + len(some) :])[: len(data)])
        try:
            check(copy)
        except StorageError:
            pass


def test_foreign_files_are_left_alone() -> None:
    """Named in the report, never touched."""
    files = small_directory()
    strange = {f"/queue/{where}/.nfs0001": b"theirs" for where in ("log", "index")}
    for path, data in strange.items():
        files.edit(path, data)
    with opened(files) as queue:
        assert set(queue.report.foreign_files) == set(strange)
        assert queue.report.whole
    assert {path: files.tree()[path] for path in strange} == strange
