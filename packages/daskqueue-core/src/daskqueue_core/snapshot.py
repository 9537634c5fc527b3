"""A ledger as columns, and back: what a store writes in one go instead of all events.

Columns are bytes, arrays of equal items in the machine's byte order, so that a snapshot costs a copy for each page and
a restore neither looks at messages nor decides anything. Hints are not stored: which messages are ready the states
say; where the pieces of suspects were cut is forgotten, which costs a few more leases at most.

    META      format, page size, epoch, next number, committed, stale, dropped, next lease, overdue since
    COUNTS    messages by byte;  SKIPPED: numbers that no message has, if there are some
    PAGE_*    a row for each page: index, state (MIXED: its bytes are in STATES), live messages, lane, which columns
    STATES    the bytes of mixed pages; LANES, ATTEMPTS: of pages that have such a column
    LANE_*    a row for each lane: priority, route, where to look for ready messages
    CRASH_*   crash counts;  KEY_*: keys;  WAIT_*, EXPIRE_*: schedules;  OVERDUE: runs
    OWNER_*, LEASE_*   who holds what; GRANTED, HOLDING: the runs of all leases
    PRODUCER_*         admission
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from struct import Struct
from typing import Final

from daskqueue_core.admission import Admission
from daskqueue_core.batch import Run
from daskqueue_core.leases import Lease, Leases
from daskqueue_core.ledger_state import LedgerState
from daskqueue_core.page_table import Page
from daskqueue_core.pages import Pages
from daskqueue_core.states import READY_SUSPECT, ByteClass
from daskqueue_core.suspects import pieces

__all__ = ["Columns", "epoch_of", "load", "page_size", "snapshot"]

Columns = dict[str, bytes]

FORMAT: Final = 1
MIXED: Final = 0xFF
HAS_LANES: Final = 1
HAS_ATTEMPTS: Final = 2
_COUNT: Final = Struct("<Q")
_META: Final = Struct("<IIQQQQQQq")
_SCHEDULE: Final = ("TIME", "START", "COUNT", "CHUNK")
_IS_SUSPECT: Final = ByteClass([READY_SUSPECT])


def snapshot(ledger: LedgerState) -> Columns:
    """Everything `ledger` knows."""
    columns = {
        "META": _META.pack(
            FORMAT,
            ledger.pages.size,
            ledger.epoch,
            ledger.puts,
            ledger.committed,
            ledger.stale,
            ledger.dropped,
            ledger.next_lease,
            ledger.overdue_at,
        ),
        "COUNTS": array("Q", ledger.pages.counts).tobytes(),
        "LANE_PRIORITY": array("h", [lane.priority for lane in ledger.lanes.by_id]).tobytes(),
        "LANE_ROUTE": array("I", [lane.route for lane in ledger.lanes.by_id]).tobytes(),
        "LANE_FIRST": array("Q", [lane.first for lane in ledger.lanes.by_id]).tobytes(),
        "LANE_END": array("Q", [lane.end for lane in ledger.lanes.by_id]).tobytes(),
        "CRASH_SEQ": array("Q", ledger.crash_counts).tobytes(),
        "CRASH_COUNT": array("I", ledger.crash_counts.values()).tobytes(),
        "KEY_SEQ": array("Q", ledger.keys.key_of).tobytes(),
        "OVERDUE": _bounds(ledger.overdue_runs),
    }
    if ledger.pages.skipped:
        columns["SKIPPED"] = _COUNT.pack(ledger.pages.skipped)
    columns.update(_texts("KEY", ledger.keys.key_of.values()))
    columns.update(zip([f"WAIT_{name}" for name in _SCHEDULE], ledger.waiting.columns()))
    columns.update(zip([f"EXPIRE_{name}" for name in _SCHEDULE], ledger.expiring.columns()))
    columns.update(_pages(ledger.pages))
    columns.update(_leases(ledger.leases))
    columns.update(_admission(ledger.admission))
    return columns


def load(ledger: LedgerState, columns: Mapping[str, bytes]) -> None:
    """Make a new, empty `ledger` know what `snapshot` returned. Its own epoch stays."""
    format_, size, _, next_seq, committed, stale, dropped, next_lease, overdue_at = _META.unpack(columns["META"])
    if format_ != FORMAT:
        raise ValueError(f"a snapshot of format {format_}; this version reads format {FORMAT}")
    assert size == ledger.pages.size, "pages of another size"
    ledger.pages.next_seq = next_seq
    ledger.pages.skipped = _COUNT.unpack(columns["SKIPPED"])[0] if "SKIPPED" in columns else 0
    ledger.pages.counts[:] = _ints("Q", columns["COUNTS"])
    _load_pages(ledger.pages, columns)
    ledger.committed, ledger.stale, ledger.dropped = committed, stale, dropped
    ledger.next_lease = max(ledger.next_lease, next_lease)
    lanes = ("LANE_PRIORITY", "LANE_ROUTE", "LANE_FIRST", "LANE_END")
    for priority, route, first, end in zip(*map(_ints, "hIQQ", [columns[name] for name in lanes])):
        lane = ledger.lanes.lane(priority, route)
        lane.cursor, lane.end = first, end
        if not lane.idle:
            ledger.lanes.activate(lane)
    if ledger.pages.counts[READY_SUSPECT]:
        ledger.lanes.suspect(pieces(ledger.pages.select([(0, next_seq)], _IS_SUSPECT)))
    ledger.crash_counts.update(zip(_ints("Q", columns["CRASH_SEQ"]), _ints("I", columns["CRASH_COUNT"])))
    for seq, key in zip(_ints("Q", columns["KEY_SEQ"]), _load_texts("KEY", columns)):
        ledger.keys.name(seq, key)
    ledger.waiting.load([columns[f"WAIT_{name}"] for name in _SCHEDULE])
    ledger.expiring.load([columns[f"EXPIRE_{name}"] for name in _SCHEDULE])
    ledger.overdue_runs, ledger.overdue_at = _load_bounds(columns["OVERDUE"]), overdue_at
    _load_leases(ledger.leases, columns)
    _load_admission(ledger.admission, columns)


def page_size(columns: Mapping[str, bytes]) -> int:
    """How long the pages of a snapshot are."""
    return int(_META.unpack(columns["META"])[1])


def epoch_of(columns: Mapping[str, bytes]) -> int:
    """Of the ledger that made the snapshot."""
    return int(_META.unpack(columns["META"])[2])


# -- pages


def _pages(pages: Pages) -> Columns:
    rows = list(pages)
    has = [HAS_LANES * (page.lanes is not None) + HAS_ATTEMPTS * (page.attempts is not None) for _, page in rows]
    return {
        "PAGE_INDEX": array("Q", [index for index, _ in rows]).tobytes(),
        "PAGE_STATE": bytes([page.state if page.states is None else MIXED for _, page in rows]),
        "PAGE_LIVE": array("I", [page.live for _, page in rows]).tobytes(),
        "PAGE_LANE": array("H", [page.lane for _, page in rows]).tobytes(),
        "PAGE_HAS": bytes(has),
        "STATES": b"".join([page.states for _, page in rows if page.states is not None]),
        "LANES": b"".join([page.lanes.tobytes() for _, page in rows if page.lanes is not None]),
        "ATTEMPTS": b"".join([page.attempts for _, page in rows if page.attempts is not None]),
    }


def _load_pages(pages: Pages, columns: Mapping[str, bytes]) -> None:
    states, attempts = memoryview(columns["STATES"]), memoryview(columns["ATTEMPTS"])
    lanes = _ints("H", columns["LANES"])
    at_states = at_lanes = at_attempts = 0
    rows = zip(
        _ints("Q", columns["PAGE_INDEX"]),
        columns["PAGE_STATE"],
        _ints("I", columns["PAGE_LIVE"]),
        _ints("H", columns["PAGE_LANE"]),
        columns["PAGE_HAS"],
    )
    for index, state, live, lane, has in rows:
        page = Page(state, lane)
        page.count = min(pages.size, pages.next_seq - index * pages.size)
        page.live = live
        if state == MIXED:
            page.states = bytearray(states[at_states : at_states + page.count])
            at_states += page.count
        if has & HAS_LANES:
            page.lanes = lanes[at_lanes : at_lanes + page.count]
            at_lanes += page.count
        if has & HAS_ATTEMPTS:
            page.attempts = bytearray(attempts[at_attempts : at_attempts + pages.size])
            at_attempts += pages.size
        pages.put_back(index, page)


# -- leases


def _leases(leases: Leases) -> Columns:
    owners = {name: number for number, name in enumerate(leases.owners)}
    rows = list(leases.by_id.values())
    return {
        **_texts("OWNER", owners),
        "OWNER_DEADLINE": array("q", [owner.deadline for owner in leases.owners.values()]).tobytes(),
        "LEASE_ID": array("Q", [lease.id for lease in rows]).tobytes(),
        "LEASE_OWNER": array("I", [owners[lease.owner] for lease in rows]).tobytes(),
        "LEASE_REQUEST": array("Q", [lease.request for lease in rows]).tobytes(),
        "LEASE_ONCE": bytes([lease.once for lease in rows]),
        "LEASE_REPORTED": bytes([lease.reported for lease in rows]),
        "LEASE_FINISHED": array("Q", [lease.finished for lease in rows]).tobytes(),
        "LEASE_STARTED": array("Q", [lease.started for lease in rows]).tobytes(),
        "LEASE_LEFT": array("Q", [lease.left for lease in rows]).tobytes(),
        "LEASE_UNCUT": array("Q", [lease.uncut for lease in rows]).tobytes(),
        "LEASE_GRANTED": array("I", [len(lease.granted) for lease in rows]).tobytes(),
        "LEASE_HOLDING": array("I", [len(lease.runs) for lease in rows]).tobytes(),
        "GRANTED": _bounds([run for lease in rows for run in lease.granted]),
        "HOLDING": _bounds([run for lease in rows for run in lease.runs]),
    }


def _load_leases(leases: Leases, columns: Mapping[str, bytes]) -> None:
    owners = _load_texts("OWNER", columns)
    deadlines = _ints("q", columns["OWNER_DEADLINE"])
    granted, holding = _load_bounds(columns["GRANTED"]), _load_bounds(columns["HOLDING"])
    leases.load_owners(zip(owners, deadlines))
    names = ("ID", "OWNER", "REQUEST", "FINISHED", "STARTED", "LEFT", "UNCUT", "GRANTED", "HOLDING")
    rows = zip(*map(_ints, "QIQQQQQII", [columns[f"LEASE_{name}"] for name in names]))
    at_granted = at_holding = 0
    for row, once, reported in zip(rows, columns["LEASE_ONCE"], columns["LEASE_REPORTED"]):
        lease_id, owner, request, finished, started, left, uncut, n_granted, n_holding = row
        runs = tuple(granted[at_granted : at_granted + n_granted])
        lease = Lease(lease_id, owners[owner], runs, left, bool(once), request)
        lease.runs = tuple(holding[at_holding : at_holding + n_holding])
        lease.finished, lease.started, lease.reported, lease.uncut = finished, started, bool(reported), uncut
        leases.add(lease, deadlines[owner])
        at_granted += n_granted
        at_holding += n_holding


# -- producers


def _admission(admission: Admission) -> Columns:
    rows = admission.rows()
    return {
        "PRODUCER_ID": array("Q", [producer for producer, _, _ in rows]).tobytes(),
        "PRODUCER_NEXT": array("Q", [number for _, number, _ in rows]).tobytes(),
        "PRODUCER_PUTS": bytes([len(last) for _, _, last in rows]),
        "PRODUCER_BASE": array("Q", [base for _, _, last in rows for base, _ in last]).tobytes(),
        "PRODUCER_COUNT": array("Q", [count for _, _, last in rows for _, count in last]).tobytes(),
    }


def _load_admission(admission: Admission, columns: Mapping[str, bytes]) -> None:
    puts = list(zip(_ints("Q", columns["PRODUCER_BASE"]), _ints("Q", columns["PRODUCER_COUNT"])))
    at = 0
    rows = zip(_ints("Q", columns["PRODUCER_ID"]), _ints("Q", columns["PRODUCER_NEXT"]), columns["PRODUCER_PUTS"])
    for producer, number, size in rows:
        admission.load(producer, number, puts[at : at + size])
        at += size


# -- columns


def _ints(typecode: str, column: bytes) -> array[int]:
    out: array[int] = array(typecode)
    out.frombytes(column)
    return out


def _bounds(runs: Iterable[Run]) -> bytes:
    return array("Q", [bound for run in runs for bound in run]).tobytes()


def _load_bounds(column: bytes) -> list[Run]:
    bounds = _ints("Q", column)
    return list(zip(bounds[::2], bounds[1::2]))


def _texts(name: str, texts: Iterable[str]) -> Columns:
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    return {f"{name}_LENGTH": array("I", map(len, encoded)).tobytes(), f"{name}_TEXT": b"".join(encoded)}


def _load_texts(name: str, columns: Mapping[str, bytes]) -> Sequence[str]:
    texts: list[str] = []
    at, data = 0, columns[f"{name}_TEXT"]
    for length in _ints("I", columns[f"{name}_LENGTH"]):
        texts.append(data[at : at + length].decode("utf-8", "surrogatepass"))
        at += length
    return texts
