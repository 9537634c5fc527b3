"""A block that was moved forgets which of its elements is the first message."""

FIRST = "test_queue.py"
EDITS = [
    (
        "records.py",
        "        offset=offset,\n",
        "        offset=offset if header.type == RecordType.PUT else 0,\n",
    ),
]
