"""A message is delivered while its put still waits for the disk."""

FIRST = "test_queue.py"
EDITS = [
    (
        "queue.py",
        """\
            with self._turn.away():
                self._store.log.commit(placed)
""",
        """\
            super()._commit(event)
            with self._turn.away():
                self._store.log.commit(placed)
""",
    ),
]
