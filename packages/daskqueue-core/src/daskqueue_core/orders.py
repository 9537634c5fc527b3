"""What the directory says: where a queue is, and what it orders its workers to do.

An order is carried out by whoever hosts the directory, and names the worker it is for. All are idempotent: an order may
be given again when nobody knows whether it arrived.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["Consume", "Drop", "Host", "Order", "Place", "Release", "StopConsuming", "TakeOver"]


class Place(NamedTuple):
    """Where a queue is. `address` is empty while no worker hosts it, `up` once its host has said it serves."""

    uuid: str
    address: str
    epoch: int
    up: bool


class Host(NamedTuple):
    """Serve queue `index` of `pool` on the worker `address`, as `uuid`."""

    address: str
    pool: str
    index: int  # type: ignore[assignment]  # hides tuple's method, unused in a record
    uuid: str
    epoch: int
    options: Mapping[str, Any]
    expected: tuple[str, ...]  # clients that may put again what the life before this lost
    owners: tuple[str, ...] = ()  # who is here: of a durable queue they keep their leases
    lost: tuple[str, ...] = ()  # who was here and is gone: what they ran may have killed them
    leaving: bool = False  # nobody stays: it serves though it leaves, as long as it is here


class TakeOver(NamedTuple):
    """Serve queue `uuid` on the worker `address` under `epoch`: as it was on the worker `source`, who hands it over."""

    address: str
    pool: str
    index: int  # type: ignore[assignment]
    uuid: str
    epoch: int
    source: str
    options: Mapping[str, Any]


class Drop(NamedTuple):
    """The queue `uuid` on `address` is over, up to `epoch`: what was handed over from there, too."""

    address: str
    pool: str
    uuid: str
    epoch: int


class Release(NamedTuple):
    """Owner `owner` is gone: the queue host `address` takes its leases back."""

    address: str
    owner: str


class Consume(NamedTuple):
    """Run `count` consumers of consumer pool `consumers` on the worker `address` (0: none for now)."""

    address: str
    pool: str
    consumers: str
    count: int  # type: ignore[assignment]
    spec: Mapping[str, Any]


class StopConsuming(NamedTuple):
    """Consumer pool `consumers` is over on the worker `address`; with `drain`, what runs is finished first."""

    address: str
    consumers: str
    drain: bool


Order = Host | TakeOver | Drop | Release | Consume | StopConsuming
