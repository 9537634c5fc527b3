"""The command line: looking at a log or queue, checking it, and the few things that help one that is in trouble.

    python -m daskqueue_storage stats|verify|dump|dead|requeue|compact|unlock PATH [--json]

Only `requeue`, `compact` and `unlock` change anything. Exit code 0: done; 1: something is damaged; 2: it could not be
done as it was asked for, and one line on stderr says why. `--json`: one value a line, the same names as in Python.

Nothing is ever unpickled: payloads, results and exceptions are opaque, and shown as sizes, or in base64.

Not here: what the commands do (`commands`, `dump`), and how it looks (`text`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from daskqueue_storage.errors import DamagedLog, DamagedRecord, LockedError, StorageError, UnsafeDirectory

if TYPE_CHECKING:
    from daskqueue_storage.files import Files

__all__ = ["main"]

_NAME = "daskqueue_storage"
_DAMAGED = 1
_REFUSED = 2


def main(arguments: Sequence[str] | None = None, *, files: Files | None = None) -> int:
    """Do what a command line says (default: that of this process); the exit code. `SystemExit` if it says nothing."""
    asked = _parser().parse_args(arguments)
    if files is None:
        from daskqueue_storage.files import OsFiles

        files = OsFiles()
    from daskqueue_storage.command_line import commands

    command: Callable[[argparse.Namespace, Files], int] = getattr(commands, asked.command)
    try:
        return command(asked, files)
    except StorageError as problem:
        text = " ".join(_advice(problem, asked.path).split())
        sys.stderr.write(f"{_NAME} {asked.command}: {text}\n")
        return _DAMAGED if isinstance(problem, (DamagedLog, DamagedRecord)) else _REFUSED
    except BrokenPipeError:  # `| head` has seen enough
        with suppress(OSError):
            sys.stdout.close()
        return 0


def _advice(problem: StorageError, path: str) -> str:
    """What is wrong, and what helps on the command line."""
    if isinstance(problem, LockedError):
        return (
            f"{problem.path} is open for writing by {problem.holder}. Close it there, or wait with --wait; if it is "
            f"known to be dead: python -m {_NAME} unlock {path}"
        )
    if isinstance(problem, UnsafeDirectory):
        return str(problem).replace("allow_shared=True", "--allow-shared")
    return str(problem)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {_NAME}",
        description="Look at, check and mend a durable log or queue. Never unpickles anything.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("path", metavar="PATH", help="the directory")
        command.add_argument("--json", action="store_true", help="for programs: one JSON value a line")
        command.add_argument("--allow-shared", action="store_true", help="also a directory that others may write to")
        return command

    add("stats", "Counts, sizes, and who has it open.")
    verify = add("verify", "Read every byte and say what is wrong; exit code 1 if anything is.")
    verify.add_argument("--quick", action="store_true", help="only what opening looks at")
    dump = add("dump", "Every record, or every message, one a line.")
    dump.add_argument("--messages", action="store_true", help="the messages instead of the records")
    dump.add_argument("--state", type=str.upper, help="only messages in this state, such as ready")
    dump.add_argument("--bodies", action="store_true", help="with their bytes, in base64")
    dead = add("dead", "The dead letters of a queue, one a line.")
    dead.add_argument("--after", type=int, default=0, metavar="N", help="from message N on")
    dead.add_argument("--limit", type=int, metavar="N", help="no more than so many")
    requeue = add("requeue", "Run dead letters again. Changes the queue.")
    requeue.add_argument("numbers", metavar="N", nargs="*", type=int, help="messages, by number")
    requeue.add_argument("--key", action="append", default=[], dest="keys", help="a message, by key")
    requeue.add_argument("--all", action="store_true", help="all dead letters")
    compact = add("compact", "Give back the space of what has ended. Changes the queue's files.")
    compact.add_argument("--max-bytes", type=int, metavar="N", help="copy no more than about so many bytes")
    for command in (requeue, compact):
        command.add_argument("--wait", type=float, default=0.0, metavar="S", help="seconds to watch a silent writer")
    unlock = add("unlock", "Take the lock away from a writer that is known to be dead.")
    unlock.add_argument("--yes", action="store_true", help="do not ask")
    unlock.add_argument("--force", action="store_true", help="also from one that shows signs of life: it is fenced")
    return parser
