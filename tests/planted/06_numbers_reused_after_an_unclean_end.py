"""Numbers that were given and lost are given again."""

FIRST = "test_log.py"
EDITS = [
    (
        "recovery.py",
        "        next_seq if clean else next_seq + MAX_COUNT,\n",
        "        next_seq,\n",
    ),
]
