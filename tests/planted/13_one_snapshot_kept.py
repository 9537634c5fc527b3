"""The snapshot before the newest goes, and the segments that only it knows."""

FIRST = "test_queue.py"
EDITS = [
    (
        "store.py",
        "        self.snapshots = [*self.snapshots[-1:], (placed.segment.segno, covered)]\n",
        "        self.snapshots = [(placed.segment.segno, covered)]\n",
    ),
    (
        "store.py",
        "        if count and len(self.snapshots) == 2:\n",
        "        if count:\n",
    ),
]
