"""The wait of a shutdown for what a pool has to do, which ends by itself if nobody would ever do the rest.

What is not done when it ends is cancelled: so what fails once, a look or a queue's answer, is asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from daskqueue.client.health import Served, only_unserved_left
from daskqueue.client.trials import Trials
from daskqueue.utils import logger
from daskqueue.wire.link import RemoteFailure
from daskqueue_core.errors import DaskQueueError, PoolClosed, QueueUnavailable

if TYPE_CHECKING:
    from daskqueue.client.pool_connection import PoolConnection

__all__ = ["join_served", "served_at_last"]

LOOK_S: Final = 1.0
ASK_AGAIN_S: Final = 0.25


async def join_served(pool: PoolConnection) -> None:
    """As `PoolConnection.join`, but what no consumer takes does not keep it waiting: work with tags that nobody has.

    Returns at once if no consumer is there.
    """
    kinds = (await served_at_last(pool)).kinds
    trials = Trials(f"to wait for what pool {pool.name} has to do")
    while kinds:
        try:
            await _join_and_look(pool, kinds, trials)
            return
        except RemoteFailure as error:
            if not await trials.again(error):
                raise


async def _join_and_look(pool: PoolConnection, kinds: Collection[int], trials: Trials) -> None:
    """Two looks must agree: into the new life of a queue that was lost, its clients still put what that had.

    One that fails says nothing of the work: there is another, as long as the join goes on.
    """
    joining = asyncio.ensure_future(pool.join(None, kinds))
    joining.add_done_callback(lambda done: done.cancelled() or done.exception())  # if nobody asks for it any more
    before: object = None
    try:
        while not (await asyncio.wait([joining], timeout=LOOK_S))[0]:
            try:
                queues, served = await pool.stats(), await pool.served()
            except (PoolClosed, QueueUnavailable):
                raise
            except (DaskQueueError, OSError) as error:
                pool.check()
                logger.warning("pool %s: a look at what it has to do failed, and is repeated: %r", pool.name, error)
                before = None
                continue
            trials.worked()
            now = [(queue.uuid, queue.puts, queue.finished) for queue in queues]
            # where more outcomes are awaited than tasks left, some are on their way here
            awaited = sum(stream.awaited for stream in pool.streams) - sum(queue.unfinished for queue in queues)
            if now == before and awaited <= 0 and only_unserved_left(queues, served):
                return
            before = now
        joining.result()
    finally:
        joining.cancel()


async def served_at_last(pool: PoolConnection) -> Served:
    """Who serves the pool, as soon as the directory can be asked; raises what it answers again and again."""
    trials = Trials(f"to ask who serves pool {pool.name}")
    while True:
        try:
            return await pool.served()
        except OSError:
            pool.check()
            if not pool.session.alive:
                raise
            await asyncio.sleep(ASK_AGAIN_S)
        except PoolClosed:
            raise
        except DaskQueueError as error:
            pool.check()
            if not await trials.again(error):
                raise
