"""The stream in: one long poll for each queue, whose cursor acknowledges what came before.

What comes at once, of a put without neighbours, comes with the answer to it (`submitter`). All go to their sinks and to
whoever asked for a task by key; those of *keep* tasks are also remembered, so that they can be read again when their
queue was lost. Everything here runs on the client's event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from daskqueue.client.session import Session
from daskqueue.client.trials import Trials
from daskqueue.utils import logger
from daskqueue.wire.link import Link, PoolGone, QueueReplaced, Route, SchedulerGone
from daskqueue_core.outcomes import Outcome, Outcomes
from daskqueue_core.producer import Delivery, ProducerStream
from daskqueue_core.protocols import REPLY_BYTES

if TYPE_CHECKING:
    from daskqueue.client.pool_connection import PoolConnection

__all__ = ["Collector"]

POLL_S: Final = 20.0


class Collector:
    """Collects the outcomes of one pool object."""

    def __init__(
        self,
        session: Session,
        route: Route,
        streams: Sequence[ProducerStream],
        owner: PoolConnection,
    ) -> None:
        self._session = session
        self._link: Link = session.link
        self._route = route
        self._streams = streams
        self._owner = owner
        self._quiet: list[asyncio.Future[None]] = []
        self._polls: list[asyncio.Task[None]] = []
        self._over = False

    def start(self) -> None:
        """Begin to poll every queue."""
        self._polls = [self._session.spawn(self._poll(index)) for index in range(len(self._streams))]

    def close(self) -> None:
        """Stop."""
        self._over = True
        for poll in self._polls:
            poll.cancel()
        self._release_quiet()

    async def wait_quiet(self) -> None:
        """Wait until every outcome of what was submitted is in."""
        while not self._over and any(stream.pending for stream in self._streams):
            quiet = asyncio.get_running_loop().create_future()
            self._quiet.append(quiet)
            await quiet

    async def _poll(self, index: int) -> None:
        """Whatever ends it ends the pool: who waits for outcomes would do so for ever."""
        try:
            await self._poll_on(index)
        except (PoolGone, SchedulerGone) as error:
            self._owner.over(error)
        except Exception as error:
            logger.exception("pool %s hears no more of its queue %d, and is over", self._route.pool, index)
            self._owner.over(error)

    async def _poll_on(self, index: int) -> None:
        stream, trials = self._streams[index], Trials(f"to hear of queue {index} of pool {self._route.pool}")
        while not self._over:
            uuid = stream.uuid
            try:
                answer = await self._link.call(
                    self._route,
                    index,
                    "poll",
                    uuid=uuid,
                    client=self._session.id,
                    cursor=stream.cursor,
                    wait=POLL_S,
                )
            except QueueReplaced:
                await self._owner.replaced(index)
                continue
            except (PoolGone, SchedulerGone):
                raise
            except Exception as error:
                if not await trials.again(error):
                    raise
                continue
            trials.worked()
            if stream.uuid != uuid:  # replaced meanwhile: what it says is about another life
                continue
            self.deliver(stream, answer)
            if not answer.outcomes and stream.pending:
                self._owner.checkup.waited_in_vain()
            del answer  # the next poll may take long: nothing is held meanwhile

    async def collect(self, index: int) -> None:
        """Take what queue `index` has for this client by now, beside the poll that waits for more."""
        stream = self._streams[index]
        full = True
        while full and not self._over:
            uuid = stream.uuid
            try:
                answer = await self._owner.call(index, "poll", uuid=uuid, client=self._session.id, cursor=stream.cursor)
            except QueueReplaced:  # its streams hear of that by themselves
                return
            if stream.uuid != uuid:
                return
            self.deliver(stream, answer)
            full = sum(outcome.nbytes for outcome in answer.outcomes) >= REPLY_BYTES

    def deliver(self, stream: ProducerStream, answer: Outcomes) -> None:
        """Give outcomes to who waits for them."""
        self._owner.finder.take(answer.outcomes)
        self._give(stream, stream.receive(answer))

    def absorb(self, stream: ProducerStream, outcomes: Iterable[Outcome]) -> None:
        """As `deliver`, of outcomes that were not polled for."""
        self._give(stream, stream.absorb(outcomes))

    def _give(self, stream: ProducerStream, news: Iterable[Delivery]) -> None:
        for delivery in news:
            self._owner.memory.ended(stream.uuid, delivery.outcome, keeps=delivery.sink.keeps)
            delivery.sink.deliver(delivery)
        if self._quiet:
            self.check_quiet()

    def _release_quiet(self) -> None:
        for quiet in self._quiet:
            if not quiet.done():
                quiet.set_result(None)
        self._quiet.clear()

    def check_quiet(self) -> None:
        """Something was lost for good: perhaps nothing is awaited any more."""
        if not any(stream.pending for stream in self._streams):
            self._release_quiet()
