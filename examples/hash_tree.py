"""Hash every file of a directory tree on a Dask cluster, and check the digest against a serial run.

    python examples/hash_tree.py [DIRECTORY]

Default: the library of the Python interpreter that runs this. A cluster of two local workers is started for it.
"""

import hashlib
import sys
import sysconfig
import time
from pathlib import Path

from distributed import Client
from tqdm.auto import tqdm

from daskqueue import ConsumerPool, QueuePool


def hash_file(path: str) -> tuple[int, str]:
    """Size and SHA-256 of a file."""
    digest = hashlib.sha256()
    size = 0
    with open(path, "rb") as file:
        # 64 KiB: under a nanny malloc gives larger buffers back to the system each time, which costs more than reading
        while chunk := file.read(1 << 16):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def digest_of(hashes: list[tuple[int, str]]) -> str:
    """One digest for all."""
    return hashlib.sha256("".join(digest for _, digest in hashes).encode()).hexdigest()


def main() -> int:
    """Hash the tree twice and compare."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else sysconfig.get_path("stdlib"))
    files = sorted(str(path) for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    print(f"{len(files):,} files below {root}")

    with Client(n_workers=2, threads_per_worker=2, dashboard_address=None) as client:
        with QueuePool(client) as pool, ConsumerPool(client, pool):
            start = time.perf_counter()
            hashes = list(tqdm(pool.map(hash_file, files), total=len(files), unit="file"))
            seconds = time.perf_counter() - start

    size = sum(size for size, _ in hashes)
    print(f"queue : {len(files):,} files, {size:,} bytes, {len(files) / seconds:,.0f} tasks/s, {seconds:.2f} s")
    start = time.perf_counter()
    serial = [hash_file(path) for path in files]
    print(f"serial: {time.perf_counter() - start:.2f} s")
    same = digest_of(hashes) == digest_of(serial)
    print(f"digest {digest_of(hashes)} {'equals' if same else 'DIFFERS FROM'} the serial run's")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
