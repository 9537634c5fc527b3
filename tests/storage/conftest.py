"""What the store's tests share: how much is tried, counts of what was tried, and the killing of children.

DASKQUEUE_STORAGE_ROUNDS multiplies rounds and seeds: 1 if it is not set, 35 in `nox -s storage_full`.

Counted for the summary at the end of a run: crash states, which are disks made by `SimFiles.crash` (each is opened at
least once by the test that made it), and children killed with SIGKILL.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings

from daskqueue_storage.testing import SimFiles

# For `scripts/planted_bugs.py`: that there is a failure is all it wants to know, not the shortest way to it.
settings.register_profile("planted", settings.get_profile("ci"), phases=[Phase.explicit, Phase.generate])

_tally = {"crash states": 0, "kills": 0}


@pytest.fixture(scope="session")
def rounds() -> int:
    """How often what is random is tried."""
    return int(os.environ.get("DASKQUEUE_STORAGE_ROUNDS", "1"))


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that other users may enter: pytest's own are shut, again at every run that begins beside this one."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def kill() -> Callable[[subprocess.Popen[Any]], None]:
    """Ends a child as the kernel does when memory is short."""

    def kill(child: subprocess.Popen[Any]) -> None:
        child.send_signal(signal.SIGKILL)
        _tally["kills"] += 1

    return kill


@pytest.fixture(autouse=True, scope="session")
def _counted_crashes() -> Iterator[None]:
    crash = SimFiles.crash

    @wraps(crash)
    def counted(self: SimFiles, mode: str, seed: int = 0) -> SimFiles:
        _tally["crash states"] += 1
        return crash(self, mode, seed)

    SimFiles.crash = counted  # type: ignore[method-assign]
    yield
    SimFiles.crash = crash  # type: ignore[method-assign]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how much was tried."""
    if any(_tally.values()):
        tried = ", ".join(f"{count:,} {what}" for what, count in _tally.items())
        terminalreporter.write_line(f"storage: {tried}")
