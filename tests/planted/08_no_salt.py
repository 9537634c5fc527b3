"""A header's checksum does not know its log, segment and epoch: records of other files verify."""

FIRST = "test_scan.py"
EDITS = [
    (
        "format.py",
        "crc32(covered, salt)",
        "crc32(covered)",
    ),
    (
        "format.py",
        "crc32(data[at + 8 : at + RECORD_HEADER_SIZE], salt)",
        "crc32(data[at + 8 : at + RECORD_HEADER_SIZE])",
    ),
    (
        "format.py",
        "crc32(data[8:RECORD_HEADER_SIZE], salt)",
        "crc32(data[8:RECORD_HEADER_SIZE])",
    ),
]
