"""What each worker of a `ProcessCluster` preloads: it writes down its process id and where it listens.

A nanny gives its worker a new process whenever one ends, and a worker behind a proxy tells nobody its real address.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from distributed import Nanny, Scheduler, Worker

__all__ = ["FOLDER", "dask_setup"]

FOLDER: Final = "DASKQUEUE_TESTING_FOLDER"


def dask_setup(server: Worker | Nanny | Scheduler) -> None:
    """Dask calls it before the worker registers with its scheduler."""
    if isinstance(server, Worker):
        assert server.listener is not None, "it listens before it preloads"
        path = Path(os.environ[FOLDER], f"{server.name}.worker")
        part = path.with_suffix(".part")
        part.write_text(f"{os.getpid()} {server.listener.listen_address}")
        os.replace(part, path)
