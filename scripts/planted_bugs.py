"""The test of the store's tests: plants the bugs of tests/planted one at a time, and runs the default tests on each.

    python scripts/planted_bugs.py [WORD ...]      only those whose name has one of the words

Each file there has a docstring that says what is broken, `EDITS` (module, old text, new text) and `FIRST`, the test
module that is run before the others, since it will probably notice. A bug whose old text is not there exactly once is
an error: the source has moved and the bug must move with it. Nothing is changed in the tree; the bugs are planted in a
copy of the package. Exit code 1 if a bug was not caught.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "packages" / "daskqueue-storage" / "src"
TESTS = ROOT / "tests" / "storage"
LIMIT_S = 300  # a bug may make something hang; pytest's own limit is for each test


def planted(path: Path, target: Path) -> str:
    """Copy the package to `target` with the bug; its docstring. `ValueError` if it cannot be planted."""
    bug = runpy.run_path(str(path))
    shutil.copytree(SOURCE, target, ignore=shutil.ignore_patterns("__pycache__"))
    for module, old, new in bug["EDITS"]:
        file = target / "daskqueue_storage" / module
        text = file.read_text()
        if text.count(old) != 1:
            raise ValueError(f"{path.name}: {module} has this {text.count(old)} times, not once:\n{old}")
        changed = text.replace(old, new)
        compile(changed, str(file), "exec")
        file.write_text(changed)
    return str(bug["__doc__"])


def caught_by(sources: Path, first: str) -> str:
    """The test that failed; nothing if all passed. `RuntimeError` if they could not be run."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-m", "not slow", "-p", "no:cacheprovider"]
    # A failure is all we want to know, not the shortest way to it.
    command += ["--hypothesis-profile=planted", "--timeout=60"]
    # That compares the bytes that are written: it would notice much without knowing that anything is wrong.
    command += [f"--ignore={TESTS / 'test_golden.py'}"]
    return failing(command, sources, TESTS / first) or failing(command, sources, TESTS)


def failing(command: list[str], sources: Path, tests: Path) -> str:
    """The first test that fails; nothing if all pass."""
    core = ROOT / "packages" / "daskqueue-core" / "src"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (sources, core)))}
    try:
        done = subprocess.run(
            [*command, str(tests)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"(nothing ended within {LIMIT_S} s)"
    if done.returncode == 0:
        return ""
    failed = re.search(r"^FAILED \S*?tests/storage/(\S+)", done.stdout, re.MULTILINE)
    if done.returncode != 1 or failed is None:
        raise RuntimeError(f"the tests could not be run:\n{done.stdout}{done.stderr}")
    return failed[1]


def main(words: list[str]) -> int:
    """All of them; 1 if one was not caught."""
    missed, began = [], time.monotonic()
    chosen = sorted((ROOT / "tests" / "planted").glob("[0-9]*.py"))
    chosen = [path for path in chosen if not words or any(word in path.name for word in words)]
    if test := caught_by(SOURCE, "test_queue.py"):
        print(f"{test} fails without any bug: mend that first")
        return 1
    for path in chosen:
        with tempfile.TemporaryDirectory() as elsewhere:
            target = Path(elsewhere) / "src"
            planted(path, target)
            start = time.monotonic()
            test = caught_by(target, str(runpy.run_path(str(path))["FIRST"]))
        print(f"{path.stem:52} {test or 'NOT CAUGHT'} ({time.monotonic() - start:.0f} s)", flush=True)
        if not test:
            missed.append(path.stem)
    print(f"{len(chosen) - len(missed)} of {len(chosen)} bugs caught in {time.monotonic() - began:.0f} s")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
