"""The segment that a killed writer left unfinished never counts as finished, so none behind it goes."""

FIRST = "test_defects.py"
EDITS = [
    (
        "log.py",
        "                info.sealed = True  # our EPOCH says where each ends\n",
        "                pass\n",
    ),
    (
        "store.py",
        "                info.sealed = True  # our EPOCH says where each ends\n",
        "                pass\n",
    ),
]
