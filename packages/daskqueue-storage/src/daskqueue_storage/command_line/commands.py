"""The commands, one function each: look, say, return the exit code.

Whatever is wrong with what was asked is a `StorageError`, which `main` says in one line.

Invariant: only `requeue`, `compact` and `unlock` open anything for writing. `requeue` and `compact` leave leases as
they are: whose they are is for the queue's owner to judge when it opens it.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Collection, Iterator
from typing import Any, Final

from daskqueue_core.states import MessageState
from daskqueue_storage.access import refusals
from daskqueue_storage.command_line import dump as records
from daskqueue_storage.command_line.text import Speaker, when
from daskqueue_storage.directory import check_safe, list_segments, read_format
from daskqueue_storage.errors import NotAQueue, StorageError
from daskqueue_storage.files import Files
from daskqueue_storage.lock import LockContent, acquire, holder_of
from daskqueue_storage.log import SegmentedLog
from daskqueue_storage.queue import DurableQueue
from daskqueue_storage.read_only import ReadOnlyQueue
from daskqueue_storage.report import RecoveryReport
from daskqueue_storage.verify import verify as verify_directory

__all__ = ["compact", "dead", "dump", "requeue", "stats", "unlock", "verify"]

_DAMAGED: Final = 1
_OF_A_LOG: Final = ("first", "end", "messages", "segments", "size_bytes")
_LEAST: Final = 4096  # bytes of a segment
_ALWAYS: Final = ("seq", "state", "client", "number", "put_at", "offset")  # of a message


class WrongUse(StorageError):
    """The words on the command line do not fit together, or not this directory."""


class _Everybody(Collection[str]):
    """Whoever holds a lease keeps it."""

    def __contains__(self, owner: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


# ------------------------------------------------------------------------------------------------------------ to look


def stats(asked: Namespace, files: Files) -> int:
    """Counts, sizes, lock."""
    root, _, parts = _directory(asked, files)
    speaker = Speaker(as_json=asked.json)
    row: dict[str, Any] = {"path": asked.path, "kind": "queue" if "index" in parts else "log"}
    if "index" in parts:
        with ReadOnlyQueue(root, allow_shared=asked.allow_shared, files=files) as queue:
            counts = queue.stats()._asdict()
            row["uuid"] = counts.pop("uuid")
            report, more = queue.report, {"queue": counts, "size_bytes": queue.size_bytes}
    else:
        with SegmentedLog(root, mode="ro", allow_shared=asked.allow_shared, files=files) as log:
            found = log.stats()
            row["uuid"] = found.uuid
            report, more = log.report, {name: getattr(found, name) for name in _OF_A_LOG}
    speaker.table({**row, "lock": _lock(*holder_of(files, root)), **more, "found": _report(report, root)})
    return 0 if report.whole else _DAMAGED


def verify(asked: Namespace, files: Files) -> int:
    """What is wrong."""
    root, _, _ = _directory(asked, files)
    found = verify_directory(root, deep=not asked.quick, files=files)
    speaker = Speaker(as_json=asked.json)
    speaker.table(
        {
            "path": asked.path,
            "uuid": found.uuid,
            "whole": found.whole,
            "log": {"segments": found.segments, "records": found.records, "messages": found.messages}
            | {"size_bytes": found.size_bytes},
            "index": found.index,
            "lost_records": found.lost_records,
            **({"problems": _problems(found.problems, root)} if asked.json else {}),
        }
    )
    for problem in found.problems:
        speaker.say(f"! {problem._replace(path=_relative(problem.path, root))}")
    return 0 if found.whole else _DAMAGED


def dump(asked: Namespace, files: Files) -> int:
    """Records or messages, one a line."""
    root, uuid, parts = _directory(asked, files)
    speaker = Speaker(as_json=asked.json, bodies=asked.bodies)
    if asked.messages or asked.state:
        return _dump_messages(asked, files, root, parts, speaker)
    code = 0
    with refusals(root):
        for row in records.records(files, root, uuid, parts):
            if row.get("problem"):
                code = _DAMAGED
            speaker.line(row, _line(row, speaker))
    return code


def dead(asked: Namespace, files: Files) -> int:
    """Dead letters, one a line."""
    root, _, parts = _directory(asked, files)
    _need_queue(asked, parts)
    speaker = Speaker(as_json=asked.json)
    with ReadOnlyQueue(root, allow_shared=asked.allow_shared, files=files) as queue:
        for letter in queue.dead_letters(asked.after, asked.limit):
            named = f"{letter.client:x}:{letter.number}" if letter.client else str(letter.seq)
            name = letter.key if letter.key is not None else named
            text = f"{letter.seq}  {when(letter.failed_at)}  {letter.reason}  attempts={letter.attempts}"
            text += f"  crashes={letter.crashes}  task={name}  owner={letter.owner or '?'}"
            said = letter._asdict()
            said["error"] = said.pop("blob")
            speaker.line(said, f"{text}  {' '.join(letter.text.split())}")
        return 0 if queue.report.whole else _DAMAGED


# ---------------------------------------------------------------------------------------------------------- to change


def requeue(asked: Namespace, files: Files) -> int:
    """Dead letters run again."""
    root, _, parts = _directory(asked, files)
    _need_queue(asked, parts)
    if asked.all == bool(asked.numbers or asked.keys):
        raise WrongUse(asked.path, f"{asked.path}: name the messages to requeue, by number or --key, or say --all")
    names = None if asked.all else [*asked.keys, *((0, number) for number in asked.numbers)]
    with _opened(asked, files, root) as queue:
        count = queue.requeue(names)
        Speaker(as_json=asked.json).table({"path": asked.path, "requeued": count})
        return 0 if queue.report.whole else _DAMAGED


def compact(asked: Namespace, files: Files) -> int:
    """Old segments go."""
    root, _, parts = _directory(asked, files)
    _need_queue(asked, parts)
    with _opened(asked, files, root) as queue:
        before = queue.size_bytes
        count = queue.compact(asked.max_bytes)
        row = {"path": asked.path, "deleted_segments": count, "bytes_before": before, "bytes_after": queue.size_bytes}
        Speaker(as_json=asked.json).table(row)
        return 0 if queue.report.whole else _DAMAGED


def unlock(asked: Namespace, files: Files) -> int:
    """Take the lock of a dead writer."""
    root, _, _ = _directory(asked, files)
    speaker = Speaker(as_json=asked.json)
    number, content = holder_of(files, root)
    row: dict[str, Any] = {"path": asked.path, "lock": _lock(number, content), "unlocked": False}
    if not number or (content is not None and content.released):
        speaker.say("it is not locked")
        if asked.json:
            speaker.table(row)
        return 0
    who = content.holder if content is not None else "somebody; the lock is damaged"
    speaker.say(f"lock {number} is held by {who}")
    if not asked.force:
        _refuse_the_living(asked, files, root, number, content)
    if not (asked.yes or asked.force) and not _agreed():
        raise WrongUse(root, f"{root} stays locked: say --yes if that writer is known to be dead")
    with refusals(root):
        acquire(files, root, owner="unlock", force=True).release()
    row["unlocked"] = True
    speaker.say("unlocked: whoever opens it next may write at once")
    if asked.json:
        speaker.table(row)
    return 0


def _refuse_the_living(asked: Namespace, files: Files, root: str, number: int, content: LockContent | None) -> None:
    """A writer renews its lock each third of its time to live: watch it for half of that."""
    pause = (content.ttl_ms if content is not None else 30_000) / 2e3
    if not asked.json:
        sys.stdout.write(f"watching it for {pause:.1f} s\n")
        sys.stdout.flush()
    files.pause(pause)
    now, renewed = holder_of(files, root)
    if (now, renewed) != (number, content):
        who = renewed.holder if renewed is not None else "somebody"
        raise WrongUse(
            root, f"{root}: {who} renews its lock, so it lives. Close it there; --force takes the lock and fences it"
        )


def _agreed() -> bool:
    sys.stdout.write("Is that writer known to be dead? [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


# ---------------------------------------------------------------------------------------------------------- the hands


def _directory(asked: Namespace, files: Files) -> tuple[str, bytes, list[str]]:
    """The directory, its uuid, and which logs it has. Refused if it is none of ours, or unsafe."""
    with refusals(asked.path):
        root = files.resolve(asked.path)
        found = files.stat(root)
        if found is None:
            raise NotAQueue(root, "there is nothing")
        if not found.is_dir:
            raise NotAQueue(root, "it is a file")
        if not asked.allow_shared:
            check_safe(files, root)
        header, _ = read_format(files, root)
        if header is None:
            raise NotAQueue(root, "it is empty")
        return root, header.uuid, [part for part in ("log", "index") if files.stat(f"{root}/{part}") is not None]


def _need_queue(asked: Namespace, parts: list[str]) -> None:
    if "index" not in parts:
        raise WrongUse(asked.path, f"{asked.path} is a plain log, and {asked.command} needs a queue")


def _opened(asked: Namespace, files: Files, root: str) -> DurableQueue:
    """For writing; nothing that is in it changes by that, nor how large its segments are: space is counted in them."""
    sizes = [found.size for name in list_segments(files, root, "log").current if (found := files.stat(name.path))]
    return DurableQueue(
        root,
        segment_bytes=max([_LEAST, *sizes]),
        create=False,
        wait=asked.wait,
        owner=f"daskqueue_storage {asked.command}",
        owners=_Everybody(),
        allow_shared=asked.allow_shared,
        result_ttl=None,
        result_max_bytes=None,
        files=files,
    )


def _dump_messages(asked: Namespace, files: Files, root: str, parts: list[str], speaker: Speaker) -> int:
    if "index" not in parts:
        if asked.state:
            raise WrongUse(asked.path, f"{asked.path} is a plain log: its messages have no state")
        with SegmentedLog(root, mode="ro", allow_shared=asked.allow_shared, files=files) as log:
            for offset, data, time in log.scan(timestamps=True):
                speaker.line({"offset": offset, "time": time, "message": data})
            return 0 if log.report.whole and not log.stats().damaged else _DAMAGED
    state = None
    if asked.state:
        if asked.state not in MessageState.__members__ or asked.state == MessageState.GONE.name:
            known = ", ".join(each.name.lower() for each in MessageState if each is not MessageState.GONE)
            raise WrongUse(asked.path, f"no message is in the state {asked.state.lower()}: it is one of {known}")
        state = MessageState[asked.state]
    code = 0
    with ReadOnlyQueue(root, allow_shared=asked.allow_shared, files=files) as queue, refusals(root):
        for message in queue.messages(state, bodies=asked.bodies):
            code = _DAMAGED if message.damage else code
            row = message._asdict()
            if message.offset < 0:
                del row["offset"]
            speaker.line({name: value for name, value in row.items() if value or name in _ALWAYS})
        return code if queue.report.whole else _DAMAGED


def _line(row: dict[str, Any], speaker: Speaker) -> str:
    """A record, for people."""
    if not row["type"]:
        return f"{row['file']} @{row['pos']}  ! {row['problem']}"
    more = {name: value for name, value in row.items() if name not in ("file", "pos", "rno", "type", "time")}
    head = f"{row['file']} @{row['pos']}  #{row['rno']}  {when(row['time'])}  {row['type']}"
    return f"{head}  {speaker.fields(more)}".rstrip()


def _lock(number: int, content: LockContent | None) -> dict[str, Any]:
    if not number:
        return {"epoch": 0, "state": "none"}
    if content is None:
        return {"epoch": number, "state": "damaged"}
    who = content.identity
    state = "released" if content.released else "held"
    return {"epoch": number, "state": state, "owner": content.owner, "host": who.host, "pid": who.pid}


def _report(report: RecoveryReport, root: str) -> dict[str, Any]:
    """What opening found; paths as seen from the directory."""
    return {
        "whole": report.whole,
        "clean": report.clean,
        "tail_bytes": report.tail_bytes,
        "lost_records": report.lost_records,
        "damaged": [each._replace(path=_relative(each.path, root))._asdict() for each in report.damaged],
        **{
            name: [_relative(path, root) for path in getattr(report, name)]
            for name in ("missing_files", "stale_files", "foreign_files")
        },
    }


def _problems(problems: Any, root: str) -> list[Any]:
    return [each._replace(path=_relative(each.path, root)) for each in problems]


def _relative(path: str, root: str) -> str:
    return path[len(root) + 1 :] if path.startswith(f"{root}/") else path
