"""`QueueHost`: what one of a worker's queues does is no trouble of the others."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from daskqueue.worker.durable_actor import QueueOver
from daskqueue.worker.queue_host import HostOrder, QueueHost

LIMIT = 60
UUIDS = ["u0", "u1", "u2"]


async def serving() -> QueueHost:
    """It serves three queues, of each of which the owner "w" holds a message."""
    host = QueueHost("me", lambda _: None)
    for index, uuid in enumerate(UUIDS):
        await host.open(HostOrder(uuid, 0, "p", index, {}))
        await host.actors[uuid].put(b"x")
        assert await host.actors[uuid].lease(1, owner="w")
    return host


def failing(error: Exception) -> Any:
    """What a queue does that cannot do it."""

    async def fail(*_: object) -> None:
        raise error

    return fail


def test_an_owner_is_lost_and_a_queue_fails(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One fails, one hangs: the third hears of it. The log names the failure."""
    caplog.set_level(logging.WARNING)

    async def test() -> None:
        host = await serving()
        hung = asyncio.Event()
        monkeypatch.setattr(host.actors["u0"], "owner_lost", failing(OSError("a glitch")))
        monkeypatch.setattr(host.actors["u1"], "owner_lost", lambda _: hung.wait())
        losing = asyncio.ensure_future(host.owner_lost("w"))
        while (await host.actors["u2"].stats()).delivered:  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0)
        assert not losing.done()
        hung.set()
        await losing
        await host.close()

    asyncio.run(asyncio.wait_for(test(), LIMIT))
    assert "a glitch" in caplog.text


def test_an_owner_is_lost_and_a_queue_is_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who opens it next is told of the owner: nothing to log."""
    caplog.set_level(logging.WARNING)

    async def test() -> None:
        host = await serving()
        monkeypatch.setattr(host.actors["u0"], "owner_lost", failing(QueueOver("replaced")))
        await host.owner_lost("w")
        assert [(await host.actors[uuid].stats()).delivered for uuid in UUIDS] == [1, 0, 0]
        await host.close()

    asyncio.run(asyncio.wait_for(test(), LIMIT))
    assert not caplog.records


def test_close_and_a_queue_that_cannot(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The others are closed when it returns, also one that takes longer."""
    caplog.set_level(logging.WARNING)
    closed: list[str] = []

    async def test() -> None:
        host = await serving()

        async def slowly() -> None:
            await asyncio.sleep(0.05)
            closed.append("u1")

        monkeypatch.setattr(host.actors["u0"], "close", failing(OSError("a glitch")))
        monkeypatch.setattr(host.actors["u1"], "close", slowly)
        await host.close()
        assert closed == ["u1"]
        assert not host.actors

    asyncio.run(asyncio.wait_for(test(), LIMIT))
    assert "a glitch" in caplog.text
