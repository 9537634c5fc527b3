"""Only what waits for the disk notices that another writer took over."""

FIRST = "test_durable_processes.py"
EDITS = [
    (
        "journal.py",
        "            index.verify()  # it may be lost, but who was replaced may not even say it\n",
        "            pass\n",
    ),
]
