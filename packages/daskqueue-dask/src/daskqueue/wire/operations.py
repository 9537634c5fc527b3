"""The operations between clients, workers and scheduler, and how their arguments and answers look as messages.

Every process answers one Dask handler, `HANDLER`, with a `do` argument that names the operation. An operation on a
queue names the queue's uuid and the epoch of its place, is idempotent, and is answered `(OK, value)`, `(LOST,)` (by
that name it is not here: it moved or is lost, and the directory knows which), or `(ERROR, kind, text)`: errors travel
as values, since Dask logs a handler's exception. `CODECS` says how the arguments and the answer of an operation are
made into a message and back; inside one process they are handed over as they are. Bytes from `INLINE_BYTES` on travel
as frames of their own, which arrive without a copy; shorter ones inside the message, which is faster.

Invariant: what holds such a frame is a list or a dict, and so is what holds that: between workers in threads
(`inproc://`) messages are not serialized, and Dask finds the frames in lists and dicts only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from distributed.protocol import to_serialize

from daskqueue.wire.buffers import Spread
from daskqueue.wire.compat import frames_of_one
from daskqueue.wire.recovery import Recovery
from daskqueue_core.batch import Batch, Buffer, Part
from daskqueue_core.dead_letters import DeadLetter
from daskqueue_core.joining import JoinState
from daskqueue_core.ledger import Early, UnknownProducer
from daskqueue_core.outcomes import Failure, Outcome, Outcomes, Report
from daskqueue_core.queue import Accepted, Demand, Full, Lease, PutAnswer
from daskqueue_core.states import MessageState
from daskqueue_core.stats import QueueStats

__all__ = ["CODECS", "ERROR", "HANDLER", "LOST", "METRIC", "OK", "PROTOCOL", "REFUSED", "Codec"]

PROTOCOL: Final = 7
"""Raised with every change of an operation; compared when a pool is opened and when a worker joins."""

HANDLER: Final = "daskqueue"
METRIC: Final = "daskqueue"
"""What a worker's heartbeats say for us; see `worker.load`."""
OK: Final = "ok"
LOST: Final = "lost"
ERROR: Final = "error"

REFUSED: Final = "OrderRefused"
"""The kind of error when a worker does not carry out an order that was overtaken, or because it leaves: no fault."""

INLINE_BYTES: Final = 65_536


class Codec(NamedTuple):
    """How one operation travels: its keyword arguments there, its answer back."""

    pack: Callable[[dict[str, Any]], dict[str, Any]]
    unpack: Callable[[dict[str, Any]], dict[str, Any]]
    pack_answer: Callable[[Any], Any]
    unpack_answer: Callable[[Any], Any]


def _same(value: Any) -> Any:
    return value


def _field(name: str, convert: Callable[[Any], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Converts one argument and leaves the others."""

    def apply(arguments: dict[str, Any]) -> dict[str, Any]:
        return {**arguments, name: convert(arguments[name])}

    return apply


def _bytes(buffer: Buffer | None) -> Any:
    if buffer is None:
        return None
    if len(buffer) < INLINE_BYTES:
        return bytes(buffer)
    return to_serialize(memoryview(buffer))


def _body(body: Buffer | Spread) -> Any:
    return frames_of_one(body.pieces) if isinstance(body, Spread) else _bytes(body)


def _pack_batches(batches: Iterable[Batch]) -> list[Any]:
    return [[batch[0], _body(batch[1]), *batch[2:]] for batch in batches]


def _unpack_batches(message: Iterable[Any]) -> list[Batch]:
    return [Batch(*fields) for fields in message]


def _pack_put_answer(answer: PutAnswer) -> Any:
    if isinstance(answer, Accepted):
        return tuple(answer)
    if isinstance(answer, Full):
        return ("full", answer.room)
    return "early" if isinstance(answer, Early) else "unknown"


def _unpack_put_answer(message: Any) -> PutAnswer:
    if message == "early":
        return Early()
    if message[0] == "full":
        return Full(message[1])
    return UnknownProducer() if message == "unknown" else Accepted(*message)


def _pack_lone_answer(answer: tuple[PutAnswer, Outcomes | None]) -> Any:
    return [_pack_put_answer(answer[0]), None if answer[1] is None else _pack_outcomes(answer[1])]


def _unpack_lone_answer(message: Any) -> tuple[PutAnswer, Outcomes | None]:
    return _unpack_put_answer(message[0]), None if message[1] is None else _unpack_outcomes(message[1])


def _pack_reports(reports: Iterable[tuple[int, Iterable[Report]]]) -> Any:
    return [
        [lease, [[start, stop, _bytes(values), tuple(map(tuple, errors))] for start, stop, values, errors in of]]
        for lease, of in reports
    ]


def _unpack_reports(message: Any) -> list[tuple[int, list[Report]]]:
    return [(lease, [_unpack_report(*fields) for fields in of_lease]) for lease, of_lease in message]


def _unpack_report(start: int, stop: int, values: Buffer, errors: Iterable[Any]) -> Report:
    return Report(start, stop, values, tuple(Failure(*fields) for fields in errors))


def _pack_lease_request(arguments: dict[str, Any]) -> dict[str, Any]:
    demand: Demand = arguments["demand"]
    plain = (
        *(demand.unknown, dict(demand.wants), tuple(demand.kinds), tuple(demand.have), tuple(demand.tags)),
        demand.time_left,
    )
    return {**arguments, "demand": plain, "reports": _pack_reports(arguments["reports"])}


def _unpack_lease_request(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "demand": Demand(*message["demand"]), "reports": _unpack_reports(message["reports"])}


def _pack_lease(lease: Lease | None) -> Any:
    if lease is None:
        return None
    parts = [[*part[:4], _bytes(part.body), *part[5:]] for part in lease.parts]
    return [lease.id, lease.request, parts, lease.deadline, lease.once]


def _unpack_lease(message: Any) -> Lease | None:
    if message is None:
        return None
    id_, request, parts, deadline, once = message
    return Lease(id_, request, tuple(Part(*fields) for fields in parts), deadline, once)


def _pack_outcome(outcome: Outcome) -> list[Any]:
    return [*outcome[:4], _bytes(outcome.values), *outcome[5:]]


def _pack_outcomes(outcomes: Outcomes) -> Any:
    return [outcomes.cursor, list(map(_pack_outcome, outcomes.outcomes))]


def _unpack_outcomes(message: Any) -> Outcomes:
    (epoch, number), outcomes = message
    return Outcomes((epoch, number), tuple(Outcome(*fields) for fields in outcomes))


def _pack_kept(answer: tuple[int, list[tuple[int, Outcome]]]) -> Any:
    return [answer[0], [[client, _pack_outcome(outcome)] for client, outcome in answer[1]]]


def _unpack_kept(message: Any) -> tuple[int, list[tuple[int, Outcome]]]:
    return message[0], [(client, Outcome(*fields)) for client, fields in message[1]]


def _unpack_letters(message: Any) -> list[DeadLetter]:
    return [DeadLetter(*fields) for fields in message]


def _pack_recovery(recovery: Recovery | None) -> Any:
    return None if recovery is None else tuple(recovery)


CODECS: Final[dict[str, Codec]] = {
    "admit": Codec(
        _field("batches", _pack_batches), _field("batches", _unpack_batches), _pack_put_answer, _unpack_put_answer
    ),
    "admit_alone": Codec(
        _field("batches", _pack_batches), _field("batches", _unpack_batches), _pack_lone_answer, _unpack_lone_answer
    ),
    "poll": Codec(_same, _same, _pack_outcomes, _unpack_outcomes),
    "lease": Codec(_pack_lease_request, _unpack_lease_request, _pack_lease, _unpack_lease),
    "settle": Codec(_field("reports", _pack_reports), _field("reports", _unpack_reports), _same, _same),
    "release": Codec(_same, _same, _same, _same),
    "heartbeat": Codec(_same, _same, _same, _same),
    "read_kept": Codec(_same, _same, _pack_kept, _unpack_kept),
    "cancel_tasks": Codec(_same, _same, tuple, _same),
    "forget": Codec(_same, _same, _same, _same),
    "subscribe": Codec(_same, _same, tuple, _same),
    "cancel_named": Codec(_same, _same, tuple, _same),
    "forget_tasks": Codec(_same, _same, _same, _same),
    "dead_letters": Codec(_same, _same, lambda letters: tuple(map(tuple, letters)), _unpack_letters),
    "requeue": Codec(_same, _same, _same, _same),
    "purge": Codec(_field("state", int), _field("state", MessageState), _same, _same),
    "stats": Codec(_same, _same, tuple, lambda message: QueueStats(*message)),
    "join": Codec(_same, _same, tuple, lambda message: JoinState(*message)),
    "recovery": Codec(_same, _same, _pack_recovery, lambda message: None if message is None else Recovery(*message)),
    "resubmitted": Codec(_same, _same, _same, _same),
}
"""Every operation on a queue."""
