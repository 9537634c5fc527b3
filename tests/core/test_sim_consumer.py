"""A consumer that shrinks to nothing and grows again, and what it says while it waits."""

from daskqueue_core.testing.sim_cluster import SimCluster


def test_an_idle_consumer_says_nothing() -> None:
    """A request that is parked at the queue needs no heartbeat, a lease does."""
    cluster = SimCluster()
    cluster.worker(0)
    cluster.worker(1)
    client = cluster.client()
    cluster.start()
    beats = cluster.network.watch("heartbeat")
    cluster.run(seconds=60.0)
    assert not beats.hits
    (future,) = client.submit(seconds=10.0, value=1)
    assert cluster.finish([future]) == [1]
    assert len(beats.hits) >= 8
    cluster.run(seconds=30.0)  # its report rode on a request, which is answered after 20 s
    said = len(beats.hits)
    cluster.run(seconds=60.0)
    assert len(beats.hits) == said


def test_a_consumer_moves_to_a_worker_that_joins() -> None:
    """It gives back what it has not begun; nothing runs twice, and the rest runs on both."""
    cluster = SimCluster(n_consumers=2)
    cluster.worker(1)
    client = cluster.client()
    cluster.start()
    futures = client.submit(20, 1.0, value=1)
    cluster.run(lambda: len(cluster.starts) == 2)
    cluster.worker(1)
    assert cluster.finish(futures, seconds=12.0) == [1] * 20
    assert {start.worker for starts in cluster.starts.values() for start in starts} == {"w0", "w1"}
    assert not cluster.reruns


def test_no_consumers_for_a_while() -> None:
    """With none it leases nothing and holds only what runs; with one again it goes on."""
    cluster = SimCluster()
    cluster.worker(0)
    worker = cluster.worker(2)
    client = cluster.client()
    cluster.start()
    futures = client.submit(6, 1.0, value=1)
    cluster.run(lambda: len(cluster.starts) == 2)
    spec = {"ttl": 300 * 10**9, "early_ack": False}
    worker.consumer.resize(0, spec)
    cluster.run(seconds=30.0)
    stats = cluster.queue().stats()
    assert (stats.finished, stats.delivered, stats.ready) == (2, 0, 4)
    worker.consumer.resize(2, spec)
    assert cluster.finish(futures, seconds=5.0) == [1] * 6
    assert not cluster.reruns
