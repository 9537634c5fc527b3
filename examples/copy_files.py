"""Copy a directory tree with a consumer of your own: files are put as items, `process_item` copies one.

    python examples/copy_files.py SOURCE DESTINATION

I/O-bound work wants more calls at once than the workers have threads: `concurrency=16` for each consumer.
"""

import shutil
import sys
from pathlib import Path

from distributed import Client

from daskqueue import ConsumerBaseClass, ConsumerPool, QueuePool


class CopyConsumer(ConsumerBaseClass):
    """Copies one file, with its times, and makes its folder."""

    def process_item(self, item: tuple[str, str]) -> None:
        source, destination = map(Path, item)
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, destination)


def copy_tree(client: Client, source: Path, destination: Path) -> int:
    """Copy every file below `source`; returns how many."""
    files = [path for path in source.rglob("*") if path.is_file()]
    with QueuePool(client) as pool, ConsumerPool(client, pool, CopyConsumer, concurrency=16) as consumers:
        pool.put_many((str(path), str(destination / path.relative_to(source))) for path in files)
        consumers.join(progress=True)
        failed = sum(queue.failed for queue in pool.stats())
    if failed:
        raise RuntimeError(f"{failed} of {len(files)} files were not copied")
    return len(files)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as dask_client:
        print(f"{copy_tree(dask_client, Path(sys.argv[1]), Path(sys.argv[2])):,} files copied")
