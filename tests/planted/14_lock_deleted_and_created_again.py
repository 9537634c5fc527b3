"""Whoever finds a lock of a dead owner deletes it and takes its number."""

FIRST = "test_lock.py"
EDITS = [
    (
        "lock.py",
        """\
            if self._take(last + 1):
                break
""",
        """\
            if highest:
                remove_quietly(self._files, f"{self._root}/lock-{highest:08x}")
            if self._take(max(1, last)):
                break
""",
    ),
]
