"""Draw docs/design/states.md from `daskqueue_core.states.TRANSITIONS`: the table of moves and a diagram.

    python scripts/draw_states.py            write the document
    python scripts/draw_states.py --check    exit 1 if the document is not current

Standard library only. The prose is here, everything else comes from the table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "packages" / "daskqueue-core" / "src"))

from daskqueue_core.states import (  # noqa: E402
    ALL_BYTES,
    TRANSITIONS,
    MessageFlag,
    MessageState,
    Move,
    Refusal,
    flags_of,
    state_of,
)

DOCUMENT = ROOT / "docs" / "design" / "states.md"

HEAD = """\
# The states of a message

Drawn by `scripts/draw_states.py` from `TRANSITIONS` in `daskqueue_core/states.py`, the one place where moves are
defined; `python scripts/draw_states.py` writes this file anew. What each state means, who enters it, who leaves it and
what becomes of it after a crash is said at the top of that module.

A message is one byte: a state and flags. SUSPECT: it may have killed its worker, and is leased apart. CANCEL: its
holder is asked to give it up. OVERDUE: it should have started before now. {count} bytes are valid:

{bytes}

## Diagram

Moves that need no flag. What is CANCEL or OVERDUE never becomes READY or SCHEDULED again, see the table. GONE is where
every number begins and ends; numbers are not reused.

"""

TABLE = """
## Table

`.`: too late, counted and answered as such. `o`: nothing to do, not counted. Empty: cannot be asked for. `apply` raises
`IllegalMove` for all three and changes nothing; `decide_*` lets none of them through, `replay` drops and counts them.
A flag after a state is set (`+`) or cleared (`-`) by the move; flags not named stay where the state after can have
them. SUSPECT is shown in the columns of states without other flags; it does not change where a move leads.

"""

CELLS = {Refusal.STALE: ".", Refusal.IGNORED: "o", Refusal.ILLEGAL: ""}


def name(byte: int) -> str:
    """A byte in words."""
    flags = [flag.name or "" for flag in MessageFlag if flag & flags_of(byte)]
    return " ".join([state_of(byte).name, *flags])


def columns() -> list[int]:
    """The bytes that have a column: SUSPECT alone among the flags needs none."""
    plain = [byte for byte in ALL_BYTES if not byte & MessageFlag.SUSPECT]
    return sorted(plain, key=lambda byte: (state_of(byte) == MessageState.GONE, state_of(byte), byte))


def moves_of(before: int) -> Iterator[tuple[Move, int]]:
    """What can happen to a message that is `before`."""
    for move, row in TRANSITIONS.items():
        cell = row[before]
        if not isinstance(cell, Refusal):
            yield move, int(cell)


def diagram() -> str:
    """Mermaid: an arrow for each pair of states, labelled with its moves."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for before in columns():
        if flags_of(before):
            continue
        for move, after in moves_of(before):
            source, target = state_of(before).name, state_of(after).name
            source, target = ("[*]" if state == "GONE" else state for state in (source, target))
            arrows.setdefault((source, target), []).append(move.value.replace(",", " /"))
    lines = ["```mermaid", "stateDiagram-v2"]
    for (source, target), labels in arrows.items():
        lines.append(f"    {source} --> {target}: {'<br/>'.join(labels)}")
    return "\n".join([*lines, "```", ""])


def cell(move: Move, before: int) -> str:
    """What the table says of `move` for a message that is `before`."""
    after = TRANSITIONS[move][before]
    if isinstance(after, Refusal):
        return CELLS[after]
    suspected = TRANSITIONS[move].get(before | MessageFlag.SUSPECT, after)
    assert not isinstance(suspected, Refusal)
    words = [state_of(after).name]
    words += [f"+{flag.name}" for flag in MessageFlag if after & flag and not before & flag]
    can_be_suspect = after | MessageFlag.SUSPECT in ALL_BYTES
    if can_be_suspect and before | MessageFlag.SUSPECT in TRANSITIONS[move] and not suspected & MessageFlag.SUSPECT:
        words.append("-SUSPECT")
    return " ".join(words)


def table() -> str:
    """Markdown: a row for each move, a column for each byte."""
    rows = [["move", *(name(before) for before in columns())], ["---"] * (len(columns()) + 1)]
    rows += [[move.value, *(cell(move, before) for before in columns())] for move in Move]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def document() -> str:
    """The whole document."""
    valid = "".join(f"- `{byte:#04x}` {name(byte)}\n" for byte in ALL_BYTES).rstrip()
    return HEAD.format(count=len(ALL_BYTES), bytes=valid) + diagram() + TABLE + table()


def main(arguments: list[str] | None = None) -> int:
    """Write or check; returns the exit code."""
    parser = argparse.ArgumentParser(description="Draw docs/design/states.md from the table of moves.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the document is not current")
    wanted = document()
    if parser.parse_args(arguments).check:
        current = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
        if current != wanted:
            print(f"{DOCUMENT} is not current: run python scripts/draw_states.py", file=sys.stderr)  # noqa: T201
            return 1
        return 0
    DOCUMENT.parent.mkdir(parents=True, exist_ok=True)
    DOCUMENT.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
