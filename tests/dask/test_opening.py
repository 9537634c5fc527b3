"""Opening durable queues: in a thread, the right one or none, and nothing left behind."""

import asyncio
import threading
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from daskqueue.worker import opening
from daskqueue.worker.hosted_queue import HostedQueue
from daskqueue.worker.opening import close_durable, open_durable
from daskqueue_storage import DurableQueue
from daskqueue_storage.errors import LockedError, NotAQueue

LIMIT = 10.0
UUID_HEX = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A queue with three messages, two of which are leased by a and b."""
    path = tmp_path / "queue"
    with DurableQueue(path, uuid=UUID(hex=UUID_HEX).bytes, sync="none") as queue:
        queue.put_block(b"", 3)
        assert queue.lease(1, owner="a")
        assert queue.lease(1, owner="b")
    return path


def test_open_and_close(path: Path) -> None:
    """Named as the cluster names it; owners that live keep what they have; options are the pool's."""
    options = {
        "dirpath": "unused here",
        "maxsize": 3,
        "max_bytes": None,
        "result_ttl": 2.5,
        "sync": "none",
        "storage": {"segment_bytes": 8192},
    }

    async def main() -> None:
        queue = await open_durable(path, UUID_HEX, options, owner="me", owners=("a", "other"))
        assert (queue.uuid, queue.maxsize, queue.max_bytes) == (UUID_HEX, 3, 0)
        assert queue._kept.ttl == 2_500_000_000
        assert (queue._sync, queue._segment_bytes) == ("none", 8192)
        assert (queue.owners(), queue.ready) == (["a"], 2)
        with pytest.raises(LockedError):
            await open_durable(path, UUID_HEX, {"storage": {"wait": 0}})
        await close_durable(queue)
        await close_durable(await open_durable(path, UUID_HEX, {}))

    asyncio.run(main())


def test_another_queue_or_none_is_not_opened(path: Path, tmp_path: Path) -> None:
    """And none is made, unless that is asked for."""

    async def main() -> None:
        with pytest.raises(NotAQueue):
            await open_durable(path, "f" * 32, {"create": True})
        with pytest.raises(NotAQueue):
            await open_durable(tmp_path / "none", UUID_HEX, {})
        assert not (tmp_path / "none").exists()
        queue = await open_durable(tmp_path / "none", UUID_HEX, {"create": True})
        assert queue.puts == 0
        await close_durable(queue)

    asyncio.run(main())


@pytest.mark.parametrize("when", ["while it opens", "when it is open"])
def test_an_opening_that_is_given_up(path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """It does not hold up the event loop, and what it opened after all is closed again."""
    came, go, closed = threading.Event(), threading.Event(), threading.Event()
    threads: set[int] = set()

    class Slow(HostedQueue):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            threads.add(threading.get_ident())
            came.set()
            assert go.wait(LIMIT)
            super().__init__(*args, **kwargs)

        def close(self) -> None:
            threads.add(threading.get_ident())
            super().close()
            closed.set()

    monkeypatch.setattr(opening, "HostedQueue", Slow)

    async def main() -> None:
        task = asyncio.ensure_future(open_durable(path, UUID_HEX, {}))
        assert await asyncio.to_thread(came.wait, LIMIT)
        if when == "while it opens":
            task.cancel()
            await asyncio.wait([task])
            go.set()
        else:
            opener = next(thread for thread in threading.enumerate() if thread.name.startswith("daskqueue-open"))
            assert opener.daemon
            go.set()
            opener.join(LIMIT)  # its end is told, and not heard yet
            task.cancel()
            await asyncio.wait([task])
        assert task.cancelled()
        assert await asyncio.to_thread(closed.wait, LIMIT)
        assert threading.get_ident() not in threads

    asyncio.run(main())
    with DurableQueue(path) as queue:
        assert queue.report.clean
