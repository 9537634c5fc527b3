"""Part of a put survived, and its producer is told that all of it did."""

FIRST = "test_queue.py"
EDITS = [
    (
        "tail.py",
        "    producer, number = (first.producer if not first.goes_on else None) or (None, 0)\n",
        "    producer, number = first.producer or (None, 0)\n",
    ),
]
