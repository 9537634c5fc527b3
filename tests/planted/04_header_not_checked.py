"""The checksum of a record's header is not compared."""

FIRST = "test_format.py"
EDITS = [
    (
        "format.py",
        """\
    if _U32.unpack_from(data, at + 4)[0] != crc32(data[at + 8 : at + RECORD_HEADER_SIZE], salt):
        return None
""",
        "",
    ),
    (
        "format.py",
        "    return body if crc32(data[8:RECORD_HEADER_SIZE], salt) == hcrc else None\n",
        "    return body\n",
    ),
]
