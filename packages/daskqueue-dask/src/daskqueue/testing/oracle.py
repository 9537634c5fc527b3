"""A witness outside of the cluster, and faults that strike in the middle of a task. Both travel to the workers.

Invariant: a line is one `O_APPEND` write, which no kill can tear and no other writer can mix with its own. Who reads
meanwhile may see the first half of one: it is a line when its end is there.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Oracle", "Striking"]


class Oracle:
    """A file that tasks append lines to: what it says happened, whatever became of who did it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)

    def mark(self, *words: object) -> None:
        """Append a line."""
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, (" ".join(map(str, words)) + "\n").encode())
        finally:
            os.close(file)

    def lines(self) -> list[str]:
        """All lines so far."""
        try:
            text = Path(self.path).read_text()
        except FileNotFoundError:
            return []
        return text[: text.rfind("\n") + 1].splitlines()

    def counts(self) -> Counter[str]:
        """How often each line was written."""
        return Counter(self.lines())


class Striking:
    """`function`, whose process gets a signal while it runs with `k` as its first argument: once, wherever that is.

    `SIGKILL` is a crash, `SIGSTOP` a machine that hangs (whoever has the process id in `oracle` lets it go on),
    `SIGTERM` the end of a batch job. The strike is written down before it happens: `struck`.
    """

    def __init__(self, function: Callable[..., Any], k: object, oracle: Oracle, signum: int = signal.SIGKILL) -> None:
        self.function = function
        self.k = k
        self.oracle = oracle
        self.signum = signum

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Strike if it is time, and go on."""
        if arguments and arguments[0] == self.k:
            try:
                os.close(os.open(f"{self.oracle.path}.struck", os.O_CREAT | os.O_EXCL, 0o600))
            except FileExistsError:
                pass
            else:
                self.oracle.mark("struck", os.getpid())
                os.kill(os.getpid(), self.signum)
        return self.function(*arguments, **named)

    @property
    def struck(self) -> int | None:
        """The process that was struck; None until then."""
        for line in self.oracle.lines():
            if line.startswith("struck "):
                return int(line.split()[1])
        return None
