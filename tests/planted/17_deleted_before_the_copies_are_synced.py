"""A segment goes as soon as what is needed of it was copied."""

FIRST = "test_queue.py"
EDITS = [
    (
        "upkeep.py",
        "            copied += moved\n",
        """\
            copied += moved
            self._store.files.unlink(info.path)
""",
    ),
]
