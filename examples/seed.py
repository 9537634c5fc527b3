"""The main job in the two steps of daskqueue 0.2.0: queues, then consumers; every name still works."""

from distributed import Client

from daskqueue import ConsumerPool, QueuePool
from daskqueue.utils import logger


def process_item() -> int:
    """Some work in pure Python, which holds the GIL: one thread a worker."""
    return sum(i * i for i in range(10**5))


if __name__ == "__main__":
    client = Client(n_workers=5, threads_per_worker=1, direct_to_workers=True)
    queue_pool = QueuePool(client, n_queues=1)
    consumer_pool = ConsumerPool(client, queue_pool, n_consumers=5)
    consumer_pool.start()
    for _ in range(5):
        queue_pool.submit(process_item)
    consumer_pool.join()
    results = consumer_pool.results()
    logger.info("results: %s", results)
    print(f"{len(results)} results: {sorted(set(results.values()))}")
