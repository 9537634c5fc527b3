"""A message is delivered while its put still waits for the disk."""

FIRST = "test_queue.py"
EDITS = [
    (
        "journal.py",
        """\
        self._await_put()
        self._ledger.commit(event.base + event.count)
""",
        """\
        self._ledger.commit(event.base + event.count)
        self._await_put()
""",
    ),
]
