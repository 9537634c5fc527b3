"""A discrete-event simulation: coroutines of several nodes on one thread, and time that passes in jumps.

Not an event loop for anything real: nothing here waits, and the same program takes the same course at every run. A
node is a process of the simulated world. It can die (its coroutines are closed where they are) and it can be busy
(what was due meanwhile happens when it is free again, in order), as a process whose GIL is held.

Invariants: events happen in the order of their time, and of their making where times are equal; an error that nobody
awaits ends the run.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from heapq import heappop, heappush
from typing import Any, Generic, TypeVar, cast

from daskqueue_core.testing.clock import ManualClock

__all__ = ["Alive", "Cancelled", "Promise", "SimNode", "Simulation", "SimulationStuck", "Task", "Timer"]

T = TypeVar("T")

Alive = Callable[[], bool]
"""Whether whoever called can still be answered, as far as one can know."""


class Cancelled(BaseException):
    """Raised inside a task that was cancelled, where it waits."""


class SimulationStuck(AssertionError):
    """What a test waits for does not happen."""


class Timer:
    """Something that will happen."""

    __slots__ = ("callback", "node")

    def __init__(self, node: SimNode | None, callback: Callable[[], None]) -> None:
        self.node = node
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """It will not."""
        self.callback = None


class Promise(Generic[T]):
    """A value that comes later. Await it; the first `resolve` or `fail` counts."""

    __slots__ = ("_error", "_value", "_waiting", "done")

    def __init__(self) -> None:
        self.done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._waiting: list[Task[Any]] = []

    def resolve(self, value: T) -> None:
        """This is it."""
        if not self.done:
            self.done, self._value = True, value
            self._wake()

    def fail(self, error: BaseException) -> bool:
        """It will not come. Returns whether somebody waits for it."""
        waited = bool(self._waiting)
        if not self.done:
            self.done, self._error = True, error
            self._wake()
        return waited

    def _wake(self) -> None:
        for task in self._waiting:
            task.wake(self)
        self._waiting.clear()

    def awaited_by(self, task: Task[Any]) -> None:
        """`task` goes on when this is done."""
        if self.done:
            task.wake(self)
        else:
            self._waiting.append(task)

    def result(self) -> T:
        """The value, or the error raised."""
        if self._error is not None:
            raise self._error
        return cast(T, self._value)

    def __await__(self) -> Generator[Promise[Any], None, T]:
        if not self.done:
            yield self
        return self.result()


class Task(Generic[T]):
    """A coroutine that a node runs. Await it for its result."""

    __slots__ = ("_awaiting", "_cancelling", "_coroutine", "_due", "_start", "ended", "node")

    def __init__(self, node: SimNode, start: Callable[[], Coroutine[Promise[Any], None, T]]) -> None:
        self.node = node
        self.ended: Promise[T] = Promise()
        self._start = start
        self._coroutine: Coroutine[Promise[Any], None, T] | None = None
        self._awaiting: Promise[Any] | None = None
        self._cancelling = False
        self._due = False  # its next step is an event already
        node.tasks[self] = None
        self._go_on()

    def _go_on(self) -> None:
        if not self._due:
            self._due = True
            self.node.later(0, self._step)

    def wake(self, promise: Promise[Any]) -> None:
        """What it waited for is there."""
        if promise is self._awaiting:
            self._awaiting = None
            self._go_on()

    def cancel(self) -> None:
        """Raise `Cancelled` inside it, soon."""
        if not self._cancelling and not self.ended.done:
            self._cancelling = True
            self._awaiting = None
            self._go_on()

    def _step(self) -> None:
        """Go on until it waits again."""
        self._due = False
        if self.ended.done:
            return
        node = self.node
        before, node.running = node.running, self
        try:
            if self._coroutine is None:
                if self._cancelling:
                    raise Cancelled
                self._coroutine = self._start()
            if self._cancelling:
                self._cancelling = False
                promise = self._coroutine.throw(Cancelled())
            else:
                promise = self._coroutine.send(None)
        except StopIteration as stop:
            self._end()
            self.ended.resolve(stop.value)
        except Cancelled as error:
            self._end()
            self.ended.fail(error)
        except Exception as error:
            self._end()
            if not self.ended.fail(error):
                raise
        else:
            self._awaiting = promise
            promise.awaited_by(self)
            if not node.alive:
                self.close()
        finally:
            node.running = before

    def _end(self) -> None:
        self.node.tasks.pop(self, None)

    def close(self) -> None:
        """Its node is dead: it never goes on."""
        if self.node.running is not self and self._coroutine is not None:
            self._coroutine.close()

    def __await__(self) -> Generator[Promise[Any], None, T]:
        return self.ended.__await__()


class Simulation:
    """Time, and what will happen."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self._events: list[tuple[int, int, Timer]] = []
        self._n = 0

    def later(self, seconds: float, node: SimNode | None, callback: Callable[[], None]) -> Timer:
        """Call `callback` in `seconds`, if `node` lives and is free then."""
        timer = Timer(node, callback)
        self._n += 1
        heappush(self._events, (self.clock.now + (round(seconds * 1e9) if seconds > 0 else 0), self._n, timer))
        return timer

    def run(self, until: Callable[[], bool] | None = None, *, seconds: float = 3600.0) -> None:
        """Run for `seconds`, or until something is so; `SimulationStuck` if it is not by then."""
        end = self.clock() + round(seconds * 1e9)
        if until is not None and until():
            return
        while self._events and self._events[0][0] <= end:
            if self._happen() and until is not None and until():
                return
        if until is not None:
            raise SimulationStuck(f"it did not happen in {seconds} simulated seconds")
        self.clock.set(end)

    def result(self, task: Task[T], *, seconds: float = 3600.0) -> T:
        """Run until `task` has ended; its result."""
        self.run(lambda: task.ended.done, seconds=seconds)
        return task.ended.result()

    def _happen(self) -> bool:
        at, _, timer = heappop(self._events)
        callback, node = timer.callback, timer.node
        if callback is None or (node is not None and not node.alive):
            return False
        if node is not None and node.busy_until > at:
            self._n += 1
            heappush(self._events, (node.busy_until, self._n, timer))
            return False
        self.clock.now = at
        callback()
        return True


class SimNode:
    """A process of the simulated world."""

    def __init__(self, simulation: Simulation, address: str) -> None:
        self.simulation = simulation
        self.address = address
        self.alive = True
        self.busy_until = 0
        self.running: Task[Any] | None = None
        self.tasks: dict[Task[Any], None] = {}  # a set, in order: what is closed first must not be chance

    async def serve(self, op: str, content: dict[str, Any], alive: Alive) -> Any:
        """Answer a call from the network."""
        raise NotImplementedError(f"{self.address} serves nothing")

    def spawn(self, function: Callable[..., Coroutine[Promise[Any], None, T]], *args: Any, **kwargs: Any) -> Task[T]:
        """Run `function(*args, **kwargs)` as a task of this node, from the next event on."""
        return Task(self, lambda: function(*args, **kwargs))

    def later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` in `seconds`, or as soon as possible then."""
        return self.simulation.later(seconds, self, callback)

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""
        over: Promise[None] = Promise()
        self.later(seconds, lambda: over.resolve(None))
        await over

    async def wait(self, promise: Promise[T], seconds: float) -> T | None:
        """The promise's value, or None, which it has then, after `seconds`."""
        timer = self.later(seconds, lambda: cast("Promise[T | None]", promise).resolve(None))
        try:
            return await promise
        finally:
            timer.cancel()

    def hold(self, seconds: float) -> None:
        """Nothing here runs for `seconds`: a C call keeps the GIL, or the process is stopped."""
        self.busy_until = max(self.busy_until, self.simulation.clock() + round(seconds * 1e9))

    def die(self) -> None:
        """Nothing here runs any more."""
        self.alive = False
        for task in list(self.tasks):
            task.close()
        self.tasks.clear()
