"""Opens a pool at the directory: makes it, or joins the one of that name. Refusals become errors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final

from daskqueue.client.install import install
from daskqueue.client.options import Durability
from daskqueue.client.pool_connection import PoolConnection
from daskqueue.client.session import Session
from daskqueue.utils import logger
from daskqueue.wire.link import PoolGone, Route, SchedulerGone
from daskqueue.wire.operations import OK, PROTOCOL
from daskqueue.wire.storage_errors import storage_error
from daskqueue_core.directory import Place
from daskqueue_core.errors import DaskQueueError, NotInstalled, PoolClosed, PoolExists

__all__ = ["attach_pool", "open_pool"]

FOUND_S: Final = 5.0


async def open_pool(
    session: Session, name: str | None, n_queues: int | None, options: Mapping[str, Any], *, create: bool = True
) -> PoolConnection:
    """Make a pool, or attach to the one of that name, or of that directory, if its options are equal.

    `create=False`: a durable pool that is there; `n_queues` None: as many as it has.
    """
    await session.start()
    await install(session.client)
    durable = options["durability"] == Durability.DURABLE
    own_name = name if name is not None or durable else f"unnamed-{uuid.uuid4().hex}"
    answer = await session.ask(
        "open",
        name=own_name,
        options=dict(options),
        n_queues=n_queues,
        client=session.client_id,
        owned=name is None and not durable,
        create=create,
        protocol=PROTOCOL,
    )
    _raise_refusal(answer, own_name if own_name is not None else options["dirpath"], options["dirpath"])
    own_name, id, places, warning = answer[1]
    if warning:
        logger.warning("%s", warning)
    connection = _connect(session, Route(own_name, [Place(*place) for place in places], id), options)
    if durable:
        await _say_what_was_found(connection)
    return connection


async def _say_what_was_found(connection: PoolConnection) -> None:
    """What a directory held, in the log of who opens it; aloud if something of it is damaged."""

    async def say(index: int) -> None:
        with contextlib.suppress(DaskQueueError, PoolGone, SchedulerGone):  # whoever needs the queue meets that, too
            found = await connection.session.link.call(connection.route, index, "recovery", patience=FOUND_S)
            if found is not None:
                level = logging.INFO if found.whole else logging.WARNING
                logger.log(level, "queue %d in %s: %s", index, connection.options["dirpath"], found)

    with contextlib.suppress(asyncio.TimeoutError):  # a host that hangs
        await asyncio.wait_for(asyncio.gather(*map(say, range(len(connection.route)))), FOUND_S)


async def attach_pool(session: Session, name: str, *, known: bool = False) -> PoolConnection:
    """Take part in a pool that exists; `KeyError` if it does not.

    `known`: a connection that this session has will do, without asking the directory.
    """
    connection = session.pools.get(name)
    if known and connection is not None:
        return connection
    await session.start()
    await install(session.client)
    answer = await session.ask("attach", name=name, client=session.client_id, protocol=PROTOCOL)
    _raise_refusal(answer, name)
    if answer[1] is None:
        raise KeyError(f"there is no pool {name!r} in this cluster; QueuePool(client, name={name!r}) makes it")
    options, id, places = answer[1]
    return _connect(session, Route(name, [Place(*place) for place in places], id), options)


def _connect(session: Session, route: Route, options: Mapping[str, Any]) -> PoolConnection:
    name = route.pool
    connection = session.pools.get(name)
    if connection is not None:
        if connection.route.id == route.id:
            return connection
        connection.over(PoolGone(name))  # a pool of that name ended, and this is another
    connection = session.pools[name] = PoolConnection(session, name, route, dict(options))
    connection.start()
    return connection


def _raise_refusal(answer: Sequence[Any], name: str, dirpath: str | None = None) -> None:
    if answer[0] == OK:
        return
    kind, detail = answer[1], answer[2]
    if kind == "NoPool":
        raise FileNotFoundError(detail)
    if kind == "Storage":
        what, text = detail
        raise storage_error(what, text, dirpath or "")
    if kind == "PoolExists":
        existing, differ = detail
        raise PoolExists(existing, {option: tuple(pair) for option, pair in differ.items()})
    if kind == "PoolClosed":
        raise PoolClosed(detail)
    if kind == "NotInstalled":
        raise NotInstalled(detail)
    raise DaskQueueError(f"the scheduler refused pool {name!r}: {kind}: {detail}")
