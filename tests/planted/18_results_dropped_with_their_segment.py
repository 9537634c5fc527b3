"""A snapshot does not copy kept results forward."""

FIRST = "test_queue.py"
EDITS = [
    (
        "index.py",
        "[(number, client, _outcome(outcome), shift) for number, client, outcome, shift in state.kept.kept]",
        "[]",
    ),
]
