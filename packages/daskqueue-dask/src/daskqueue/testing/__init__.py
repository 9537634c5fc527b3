"""What the adapter is tested with, for the tests of whoever builds on it: real processes, and real faults.

A cluster of processes (`ProcessCluster`) whose members are killed, frozen and terminated by what they do; faults in the
middle of a task (`Striking`); connections that break or stall (`Proxy`); and a witness outside of it all (`Oracle`).
`docs/testing.md` shows them at work. Linux and its relatives: they need fork and signals.
"""

from daskqueue.testing.member import Member, Program
from daskqueue.testing.nursery import Nursery
from daskqueue.testing.oracle import Oracle, Striking
from daskqueue.testing.process_cluster import ProcessCluster, Role
from daskqueue.testing.proxy import Proxy

__all__ = ["Member", "Nursery", "Oracle", "ProcessCluster", "Program", "Proxy", "Role", "Striking"]
