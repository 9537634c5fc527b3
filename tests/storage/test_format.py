"""Headers, seals and tables: exact bytes, round trips, and nothing that was not written verifies."""

from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskqueue_storage.format import (
    FILE_HEADER_SIZE,
    FILE_MAGIC,
    RECORD_HEADER_SIZE,
    FileHeader,
    FileKind,
    RecordHeader,
    RecordType,
    Seal,
    SealedSegment,
    body_of,
    decode_epoch,
    decode_file_header,
    decode_header,
    decode_seal,
    encode_epoch,
    encode_file_header,
    encode_header,
    encode_seal,
    padded,
    record_salt,
    record_size,
    unsupported,
)

UUID = bytes(range(16))
u8, u32, u64 = st.integers(0, 2**8 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
headers = st.builds(RecordHeader, u8, u8, st.integers(-(2**15), 2**15 - 1), u32, u64, u64, u64, u64, u32, u32, u32, u32)
file_headers = st.builds(
    FileHeader, u32, st.binary(min_size=16, max_size=16), u64, u64, u32, st.integers(0, 9), st.integers(0, 9), u32
)


def test_file_header_bytes_are_exact() -> None:
    """The layout of the document, byte by byte."""
    packed = encode_file_header(FileHeader(FileKind.LOG_SEGMENT, UUID, 5, 9, 3, features=0x10000))
    assert packed[:8] == FILE_MAGIC == b"\x89DKQ\r\n\x1a\n"
    assert packed[8:16].hex() == "0100000000000100"
    assert packed[16:32] == UUID
    assert packed[32:60].hex() == "05000000000000000900000000000000030000000200000000000000"
    assert len(packed) == FILE_HEADER_SIZE


def test_record_header_bytes_are_exact() -> None:
    """The layout of the document, byte by byte."""
    header = RecordHeader(RecordType.PUT, 0x41, -2, 3, 64, 7, 100, 0x1122334455667788, 9, 24, 0xAABBCCDD, 8)
    packed = encode_header(header, record_salt(UUID, 5, 9))
    assert packed[:4] == b"DQR1"
    assert packed[8:16].hex() == "0141feff03000000"
    assert packed[16:48].hex() == "4000000000000000070000000000000064000000000000008877665544332211"
    assert packed[48:].hex() == "0900000018000000ddccbbaa08000000"
    assert len(packed) == RECORD_HEADER_SIZE


def test_every_type_has_its_number() -> None:
    """Numbers are on disk: none moves, none is used twice."""
    names = "PUT COPY SNAPSHOT DELIVERED ACKED RETURNED FAILED CANCEL_ASKED CANCELLED EPOCH ROLL CLOSE RETIRED EXPIRED"
    numbered = [*names.split(), "REQUEUED", "PURGED", "FORGOTTEN"]
    assert {kind.name: kind.value for kind in RecordType} == {name: at for at, name in enumerate(numbered, start=1)}


@given(file_headers)
def test_file_headers_round_trip(header: FileHeader) -> None:
    """Decode is the inverse of encode."""
    assert decode_file_header(encode_file_header(header)) == header


@given(headers, u32)
def test_record_headers_round_trip(header: RecordHeader, salt: int) -> None:
    """Decode is the inverse of encode, at any offset of a buffer."""
    packed = encode_header(header, salt)
    assert decode_header(packed, 0, header.pos, salt) == header
    assert decode_header(memoryview(b"12345678" + packed), 8, header.pos, salt) == header


def test_no_flipped_bit_verifies() -> None:
    """All 512 single-bit flips of either header are noticed."""
    record = encode_header(RecordHeader(1, 0x41, 0, 1, 64, 0, 0, 1, 1, 3, 5, 3), 77)
    file = encode_file_header(FileHeader(2, UUID, 1, 1, 1))
    for bit in range(512):
        flip = 1 << bit
        broken = (int.from_bytes(record, "little") ^ flip).to_bytes(64, "little")
        assert decode_header(broken, 0, 64, 77) is None
        broken = (int.from_bytes(file, "little") ^ flip).to_bytes(64, "little")
        assert decode_file_header(broken) is None


def test_the_body_of_one_record() -> None:
    """Of a record that verifies in its place, and of nothing else: no flipped bit, no byte more or less."""
    body, salt = b"12345678", record_salt(UUID, 1, 1)
    data = encode_header(RecordHeader(1, 0x41, 0, 1, 64, 0, 0, 1, 1, len(body), crc32(body), 8), salt) + body
    assert body_of(data, 64, 8, salt) == body
    for bit in range(8 * len(data)):
        broken = (int.from_bytes(data, "little") ^ 1 << bit).to_bytes(len(data), "little")
        assert body_of(broken, 64, 8, salt) is None
    for other in (data[:-1], data + b"9", data[:64], b""):
        assert body_of(other, 64, 8, salt) is None
    assert body_of(data, 72, 8, salt) is None
    assert body_of(data[:-1], 64, 7, salt) is None
    assert body_of(data, 64, 8, record_salt(UUID, 2, 1)) is None


def test_a_record_verifies_in_its_place_only() -> None:
    """Another position, segment, epoch or log: not a record. Zeros and half a header neither."""
    packed = encode_header(RecordHeader(1, 0x41, 0, 1, 64, 0, 0, 1, 1, 3, 5, 3), record_salt(UUID, 1, 1))
    assert decode_header(packed, 0, 72, record_salt(UUID, 1, 1)) is None
    for salt in (record_salt(UUID, 2, 1), record_salt(UUID, 1, 2), record_salt(bytes(16), 1, 1)):
        assert decode_header(packed, 0, 64, salt) is None
    assert decode_header(bytes(64), 0, 64, record_salt(UUID, 1, 1)) is None
    assert decode_header(packed[:63], 0, 64, record_salt(UUID, 1, 1)) is None
    assert decode_file_header(encode_file_header(FileHeader(1, UUID, 0, 0, 0))[:63]) is None


def test_what_is_newer_is_named() -> None:
    """A greater major or an unknown incompatible feature is refused; a minor or a compatible feature is not."""
    plain = FileHeader(1, UUID, 0, 0, 0)
    assert unsupported(plain) == unsupported(plain._replace(minor=9, features=0xFFFF0000)) == ""
    assert "format 2.0" in unsupported(plain._replace(major=2))
    assert "0x0004" in unsupported(plain._replace(features=0x10004))


def test_sizes_are_multiples_of_eight() -> None:
    """Bodies are padded; an empty one takes no room."""
    assert [padded(size) for size in (0, 1, 8, 9)] == [0, 8, 8, 16]
    assert record_size(0) == 64
    assert RecordHeader(1, 0, 0, 0, 64, 0, 0, 0, 0, 9, 0, 0).end == 64 + 64 + 16


def test_seals_and_tables_round_trip() -> None:
    """ROLL, CLOSE and EPOCH say what they were told; what is too short says so."""
    seal = Seal(1, 2, 3)
    assert decode_seal(encode_seal(seal)) == seal
    rows = [SealedSegment(1, 2, 3, 4, 5, 6, 7), SealedSegment(2**63, 9, 8, 7, 6, 5, 4)]
    assert decode_epoch(encode_epoch(11, rows)) == (11, rows)
    assert decode_epoch(encode_epoch(0, [])) == (0, [])
    with pytest.raises(ValueError, match="24 bytes"):
        decode_seal(bytes(23))
    for size in (7, 9):
        with pytest.raises(ValueError, match="table"):
            decode_epoch(bytes(size))
