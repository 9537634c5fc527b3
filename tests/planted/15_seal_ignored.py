"""What a replaced writer appended after it was sealed counts."""

FIRST = "test_recovery.py"
EDITS = [
    (
        "recovery.py",
        """\
        info = found.info
        if row is not None:
""",
        """\
        info = found.info
        row = None
        if row is not None:
""",
    ),
]
