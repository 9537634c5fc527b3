"""The lease is looked at, then synced, then acknowledged: who takes over in between loses the message."""

FIRST = "test_lock.py"
EDITS = [
    (
        "writer.py",
        """\
        if self._sync == "batch":
            self._wait(placed.rno)
        self.verify()
""",
        """\
        self.verify()
        if self._sync == "batch":
            self._wait(placed.rno)
""",
    ),
]
