"""daskqueue.worker.supervisor: one coroutine at a time, and the right one is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from daskqueue.worker.supervisor import Supervisor


async def returns(value: int) -> int:
    """After a moment."""
    await asyncio.sleep(0)
    return value


def test_it_gives_what_the_coroutine_returns() -> None:
    """One after the other."""

    async def main() -> list[int]:
        supervisor = Supervisor()
        return [await supervisor.run(index, returns(index), lambda: -1) for index in range(3)]

    assert asyncio.run(main()) == [0, 1, 2]


@pytest.mark.parametrize(("cancelled", "outcome"), [((1, 2), "stopped"), ((0, 2), "went on"), ((), "went on")])
def test_cancel_reaches_the_one_it_names(cancelled: tuple[int, ...], outcome: str) -> None:
    """And no other."""

    async def main() -> str:
        supervisor = Supervisor()

        async def coroutine() -> str:
            supervisor.cancel(cancelled)
            try:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                return "stopped"
            return "went on"

        return await supervisor.run(1, coroutine(), lambda: "never began")

    assert asyncio.run(main()) == outcome


def test_a_late_cancel_meets_nobody() -> None:
    """The coroutine it was for has ended; the next one runs."""

    async def main() -> int:
        supervisor = Supervisor()
        await supervisor.run(0, returns(0), lambda: -1)
        supervisor.cancel((0,))
        return await supervisor.run(1, returns(1), lambda: -1)

    assert asyncio.run(main()) == 1


def test_cancelled_before_its_first_step() -> None:
    """The substitute's value."""

    async def main() -> int:
        supervisor = Supervisor()
        supervisor.cancel((0,))  # arrives on the loop when the coroutine is scheduled, not begun
        return await supervisor.run(0, returns(0), lambda: -1)

    assert asyncio.run(main()) == -1


def test_a_closed_loop() -> None:
    """Nothing runs there."""

    async def main() -> Supervisor:
        return Supervisor()

    asyncio.run(main()).cancel((0,))
