"""A new segment's name is not made durable."""

FIRST = "test_crashes.py"
EDITS = [
    (
        "segment.py",
        "            files.sync_dir(directory)\n",
        "            pass\n",
    ),
]
