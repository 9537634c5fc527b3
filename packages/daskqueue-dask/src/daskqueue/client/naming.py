"""Keys: what users call tasks, and what a queue calls them.

    automatic  "<client:016x>-<number>"   made by the client at submit; the task is in any of the pool's queues
    explicit   any other text             given with `options(key=...)`; in the queue that a hash of it says
    item       "item-<uuid>-<seq>"        what was put without a key, named by its queue's life: only dead letters
                                          are ever asked for by it

Knows no queue and no client: it reads and writes names. An explicit key that looks like one of the others is refused
where it is given, so a key means one thing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from daskqueue.current import task_key
from daskqueue_core.names import TaskName

__all__ = ["KEY_BYTES", "Named", "check_key", "check_keys", "item_key", "parse_key", "queue_of", "task_key"]

KEY_BYTES: Final = 1024

_AUTOMATIC: Final = re.compile(r"([0-9a-f]{16})-(0|[1-9][0-9]*)", re.ASCII)
_ITEM: Final = re.compile(r"item-([0-9a-f]{32})-(0|[1-9][0-9]*)", re.ASCII)


class Named(NamedTuple):
    """What a queue calls a task, and in which queue it is."""

    name: TaskName
    uuid: str = ""  # of the life of a queue; empty: in whichever
    everywhere: bool = False  # any queue of the pool may have it; else that of `queue_of`


def item_key(uuid: str, seq: int) -> str:
    """The key of an item that was put without one."""
    return f"item-{uuid}-{seq}"


def parse_key(key: str) -> Named:
    """What `key` means."""
    automatic = _AUTOMATIC.fullmatch(key)
    if automatic is not None:
        return Named((int(automatic[1], 16), int(automatic[2])), everywhere=True)
    item = _ITEM.fullmatch(key)
    if item is not None:
        return Named((0, int(item[2])), item[1])
    return Named(key)


def queue_of(key: str, n_queues: int) -> int:
    """The queue of the pool in which a task with an explicit key is, whoever asks."""
    if n_queues == 1:
        return 0
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") % n_queues


def check_key(key: Any) -> str:
    """`key` as a key for a new task."""
    if not isinstance(key, str):
        raise TypeError(f"key must be a string, not {key!r}: str() of a number or tuple makes one")
    if not key:
        raise ValueError("key must not be empty; without the option the task gets a key of its own")
    try:
        nbytes = len(key.encode())
    except UnicodeEncodeError:
        raise ValueError(f"key {key!r} cannot be written as UTF-8") from None
    if nbytes > KEY_BYTES:
        raise ValueError(f"key must have at most {KEY_BYTES} bytes, not {nbytes}: take a hash of it")
    if _AUTOMATIC.fullmatch(key) or _ITEM.fullmatch(key):
        raise ValueError(f"key {key!r} looks like one that daskqueue makes itself: put a word before it")
    return key


def check_keys(keys: Any) -> list[str]:
    """`keys` as a list of keys of tasks, each once."""
    if isinstance(keys, (str, bytes)) or not isinstance(keys, Iterable):
        raise TypeError(f"keys must be a list of keys, not {keys!r}" + (": [key] is one" if keys else ""))
    listed = list(dict.fromkeys(keys))
    for key in listed:
        if not isinstance(key, str):
            advice = ": give future.key" if hasattr(key, "key") else ""
            raise TypeError(f"a key must be a string, not {key!r}{advice}")
    return listed
