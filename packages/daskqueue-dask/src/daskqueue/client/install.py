"""Registers the plugins on the cluster. The one module that imports both."""

from __future__ import annotations

from distributed import Client

from daskqueue.scheduler.plugin import DaskQueueScheduler
from daskqueue.worker.plugin import DaskQueueWorker
from daskqueue_core.errors import NotInstalled

__all__ = ["install"]

_ADVICE = "install daskqueue-dask (pip install daskqueue-dask) in the environment of the scheduler and of every worker"


async def install(client: Client) -> None:
    """Install daskqueue on the scheduler and on every worker, present and future; once for a cluster.

    To be awaited on the client's event loop, where a synchronous client too answers with awaitables.
    """
    for plugin, where in ((DaskQueueScheduler(), "the scheduler"), (DaskQueueWorker(), "a worker")):
        try:
            await client.register_plugin(plugin)
        except Exception as error:  # a worker's ImportError comes as a bare Exception with its text
            if isinstance(error, ImportError) or "ModuleNotFoundError" in str(error):
                raise NotInstalled(f"{where} cannot load daskqueue ({error}): {_ADVICE}") from error
            raise
