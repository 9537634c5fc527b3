"""What a simulated disk holds: files and directories, each as it is durable, as it is cached, and what lies in between.

Not here: who does what when (`sim_files`). Here is what a crash may make of it: `survivor` after a kill, `image` after
power loss.
"""

from __future__ import annotations

import random
from typing import Final, NamedTuple

__all__ = [
    "SimCut",
    "SimDir",
    "SimFile",
    "SimName",
    "SimWrite",
    "apply",
    "count_links",
    "image",
    "pending_orders",
    "survivor",
]

_SECTOR: Final = 512


class SimWrite(NamedTuple):
    """Bytes that were written and not synced."""

    order: int
    host: str
    offset: int
    data: bytes


class SimCut(NamedTuple):
    """A truncation that was not synced."""

    order: int
    host: str
    size: int


class SimName(NamedTuple):
    """A name that was given or taken away, and its directory not synced."""

    order: int
    name: str
    node: SimFile | SimDir | None  # None: unlinked


class SimFile:
    """`durable` and the pending operations are the disk, `cache` is what reads show."""

    def __init__(self, number: int, durable: bytes = b"") -> None:
        self.number = number
        self.durable = bytearray(durable)
        self.cache = bytearray(durable)
        self.pending: list[SimWrite | SimCut] = []
        self.reserved = 0  # so much room it has on the disk at the least
        self.host = ""  # that wrote last: `cache` is what is seen there
        self.links = 0
        self.mtime_ns = 0


class SimDir:
    """The same for names."""

    def __init__(self, number: int, uid: int, mode: int = 0o700) -> None:
        self.number = number
        self.uid = uid
        self.mode = mode
        self.durable: dict[str, SimFile | SimDir] = {}
        self.names: dict[str, SimFile | SimDir] = {}
        self.pending: list[SimName] = []


def apply(data: bytearray, op: SimWrite | SimCut) -> None:
    """Do what was pending."""
    if isinstance(op, SimCut):
        data[op.size :] = bytes(max(0, op.size - len(data)))
        return
    if len(data) < op.offset:
        data.extend(bytes(op.offset - len(data)))
    data[op.offset : op.offset + len(op.data)] = op.data


def pending_orders(root: SimDir) -> list[int]:
    """The numbers of all operations that power loss may undo."""
    orders: list[int] = []
    nodes: list[SimFile | SimDir] = [root]
    while nodes:
        node = nodes.pop()
        orders += [op.order for op in node.pending]
        if isinstance(node, SimDir):
            nodes += node.names.values()
    return sorted(set(orders))


def survivor(node: SimDir, copies: dict[int, SimFile | SimDir]) -> SimDir:
    """A copy with everything, also what is not durable yet."""

    def copy(old: SimFile | SimDir) -> SimFile | SimDir:
        if old.number in copies:
            return copies[old.number]
        if isinstance(old, SimDir):
            return survivor(old, copies)
        new = SimFile(old.number)
        new.durable, new.cache, new.pending = bytearray(old.durable), bytearray(old.cache), list(old.pending)
        new.host, new.mtime_ns, new.reserved = old.host, old.mtime_ns, old.reserved
        copies[old.number] = new
        return new

    new = SimDir(node.number, node.uid, node.mode)
    copies[node.number] = new
    new.durable = {name: copy(child) for name, child in node.durable.items()}
    new.names = {name: copy(child) for name, child in node.names.items()}
    new.pending = [op._replace(node=op.node and copy(op.node)) for op in node.pending]
    return new


def image(node: SimDir, copies: dict[int, SimFile | SimDir], chance: random.Random, cut: int | None) -> SimDir:
    """One legal image of a directory after power loss."""
    new = SimDir(node.number, node.uid, node.mode)
    names = dict(node.durable)
    for op in node.pending:
        if chance.random() < 0.5 if cut is None else op.order <= cut:
            if op.node is None:
                names.pop(op.name, None)
            else:
                names[op.name] = op.node
    for name, child in names.items():
        if child.number not in copies:
            if isinstance(child, SimDir):
                copies[child.number] = image(child, copies, chance, cut)
            elif cut is None:
                copies[child.number] = SimFile(child.number, _chaos(child, chance))
            else:
                copies[child.number] = SimFile(child.number, _prefix(child, chance, cut))
        new.names[name] = new.durable[name] = copies[child.number]
    return new


def _prefix(node: SimFile, chance: random.Random, cut: int) -> bytes:
    """The operations up to `cut`, the last of them perhaps torn."""
    data = bytearray(node.durable)
    for op in node.pending:
        if op.order < cut:
            apply(data, op)
        elif op.order == cut:
            apply(
                data, op._replace(data=op.data[: chance.randint(0, len(op.data))]) if isinstance(op, SimWrite) else op
            )
    return bytes(data)


def _chaos(node: SimFile, chance: random.Random) -> bytes:
    """Any sectors of the pending writes, any length between."""
    data = bytearray(node.durable)
    keep_all = chance.random() < 0.2
    last = node.pending[-1] if node.pending else None
    for op in node.pending:
        if isinstance(op, SimCut):
            if keep_all or chance.random() < 0.5:
                apply(data, op)
            continue
        written = op.data
        if op is last and not keep_all:
            written = written[: chance.randint(0, len(written))]
        end = op.offset + len(written)
        if len(data) < end and chance.random() < 0.7:  # longer, though perhaps without the bytes
            grown = end - len(data)
            data.extend(bytes(grown) if chance.random() < 0.7 else chance.randbytes(grown))
        at = op.offset
        while at < end:
            stop = min(end, (at // _SECTOR + 1) * _SECTOR)
            if keep_all or chance.random() < 0.5:
                apply(data, SimWrite(0, "", at, bytes(written[at - op.offset : stop - op.offset])))
            at = stop
    return bytes(data)


def count_links(root: SimDir) -> None:
    """Set every file's link count from the names there are."""
    pending: list[SimDir] = [root]
    while pending:
        for child in pending.pop().names.values():
            if isinstance(child, SimDir):
                pending.append(child)
            else:
                child.links += 1
