"""Local durable logs and queues for daskqueue, without Dask.

Empty until its store lands: today this package carries its version and nothing else, so that the three
distributions have their final shape and the import contract (daskqueue -> daskqueue_storage -> daskqueue_core) is
checked from the start.
"""

from daskqueue_storage.__about__ import __version__

__all__ = ["__version__"]
