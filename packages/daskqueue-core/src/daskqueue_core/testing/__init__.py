"""What this package is tested with, for whoever builds on it."""

from daskqueue_core.testing.clock import ManualClock
from daskqueue_core.testing.conformance import QueueConformance
from daskqueue_core.testing.ledger_machine import ledger_machine
from daskqueue_core.testing.ledger_pair import LedgerPair
from daskqueue_core.testing.model import ModelLease, ModelLedger, ModelMessage
from daskqueue_core.testing.network import Chance, Fate, Message, Rule, SimNetwork
from daskqueue_core.testing.queue_machine import RecordedQueue, queue_machine
from daskqueue_core.testing.sim_client import SimCancelled, SimClient, SimFuture
from daskqueue_core.testing.sim_cluster import SimCluster, SimDirectory, SimWorker
from daskqueue_core.testing.sim_consumer import SimConsumer
from daskqueue_core.testing.sim_host import SimHost, SimQueue
from daskqueue_core.testing.sim_link import PoolGone, QueueReplaced, SimLink
from daskqueue_core.testing.sim_work import SimWork, Start
from daskqueue_core.testing.simulation import Cancelled, Promise, SimNode, Simulation, SimulationStuck, Task, Timer

__all__ = [
    "Cancelled",
    "Chance",
    "Fate",
    "LedgerPair",
    "ManualClock",
    "Message",
    "ModelLease",
    "ModelLedger",
    "ModelMessage",
    "PoolGone",
    "Promise",
    "QueueConformance",
    "QueueReplaced",
    "RecordedQueue",
    "Rule",
    "SimCancelled",
    "SimClient",
    "SimCluster",
    "SimConsumer",
    "SimDirectory",
    "SimFuture",
    "SimHost",
    "SimLink",
    "SimNetwork",
    "SimNode",
    "SimQueue",
    "SimWork",
    "SimWorker",
    "Simulation",
    "SimulationStuck",
    "Start",
    "Task",
    "Timer",
    "ledger_machine",
    "queue_machine",
]
