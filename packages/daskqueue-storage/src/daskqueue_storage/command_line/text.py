"""How the command line says things: JSON for programs, aligned or single lines for people.

Invariant: what is said is plain: bytes become their size, or base64 where they were asked for.
"""

from __future__ import annotations

import json
import sys
from base64 import b64encode
from collections.abc import Mapping
from datetime import datetime, timezone
from enum import Enum, Flag
from typing import Any

__all__ = ["Speaker", "plain", "when"]


class Speaker:
    """Writes rows to stdout."""

    def __init__(self, *, as_json: bool, bodies: bool = False) -> None:
        self._as_json = as_json
        self._bodies = bodies

    def table(self, row: Mapping[str, Any]) -> None:
        """One thing: a JSON value, or a line for each field."""
        row = plain(row, bodies=self._bodies)
        if self._as_json:
            sys.stdout.write(json.dumps(row) + "\n")
            return
        lines = list(_flat(row))
        width = max((len(name) for name, _ in lines), default=0)
        for name, value in lines:
            sys.stdout.write(f"{name:<{width}}  {value}\n")

    def line(self, row: Mapping[str, Any], text: str = "") -> None:
        """One of many things: a JSON value, or `text`, by default its fields."""
        if self._as_json:
            text = json.dumps(plain(row, bodies=self._bodies))
        sys.stdout.write((text or self.fields(row)) + "\n")

    def fields(self, row: Mapping[str, Any]) -> str:
        """Those of a row that say something, in one line."""
        row = plain(row, bodies=self._bodies)
        return "  ".join(f"{name}={_short(value)}" for name, value in row.items() if value not in (None, "", []))

    def say(self, text: str) -> None:
        """A sentence for people only."""
        if not self._as_json:
            sys.stdout.write(text + "\n")


def plain(value: Any, *, bodies: bool = False) -> Any:
    """A value as JSON has it."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        data = bytes(value)
        return {"bytes": len(data), "base64": b64encode(data).decode()} if bodies else {"bytes": len(data)}
    if isinstance(value, Flag):
        return [each.name for each in type(value) if each & value]
    if isinstance(value, Enum):
        return value.name
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(name): plain(each, bodies=bodies) for name, each in value.items()}
    if isinstance(value, (tuple, list, range)):
        return [plain(each, bodies=bodies) for each in value]
    return value


def when(ns: int) -> str:
    """A time of day, for people."""
    try:
        return datetime.fromtimestamp(ns / 1e9, tz=timezone.utc).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"
    except (OverflowError, ValueError, OSError):
        return str(ns)


def _flat(row: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for name, value in row.items():
        if isinstance(value, Mapping) and value:
            lines += _flat(value, f"{prefix}{name}.")
        else:
            lines.append((prefix + name, _short(value)))
    return lines


def _short(value: Any) -> str:
    if isinstance(value, str):
        return value if value.isprintable() and " " not in value else json.dumps(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, Mapping) and value.keys() == {"bytes"}:
        return f"{value['bytes']} bytes"
    return json.dumps(value)
