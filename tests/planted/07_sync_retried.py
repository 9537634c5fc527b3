"""A sync that failed is tried again, and what it says the second time is believed."""

FIRST = "test_faults.py"
EDITS = [
    (
        "commit.py",
        """\
        except OSError as problem:
            self.failure = problem
            raise SyncFailed from problem
""",
        """\
        except OSError:
            self._sync(handle)
""",
    ),
]
