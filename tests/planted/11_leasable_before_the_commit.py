"""A message is delivered while its put still waits for the disk."""

FIRST = "test_queue.py"
EDITS = [
    (
        "journal.py",
        """\
        self._await_put()
        super()._commit(event)
""",
        """\
        super()._commit(event)
        self._await_put()
""",
    ),
]
