"""A flipped byte of a payload is delivered."""

FIRST = "test_queue.py"
EDITS = [
    (
        "shelf.py",
        "    if len(body) != header.blen or crc32(body) != header.bcrc:\n",
        "    if len(body) != header.blen:\n",
    ),
    (
        "format.py",
        " or crc32(body) != bcrc:",
        ":",
    ),
]
