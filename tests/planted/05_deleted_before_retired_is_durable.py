"""A segment goes before the record that says so is on disk."""

FIRST = "test_durable_crashes.py"
EDITS = [
    (
        "store.py",
        """\
        writer.sync()
        for info in doomed:
            remove_quietly(self.files, info.path)
""",
        """\
        for info in doomed:
            remove_quietly(self.files, info.path)
        writer.sync()
""",
    ),
]
