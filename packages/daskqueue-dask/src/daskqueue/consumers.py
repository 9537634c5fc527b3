"""What users subclass: who does the work of a queue.

`GeneralConsumer` runs the functions that `submit`, `map` and `batch_submit` send. A subclass of `ConsumerBaseClass`
with a `process_item` method serves what `put` and `put_many` send. `DummyConsumer` throws everything away.
"""

from __future__ import annotations

from typing import Any, ClassVar

from daskqueue_core.batch import Kind

__all__ = ["ConsumerBaseClass", "DummyConsumer", "GeneralConsumer"]


class ConsumerBaseClass:
    """Serves the items of a queue pool: one object for each worker and consumer pool.

    Subclass it and write `process_item(self, item)`, a plain method or `async def`. It may run on several threads at
    once, as many as the pool's `concurrency` says.
    """

    kinds: ClassVar[tuple[int, ...]] = (Kind.ITEM,)
    """Which work it takes."""

    def setup(self) -> None:
        """Called once on each worker, before the first item."""

    def teardown(self) -> None:
        """Called once on each worker, after the last item."""

    def process_item(self, item: Any) -> Any:
        """Do the work of one item. An exception makes it a failed item, and harms no other."""
        raise NotImplementedError(f"{type(self).__name__} has no process_item method")


class GeneralConsumer(ConsumerBaseClass):
    """Runs submitted functions."""

    kinds = (Kind.CALL,)


class DummyConsumer(ConsumerBaseClass):
    """Takes everything and does nothing, for benchmarks. Submitted functions are not run; their futures give None."""

    kinds = (Kind.ITEM, Kind.CALL)

    def process_item(self, item: Any) -> None:
        """Nothing."""
