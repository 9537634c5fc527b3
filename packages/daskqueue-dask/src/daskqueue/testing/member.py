"""A process of a `ProcessCluster`, and what can be done to it.

Invariant: nothing is signalled that the cluster did not start: not a process that has ended, whose id may be another's.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from daskqueue.testing.nursery import Birth, Nursery

__all__ = ["Member", "Program"]


class Member:
    """A scheduler, or a worker, with its nanny if it has one."""

    def __init__(self, name: str, birth: Birth, nanny: bool, folder: Path, nursery: Nursery) -> None:
        self.name = name
        self.leader = birth.pid
        """The process that was started: the nanny, if there is one."""
        self.nanny = nanny
        self._birth = birth
        self._folder = folder
        self._nursery = nursery

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}, pid {self.leader}, {'alive' if self.alive else 'ended'}>"

    @property
    def alive(self) -> bool:
        """Whether the process that was started has not ended."""
        return not self._nursery.has_ended(self._birth)

    @property
    def pid(self) -> int | None:
        """The process that does the work, which is not always the same under a nanny. None if there is none now."""
        if not self.nanny:
            return self.leader if self.alive else None
        if self._nursery.is_over(self._birth):
            return None
        try:
            pid = int(self._born()[0])
            return pid if os.getpgid(pid) == self.leader else None
        except (FileNotFoundError, ProcessLookupError):
            return None

    @property
    def listens(self) -> str | None:
        """Where a worker listens, which is not where others call it if a proxy is between. None before it does."""
        try:
            return self._born()[1]
        except FileNotFoundError:
            return None

    def _born(self) -> list[str]:
        return (self._folder / f"{self.name}.worker").read_text().split()

    @property
    def log(self) -> str:
        """What it wrote to its standard output and error."""
        return (self._folder / f"{self.name}.log").read_text(errors="replace")

    # -- what is done to it

    def kill(self, *, nanny: bool = False) -> bool:
        """SIGKILL: nobody is told, nothing is finished. Its nanny brings it back, unless it is killed with it."""
        return self._signal(signal.SIGKILL, nanny)

    def freeze(self, *, nanny: bool = False) -> bool:
        """SIGSTOP: a machine that hangs. Its connections stay open and say nothing."""
        return self._signal(signal.SIGSTOP, nanny)

    def go_on(self, *, nanny: bool = False) -> bool:
        """SIGCONT: what was frozen goes on, and does not know that it was."""
        return self._signal(signal.SIGCONT, nanny)

    def terminate(self) -> bool:
        """SIGTERM to the process that was started, as batch systems do: it has time to leave."""
        return self.alive and _send(self.leader, signal.SIGTERM)

    def _signal(self, signum: int, whole: bool) -> bool:
        """Returns whether there was somebody."""
        if whole:
            if self._nursery.is_over(self._birth):  # that includes what a dead nanny left
                return False
            try:
                os.killpg(self.leader, signum)
            except ProcessLookupError:
                return False
            return True
        pid = self.pid
        return pid is not None and _send(pid, signum)

    def wait(self, timeout: float | None = None) -> int | None:
        """Until the process that was started has ended: its exit code, negative for a signal. None after `timeout`."""
        return self._nursery.wait(self._birth, timeout)


class Program(Member):
    """A function in a process of its own (`ProcessCluster.run`)."""

    def __init__(self, name: str, birth: Birth, folder: Path, nursery: Nursery) -> None:
        super().__init__(name, birth, False, folder, nursery)


def _send(pid: int, signum: int) -> bool:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return False
    return True
