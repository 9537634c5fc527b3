"""Recovery cuts what it does not understand."""

FIRST = "test_crashes.py"
EDITS = [
    (
        "recovery.py",
        "        found.end_hole = hole\n",
        """\
        found.end_hole = hole
        if hole is not None and self._owner:
            self._files.truncate(handle, hole.start)
""",
    ),
]
