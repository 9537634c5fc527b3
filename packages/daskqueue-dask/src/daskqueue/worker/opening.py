"""Opens and closes durable queues, in threads: neither ever blocks the worker's event loop.

An opening may take as long as another host's lock takes to lapse. Who gives it up, because the queue was dropped or the
worker leaves, leaves nothing behind: what is opened after all is closed again.

Not here: where a queue's directory is (`pool_files`), and who serves it (`queue_host`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from typing import Any, Final
from uuid import UUID

from daskqueue.wire.clock import edge_clock
from daskqueue.worker.hosted_queue import HostedQueue
from daskqueue.worker.queue_threads import in_thread
from daskqueue_storage import DurableQueue

__all__ = ["close_durable", "open_durable"]

logger = logging.getLogger(__name__)

LOCK_TTL_S: Final = 10.0
_NAME: Final = "daskqueue-open"


async def open_durable(
    path: object,
    uuid_hex: str,
    options: Mapping[str, Any],
    *,
    owner: str = "",
    owners: Collection[str] = (),
    lost: Collection[str] = (),
) -> HostedQueue:
    """The queue in a directory, which must be the one that is asked for. Raises what the store says.

    Of `options` it takes `maxsize`, `max_bytes`, `result_ttl` (in seconds), `result_max_bytes`, `sync` and `create`
    (default: no), and `storage` with what else `DurableQueue` takes. Unless `storage` says otherwise, a holder of the
    directory that shows no sign of life for its `lock_ttl` is replaced. `owner` is us, for people; `owners` live and
    keep their leases; `lost` are known to be gone, so what they ran is suspect.
    """
    storage = {"lock_ttl": LOCK_TTL_S, **options.get("storage", {})}
    storage.setdefault("wait", storage["lock_ttl"])
    ttl = options.get("result_ttl")

    def open_it() -> HostedQueue:
        queue = HostedQueue(
            path,
            uuid=UUID(hex=uuid_hex).bytes,
            create=options.get("create", False),
            sync=options.get("sync", "batch"),
            maxsize=options.get("maxsize") or 0,
            max_bytes=options.get("max_bytes") or 0,
            result_ttl=None if ttl is None else int(ttl * 1e9),
            result_max_bytes=options.get("result_max_bytes"),
            clock=edge_clock(),
            owner=owner,
            owners=owners,
            lost=lost,
            **storage,
        )
        queue.uuid = uuid_hex  # as the cluster writes it
        return queue

    return await in_thread(_NAME, open_it, _close_unused)


async def close_durable(queue: DurableQueue) -> None:
    """Close a queue that no actor serves."""
    await asyncio.shield(asyncio.ensure_future(in_thread(_NAME, queue.close)))


def _close_unused(queue: DurableQueue) -> None:
    try:
        queue.close()
    except Exception:  # nobody waits for it
        logger.exception("queue %s, which nobody wants any more, was not closed", queue.uuid)
