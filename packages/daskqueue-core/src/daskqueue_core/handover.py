"""A queue in memory moves to another host: as a value that travels, and as the same queue again, under a new epoch.

`hand_over` makes a `HandOver` of everything a queue holds and closes the queue for good: all that is asked of it
afterwards raises `QueueMoved`, which its host answers as it answers for a queue that it does not have. `take_over`
makes the queue again. Uuid, numbers, leases with their request numbers, and the puts that were admitted stay, so what
was asked of the old host and not answered is asked again of the new one, and happens once. Cursors do not stay: what
clients had not acknowledged is sent again from the start, and they drop what they know.

`Epochs` is what hosts must remember so that there is one queue and one epoch of it, however late an order, a question
or an answer arrives. Each move has an epoch of its own, given before it begins.

Not here: who decides on a move (`directory`), how a `HandOver` travels, and who waits at a queue: parked requests are
answered as lost, and come again. What the pool's options say, and the room of the new host, are its own.

Invariants: a `HandOver` shares nothing that can change with the queue it came from, and pickles, but for what lies
apart; a queue that was handed over can neither be read nor changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, NoReturn

from daskqueue_core.batch import Batch, Buffer
from daskqueue_core.dead_letters import Letter, LetterRow
from daskqueue_core.errors import DaskQueueError
from daskqueue_core.ledger import Ledger
from daskqueue_core.mail import MailRows
from daskqueue_core.outcomes import KeptRows, Outcome
from daskqueue_core.payloads import AgainRow, EntryRow
from daskqueue_core.producing import QueueProducing
from daskqueue_core.snapshot import Columns

__all__ = ["Epochs", "HandOver", "MovableQueue", "QueueMoved"]

REMEMBERED_QUEUES: Final = 10_000
ROW_BYTES: Final = 100  # that a row takes beside its buffers, about

_PARTS: Final = ("_ledger", "_payloads", "_names", "_routes", "_letters", "_kept", "_mail", "_gone")


class QueueMoved(DaskQueueError):
    """The queue was handed over to another host. Ask the directory where it is."""

    def __init__(self, uuid: str, epoch: int) -> None:
        self.uuid = uuid
        self.epoch = epoch
        super().__init__(f"queue {uuid} is not here any more, it was handed over (epoch {epoch}): ask the directory")

    def __reduce__(self) -> tuple[type[QueueMoved], tuple[str, int]]:
        return QueueMoved, (self.uuid, self.epoch)


class HandOver(NamedTuple):
    """Everything a queue held when it was closed."""

    uuid: str
    epoch: int  # under which it was served: the next one is higher
    time: int  # of its clock
    nbytes: int  # about what it takes to send
    ledger: Columns
    routes: list[tuple[int, tuple[str, ...]]]
    entries: list[EntryRow]
    again: list[AgainRow]
    payload_bytes: int
    unfinished: dict[int, int]  # by route
    names: list[tuple[int, int, list[int]]]
    letters: list[LetterRow]
    kept: KeptRows
    mail: MailRows
    gone: list[str]  # owners that were lost last
    retries: int
    attempted: bool
    bodies: Sequence[tuple[int, Buffer]] = ()  # by position in `entries`: large ones, not there; may be views


class MovableQueue(QueueProducing):
    """A queue in memory that can be handed over."""

    def hand_over(self, apart: int | None = None) -> HandOver:
        """Everything the queue holds. From now on it is closed: whatever is asked of it raises `QueueMoved`.

        Bodies of `apart` bytes and more lie apart, without a copy: without these it pickles (None: as it is).
        If this raises, nothing has happened.
        """
        plain = _Plain()
        ledger = self._ledger.snapshot()
        entries, again = self._payloads.rows()
        letters, kept, mail = self._letters.rows(), self._kept.rows(), self._mail.rows()
        rows = len(entries) + len(again) + len(letters) + len(kept.kept)
        rows += sum([len(items) for _, _, items in mail.outboxes]) + sum([len(each) for _, each in mail.followers])
        bodies: list[tuple[int, Buffer]] = []
        if apart is not None:
            bodies = [(at, entry[1].body) for at, entry in enumerate(entries) if len(entry[1].body) >= apart]
            for at, _ in bodies:
                base, batch, *more = entries[at]
                entries[at] = (base, batch._replace(body=b""), *more)  # type: ignore[assignment]
            plain.nbytes += sum([len(body) for _, body in bodies])
        state = HandOver(
            self.uuid,
            self.epoch,
            self._clock(),
            0,
            ledger,
            self._routes.rows(),
            [(base, plain.batch(batch), *more) for base, batch, *more in entries],  # type: ignore[misc]
            [
                (seq, plain.batch(template), None if body is None else plain.buffer(body), key, life)
                for seq, template, body, key, life in again
            ],
            self._payloads.nbytes,
            dict(self._payloads.unfinished),
            self._names.rows(),
            [plain.letter(letter) for letter in letters],
            kept._replace(kept=[(*row[:2], plain.outcome(row[2]), row[3]) for row in kept.kept]),
            MailRows(
                [(client, at, [(plain.outcome(one), n) for one, n in items]) for client, at, items in mail.outboxes],
                [(seq, list(followers)) for seq, followers in mail.followers],
            ),
            list(self._gone),
            self._retries,
            self._attempted,
            bodies,
        )
        moved: Any = _Moved(self.uuid, self.epoch)
        for part in _PARTS:
            setattr(self, part, moved)
        return state._replace(nbytes=plain.nbytes + sum(map(len, ledger.values())) + ROW_BYTES * rows)

    def _load(self, state: HandOver) -> None:
        """Hold what `state` holds; so far there is nothing."""
        gap = self._clock() - state.time
        self._ledger = Ledger.restore(state.ledger, epoch=self.epoch)
        self._ledger.shift_deadlines(max(0, gap))  # nobody could be heard meanwhile; clocks of two hosts differ, too
        for kind, tags in state.routes:
            self._routes.number(kind, tags)
        payloads = self._payloads
        entries = list(state.entries)
        for at, body in state.bodies:
            base, batch, *more = entries[at]
            entries[at] = (base, batch._replace(body=body), *more)  # type: ignore[assignment]
        payloads.load(entries, state.again)
        payloads.nbytes = state.payload_bytes
        payloads.unfinished = dict(state.unfinished)
        for client, number, bases in state.names:
            self._names.load(client, number, [payloads.batch_at(base) for base in bases])
        for letter in state.letters:
            self._letters.add(Letter(*letter))
        self._kept.load(state.kept)
        self._mail.load(state.mail, gap=gap)
        self._gone = dict.fromkeys(state.gone)
        self._retries, self._attempted = state.retries, state.attempted


class _Moved:
    """In the place of everything that a queue held before it was handed over."""

    def __init__(self, uuid: str, epoch: int) -> None:
        self._queue = uuid, epoch

    def _refuse(self, *_: object) -> NoReturn:
        raise QueueMoved(*self._queue)

    __getattr__ = __contains__ = __setitem__ = __len__ = __getitem__ = _refuse

    def clear(self) -> None:
        """There is nothing any more: its host may close it."""


class _Plain:
    """Makes views bytes, each buffer once, however many share it; counts the bytes."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._buffers: dict[int, bytes] = {}
        self._outcomes: dict[int, Outcome] = {}

    def buffer(self, buffer: Buffer) -> bytes:
        plain = self._buffers.get(id(buffer))
        if plain is None:
            plain = self._buffers[id(buffer)] = bytes(buffer)
            self.nbytes += len(plain)
        return plain

    def batch(self, batch: Batch) -> Batch:
        for buffer in (batch.lengths, batch.shared, batch.control):
            self.buffer(buffer)
        self.nbytes += sum(map(len, batch.keys))
        body = self.buffer(batch.body)
        return batch if body is batch.body else batch._replace(body=body)

    def letter(self, letter: LetterRow) -> LetterRow:
        card, template, body, life = letter
        self.buffer(card.blob)
        self.nbytes += len(card.text)
        return card, self.batch(template), None if body is None else self.buffer(body), life

    def outcome(self, outcome: Outcome) -> Outcome:
        plain = self._outcomes.get(id(outcome))
        if plain is None:
            values = self.buffer(outcome.values)
            for _, blob, text in outcome.errors:
                self.buffer(blob)
                self.nbytes += len(text)
            plain = outcome if values is outcome.values else outcome._replace(values=values)
            self._outcomes[id(outcome)] = plain
        return plain


class Epochs:
    """The highest epoch of each queue that a host has served, or was told to forget.

    A host opens a queue, or hands over the one it serves, only to a higher epoch. So no order that was overtaken brings
    back a queue that has moved on, and nobody who was given up takes a queue away from where it is.
    """

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}  # in the order in which they were heard of

    def admits(self, uuid: str, epoch: int) -> bool:
        """Whether queue `uuid` may be opened under `epoch`, or handed over to it."""
        return epoch > self._seen.get(uuid, -1)

    def saw(self, uuid: str, epoch: int) -> None:
        """The queue is served here under `epoch`, or that is over."""
        self._seen[uuid] = max(epoch, self._seen.pop(uuid, -1))
        if len(self._seen) > REMEMBERED_QUEUES:
            del self._seen[next(iter(self._seen))]
