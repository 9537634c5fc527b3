"""What a nearly full disk did not take in the first go is left out."""

FIRST = "test_files.py"
EDITS = [
    (
        "files.py",
        "    while written < size:\n",
        "    while written < 0:\n",
    ),
]
