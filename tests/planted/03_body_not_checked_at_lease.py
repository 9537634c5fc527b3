"""A flipped byte of a payload is delivered."""

FIRST = "test_queue.py"
EDITS = [
    (
        "shelf.py",
        "            if len(body) == header.blen and crc32(body) == header.bcrc:\n",
        "            if len(body) == header.blen:\n",
    ),
    (
        "singles.py",
        " or crc32(body) != header.bcrc:",
        ":",
    ),
]
