"""What the directory knows of a worker, of a queue pool, of a queue on the move and of a consumer pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from daskqueue_core.orders import Place

__all__ = ["ConsumerPoolRecord", "Move", "PoolRecord", "WorkerRecord"]


@dataclass
class WorkerRecord:
    """A worker that is here."""

    owner: str
    nthreads: int
    leaving: bool = False
    """It gets nothing more to host or to consume, and gives away what it hosts."""


@dataclass
class Move:
    """A queue is about to be served by `to`, under `epoch`."""

    to: str
    epoch: int
    lost: list[str]
    """Owners that were lost meanwhile: neither host may have been told."""
    tried: set[str] = field(default_factory=set)
    """Workers that could not take it over, of those that were asked because its host leaves."""


@dataclass
class ConsumerPoolRecord:
    """A consumer pool: `count` consumers in all, or one on each worker (None)."""

    id: str
    pool: str
    spec: Mapping[str, Any]
    count: int | None
    kinds: tuple[int, ...]
    placed: dict[str, int] = field(default_factory=dict)
    """How many each worker runs; 0 where they are idle and may come back."""
    failed: set[str] = field(default_factory=set)
    """Workers that could not run them."""
    left: set[str] = field(default_factory=set)
    """Workers on which they have stopped, since its end is near."""
    ends: dict[str, float] = field(default_factory=dict)
    """When each of the workers is over, in seconds of the caller's clock; infinite: never."""
    longest: float = 0.0
    """The most seconds that a worker had when they began there."""


@dataclass
class PoolRecord:
    """A queue pool."""

    name: str
    options: Mapping[str, Any]
    client: str | None  # whom an unnamed pool belongs to
    id: str = ""
    """Of this pool, and of no other that has its name before or after it."""
    places: list[Place] = field(default_factory=list)
    clients: set[str] = field(default_factory=set)
    consumers: dict[str, ConsumerPoolRecord] = field(default_factory=dict)
    early_ack: bool = False
    epochs: list[int] = field(default_factory=list)
    """The last one given, of each queue."""
    moves: dict[str, Move] = field(default_factory=dict)
    """By uuid."""
    durable: bool = False
    refused: dict[str, set[str]] = field(default_factory=dict)
    """Workers that could not open a durable queue, by uuid, since one of them last could or all had been asked."""
    told: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Who was here when a worker was ordered to open a durable queue that it does not serve yet, by uuid."""
    trouble: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """What those said that could not serve a queue since one last could, by uuid: `(kind, text)`."""

    def next_epoch(self, index: int) -> int:
        """An epoch that queue `index` never had."""
        self.epochs[index] += 1
        return self.epochs[index]

    def index_of(self, uuid: str) -> int:
        """Which queue that is; it must be one of this pool's."""
        return next(index for index, place in enumerate(self.places) if place.uuid == uuid)
