"""Write tests/storage/golden: the directories of `daskqueue_storage.testing.golden`, and what a reader says of them.

    python scripts/make_golden_storage.py            write them
    python scripts/make_golden_storage.py --check    exit 1 if they are not current

The bytes of a version that was released never change: a new one goes beside them, under its own number.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
for package in ("core", "storage"):
    sys.path.insert(0, str(ROOT / "packages" / f"daskqueue-{package}" / "src"))

from daskqueue_storage.command_line import main as command_line  # noqa: E402
from daskqueue_storage.testing.golden import golden_files  # noqa: E402

TARGET = ROOT / "tests" / "storage" / "golden" / "v1"
SAID = {
    "log.stats.json": ["stats", "--json", "log"],
    "log.dump.jsonl": ["dump", "--json", "--bodies", "log"],
    "log.messages.jsonl": ["dump", "--json", "--bodies", "--messages", "log"],
    "queue.stats.json": ["stats", "--json", "queue"],
    "queue.dump.jsonl": ["dump", "--json", "--bodies", "queue"],
    "queue.messages.jsonl": ["dump", "--json", "--bodies", "--messages", "queue"],
    "queue.dead.jsonl": ["dead", "--json", "queue"],
    "compacted.stats.json": ["stats", "--json", "compacted"],
    "compacted.dump.jsonl": ["dump", "--json", "--bodies", "compacted"],
    "compacted.messages.jsonl": ["dump", "--json", "--bodies", "--messages", "compacted"],
}


def current() -> dict[str, bytes]:
    """All that belongs into the target."""
    found = golden_files()
    with tempfile.TemporaryDirectory() as directory:
        for name, data in found.items():
            path = Path(directory, name)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_bytes(data)
        before = os.getcwd()
        os.chdir(directory)
        try:
            for name, words in SAID.items():
                said = io.StringIO()
                with contextlib.redirect_stdout(said):
                    command_line(words)
                found[name] = said.getvalue().encode()
        finally:
            os.chdir(before)
    return found


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if something would change")
    wanted = current()
    there = {str(path.relative_to(TARGET)): path.read_bytes() for path in TARGET.rglob("*") if path.is_file()}
    if parser.parse_args().check:
        differing = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
        for name in differing:
            sys.stderr.write(f"{TARGET / name} is not what the code writes\n")
        return bool(differing)
    shutil.rmtree(TARGET, ignore_errors=True)
    for name, data in wanted.items():
        path = TARGET / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
