"""Scanning a string that holds records: every cut, every flip, and records that only look like some."""

from itertools import pairwise
from zlib import crc32

import pytest

from daskqueue_storage.body import draft_messages
from daskqueue_storage.format import FILE_HEADER_SIZE, RecordHeader, encode_header
from daskqueue_storage.scan import Hole, scan

SALT = 4711


def append(data: bytearray, batch: list[bytes], rno: int, *, salt: int = SALT) -> RecordHeader:
    """Put a record at the end of `data`."""
    made = draft_messages(batch)
    header = RecordHeader(1, made.flags, 0, made.count, len(data), rno, 0, 1, 1, made.blen, made.bcrc, made.aux)
    data += encode_header(header, salt)
    data += b"".join(made.parts)
    data += bytes(-len(data) % 8)
    return header


@pytest.fixture(name="log")
def _log() -> tuple[bytes, list[RecordHeader]]:
    data = bytearray(FILE_HEADER_SIZE)
    batches = [[b"one"], [b"two", b"twos"], [b""], [b"x" * 40], [b"last"]]
    headers = [append(data, batch, rno) for rno, batch in enumerate(batches)]
    return bytes(data), headers


def scanned(data: bytes, *, bodies: bool = True, start: int = FILE_HEADER_SIZE) -> list[RecordHeader | Hole]:
    """What is found; the parts cover the file, and holes do not touch."""
    found = list(scan(lambda size, at: data[at : at + size], start, len(data), SALT, bodies=bodies))
    at = start
    for part in found:
        first, after = (part.start, part.stop) if isinstance(part, Hole) else (part.pos, part.end)
        assert first == at
        at = after
    assert at == max(start, len(data))
    assert not any(isinstance(a, Hole) and isinstance(b, Hole) for a, b in pairwise(found))
    return found


def test_whole_logs_are_their_records(log) -> None:
    """No holes, in order."""
    data, headers = log
    assert scanned(data) == scanned(data, bodies=False) == headers


def test_every_cut_leaves_the_whole_records(log) -> None:
    """Cut at any byte: exactly the records before it, then a hole."""
    data, headers = log
    for cut in range(FILE_HEADER_SIZE, len(data)):
        found = scanned(data[:cut])
        whole = [header for header in headers if header.end <= cut]
        assert found[: len(whole)] == whole
        assert len(found) == len(whole) + (cut > (whole[-1].end if whole else FILE_HEADER_SIZE))


def test_every_flip_costs_one_record_at_most(log) -> None:
    """Flip any bit: that record is a hole, all others are found; padding is not covered and harmless."""
    data, headers = log
    harmless = 0
    for bit in range(8 * FILE_HEADER_SIZE, 8 * len(data)):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        hit = next(header for header in headers if header.pos <= bit // 8 < header.end)
        found = scanned(bytes(broken))
        if found == headers:
            assert bit // 8 >= hit.pos + 64 + hit.blen
            harmless += 1
        else:
            assert found == [Hole(h.pos, h.end) if h is hit else h for h in headers]
    assert harmless == 8 * sum(-header.blen % 8 for header in headers)


def test_bodies_are_not_read_unless_asked(log) -> None:
    """A flipped payload bit is no business of a header scan."""
    data, headers = log
    broken = bytearray(data)
    broken[headers[3].pos + 64] ^= 1
    assert scanned(bytes(broken), bodies=False) == headers


def test_a_copied_log_in_a_payload_is_not_found(log) -> None:
    """Records stand at one place only: a whole segment as a payload is a payload, also behind damage."""
    data, _ = log
    outer = bytearray(FILE_HEADER_SIZE)
    big = append(outer, [data], 0)
    after = append(outer, [b"after"], 1)
    assert scanned(bytes(outer)) == [big, after]
    outer[big.pos + 20] ^= 1
    assert scanned(bytes(outer)) == [Hole(big.pos, big.end), after]


def test_records_of_another_file_are_not_found(log) -> None:
    """The salt keeps them out, though they stand at their position."""
    data, headers = log
    mixed = bytearray(data[: headers[2].pos])
    append(mixed, [b"foreign"], 2, salt=SALT + 1)
    assert scanned(bytes(mixed)) == [*headers[:2], Hole(headers[2].pos, len(mixed))]


def test_the_way_is_found_again_far_behind() -> None:
    """Behind megabytes of damage, at every alignment to the pieces that are read."""
    for extra in (0, 8, 56, 64, 72):
        data = bytearray(FILE_HEADER_SIZE)
        first = append(data, [bytes((1 << 21) + extra)], 0)
        last = append(data, [b"found"], 1)
        assert scanned(bytes(data)) == [first, last]
        data[first.pos] ^= 1
        assert scanned(bytes(data)) == [Hole(first.pos, first.end), last]


def test_large_and_small_records_mixed() -> None:
    """The window hops over large ones and reads small ones ahead: the same records either way."""
    data = bytearray(FILE_HEADER_SIZE)
    sizes = [10] * 3000 + [100_000] * 5 + [10] * 50 + [300_000] + [5_000] * 100
    headers = [append(data, [bytes(size)], rno) for rno, size in enumerate(sizes)]
    assert scanned(bytes(data)) == scanned(bytes(data), bodies=False) == headers


def test_hopping_reads_little() -> None:
    """A header scan of large records reads a few kilobytes each, not the payloads."""
    data = bytearray(FILE_HEADER_SIZE)
    headers = [append(data, [bytes(100_000)], rno) for rno in range(20)]
    sizes: list[int] = []

    def read(size: int, at: int) -> bytes:
        sizes.append(size)
        return bytes(data[at : at + size])

    assert list(scan(read, FILE_HEADER_SIZE, len(data), SALT)) == headers
    assert sum(sizes) < 20 * 8192


def test_a_file_that_became_shorter_is_a_hole(log) -> None:
    """Reads that return less than the size said end the scan instead of looping."""
    data, headers = log
    found = list(scan(lambda size, at: data[at : at + size], FILE_HEADER_SIZE, len(data) + 5000, SALT, bodies=True))
    assert found == [*headers, Hole(len(data), len(data) + 5000)]
    cut = data[: headers[4].pos + 66]
    found = list(scan(lambda size, at: cut[at : at + size], FILE_HEADER_SIZE, len(data), SALT, bodies=True))
    assert found == [*headers[:4], Hole(headers[4].pos, len(data))]


def test_checksums_of_bodies_in_pieces() -> None:
    """A body larger than the window is checked all the same."""
    data = bytearray(FILE_HEADER_SIZE)
    header = append(data, [bytes(3 << 20)], 0)
    assert header.bcrc == crc32(bytes(3 << 20))
    assert scanned(bytes(data)) == [header]
    data[-1] ^= 1
    assert scanned(bytes(data)) == [Hole(header.pos, header.end)]
