"""`TaskBatch` by itself: outcomes arrive in any order and in pieces of any size, within one put and across several."""

from __future__ import annotations

import itertools
import random
from typing import Any, cast

import pytest

from daskqueue.client.futures import Home
from daskqueue.client.task_batch import TaskBatch


class NoPool:
    """Nothing of it is asked for here."""

    client_id = 7


def batch_of(*counts: int) -> TaskBatch:
    """One that was put as so many batches."""
    batch = TaskBatch(cast("Home", NoPool()))
    number = 100
    for count in counts:
        batch.extend(count, number)
        number += 10 * count
    return batch


def lose(batch: TaskBatch, lo: int, hi: int) -> None:
    """They end with an error that says where it came from."""
    batch.lose(lo, hi, LookupError(lo, hi))


def endings(batch: TaskBatch) -> dict[int, Any]:
    """What each ended with."""
    return {index: error.args for index, error in batch.failures(0).items()}


@pytest.mark.parametrize("order", list(itertools.permutations([(0, 3), (3, 4), (4, 9), (9, 10)])))
def test_pieces_in_any_order(order: tuple[tuple[int, int], ...]) -> None:
    """Of puts of 4, 1 and 5: pieces smaller than a put, as large, and across their borders."""
    batch = batch_of(4, 1, 5)
    first = batch[3]
    ended: dict[int, tuple[int, int]] = {}
    for lo, hi in order:
        lose(batch, lo, hi)
        ended.update(dict.fromkeys(range(lo, hi), (lo, hi)))
        assert [batch[index].done() for index in range(10)] == [index in ended for index in range(10)]
        assert batch.counts() == (10 - len(ended), 0, len(ended))
    assert endings(batch) == ended
    assert first.exception(0).args == (3, 4)


def test_puts_that_end_while_others_come() -> None:
    """Random sizes, many puts, extended while earlier ones end."""
    choose = random.Random(5)
    batch = batch_of()
    ended: dict[int, tuple[int, int]] = {}
    begun = 0
    for _ in range(60):
        batch.extend(choose.randint(1, 30), 0)
        while begun < len(batch) and choose.random() < 0.8:
            stop = min(len(batch), begun + choose.randint(1, 40))
            lose(batch, begun, stop)
            ended.update(dict.fromkeys(range(begun, stop), (begun, stop)))
            begun = stop
    if begun < len(batch):
        lose(batch, begun, len(batch))
        ended.update(dict.fromkeys(range(begun, len(batch)), (begun, len(batch))))
    assert endings(batch) == ended


def test_numbers() -> None:
    """A task's number is that of its put."""
    batch = batch_of(4, 1, 5)
    assert [batch[index].number for index in range(10)] == [100, 101, 102, 103, 140, 150, 151, 152, 153, 154]
