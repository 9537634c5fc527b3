"""A put whose end was never written goes on in the next one, which has the right numbers for that."""

FIRST = "test_queue.py"
EDITS = [
    (
        "tail.py",
        "    return record.goes_on and (record.following, record.base) == expected\n",
        "    return (record.following, record.base) == expected\n",
    ),
]
