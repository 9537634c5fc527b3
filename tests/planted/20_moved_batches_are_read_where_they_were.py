"""After a kill, a batch that was copied is looked for at its old place."""

FIRST = "test_queue.py"
EDITS = [
    (
        "restoring.py",
        "moved.get(base, place)",
        "place",
    ),
]
