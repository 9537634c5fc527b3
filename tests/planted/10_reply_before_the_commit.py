"""A put, and a report of results, return before they are durable."""

FIRST = "test_durable_crashes.py"
EDITS = [
    (
        "journal.py",
        """\
        with self._turn.away():
            self._store.log.commit(placed)
""",
        "        pass\n",
    ),
    (
        "upkeep.py",
        """\
        if owed is not None:
            queue._store.index.commit(owed)
""",
        "",
    ),
]
