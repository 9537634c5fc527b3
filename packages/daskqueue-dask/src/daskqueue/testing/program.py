"""The process of a program: a function with a Dask client of its own, which can be killed like any other member."""

from __future__ import annotations

import pickle
import traceback
from pathlib import Path

from distributed import Client

__all__ = ["main"]


def main(path: str, scheduler: str) -> None:
    """Run what is pickled in the file `path`; exit code 1 after an exception, whose traceback is in the log."""
    function, arguments = pickle.loads(Path(path).read_bytes())
    try:
        with Client(scheduler) as client:
            function(client, *arguments)
    except BaseException:
        traceback.print_exc()
        raise SystemExit(1) from None
