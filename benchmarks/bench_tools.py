"""What the benchmarks measure with."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psutil

__all__ = ["Resident", "measure", "percentile", "rss", "share_of_core"]


def measure(
    benchmark: Any, run: Callable[[], Any], *, who: str, size: float, unit: str = "tasks/s", rounds: int = 5
) -> Any:
    """Run `rounds` times after one that does not count, and note what a round is."""
    benchmark.extra_info.update(who=who, size=size, unit=unit)
    return benchmark.pedantic(run, rounds=rounds, iterations=1, warmup_rounds=1)


def percentile(benchmark: Any, share: float) -> float:
    """Of the rounds measured, in seconds."""
    times = sorted(benchmark.stats.stats.data)
    return float(times[int(share * (len(times) - 1))])


def rss(processes: list[psutil.Process]) -> int:
    """Resident bytes of all."""
    return sum(process.memory_info().rss for process in processes)


def share_of_core(processes: list[psutil.Process], seconds: float) -> float:
    """CPU of these processes over a window, in percent of a core."""

    def used() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    before = used()
    threading.Event().wait(seconds)
    return 100 * (used() - before) / seconds


class Resident:
    """Watches the resident size of processes from a thread: `{name: "before, at most"}` in MiB."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._stop = threading.Event()
        self.peaks: dict[str, str] = {}

    def __enter__(self) -> dict[str, str]:
        self._before = {name: process.memory_info().rss for name, process in self._processes.items()}
        self._most = dict(self._before)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self.peaks

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            for name, process in self._processes.items():
                self._most[name] = max(self._most[name], process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for name, most in self._most.items():
            self.peaks[name] = f"{self._before[name] / 2**20:.0f}, {most / 2**20:.0f}"
