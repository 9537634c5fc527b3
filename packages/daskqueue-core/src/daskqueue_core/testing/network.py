"""A simulated network: requests and answers that are slow, lost, doubled, or overtaken, by rule or by chance.

It is as unkind as TCP with retries, no more: a message that is dropped breaks its connection, which the caller
notices, and whoever repeats a call makes the copy. Nothing is lost in silence, except what went to a dead machine.

A `Rule` hits chosen messages, and remembers which, so that a test can show that its scenario took place; the first
one that hits decides. One without a fate only watches. `Chance` hits any, with the random numbers handed in, where no
rule decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, Final, NamedTuple

from daskqueue_core.testing.simulation import Promise, SimNode, Simulation

__all__ = ["LATENCY_S", "Chance", "Fate", "Message", "Rule", "SimNetwork"]

LATENCY_S: Final = 0.0005
DEAD_AFTER_S: Final = 30.0


class Message(NamedTuple):
    """Half of a call."""

    kind: str  # "request" or "answer"
    op: str
    source: str
    target: str
    content: Any
    sent_at: float


class Fate(NamedTuple):
    """What becomes of a message."""

    delay: float = 0.0
    drop: bool = False
    copies: int = 1
    copy_delay: float = 0.0  # of the copies, to the one before


@dataclass
class Rule:
    """What becomes of the messages that match: all of them, or `times`, from the `nth` on (the first is 1).

    None matches anything; `where` sees the content.
    """

    fate: Fate | None
    op: str | None = None
    kind: str = "request"
    source: str | None = None
    target: str | None = None
    where: Callable[[Any], bool] | None = None
    nth: int = 1
    times: int | None = 1
    hits: list[Message] = field(default_factory=list)
    _seen: int = 0

    def judge(self, message: Message) -> Fate | None:
        """Its fate, if this rule has one for it; remembers it if it hits."""
        if (
            message.kind != self.kind
            or self.op not in (None, message.op)
            or self.source not in (None, message.source)
            or self.target not in (None, message.target)
            or (self.where is not None and not self.where(message.content))
        ):
            return None
        self._seen += 1
        if self._seen < self.nth or (self.times is not None and len(self.hits) >= self.times):
            return None
        self.hits.append(message)
        return self.fate


@dataclass
class Chance:
    """Any message may be lost, come twice, or be slow, with these probabilities."""

    random: Random
    drop: float = 0.0
    twice: float = 0.0
    slow: float = 0.0
    slowest_s: float = 1.0

    def judge(self, message: Message) -> Fate | None:
        """Throw the dice."""
        random = self.random
        delay = random.uniform(0, self.slowest_s) if random.random() < self.slow else random.uniform(0, LATENCY_S)
        copies = 2 if random.random() < self.twice else 1
        return Fate(delay, random.random() < self.drop, copies, random.uniform(0, self.slowest_s))


class _Call:
    __slots__ = ("answer", "closed", "source", "target")

    def __init__(self, source: SimNode, target: SimNode) -> None:
        self.source = source
        self.target = target
        self.answer: Promise[Any] = Promise()
        self.closed = False


class SimNetwork:
    """Carries calls between nodes."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.nodes: dict[str, SimNode] = {}
        self.rules: list[Rule] = []
        self.chance: Chance | None = None
        self.sent = 0
        self._calls: dict[_Call, None] = {}

    def add(self, node: SimNode) -> None:
        """A node is reachable."""
        self.nodes[node.address] = node

    def rule(
        self,
        op: str | None = None,
        kind: str = "request",
        *,
        drop: bool = False,
        delay: float = 0.0,
        copies: int = 1,
        copy_delay: float = 0.0,
        source: str | None = None,
        target: str | None = None,
        where: Callable[[Any], bool] | None = None,
        nth: int = 1,
        times: int | None = 1,
    ) -> Rule:
        """Plan the fate of some messages."""
        fate = Fate(delay, drop, copies, copy_delay)
        rule = Rule(fate, op, kind, source, target, where, nth, times)
        self.rules.append(rule)
        return rule

    def watch(
        self,
        op: str | None = None,
        kind: str = "request",
        *,
        source: str | None = None,
        target: str | None = None,
        where: Callable[[Any], bool] | None = None,
    ) -> Rule:
        """Remember all messages that match, and leave them alone."""
        rule = Rule(None, op, kind, source, target, where, times=None)
        self.rules.insert(0, rule)
        return rule

    async def call(self, source: SimNode, address: str, op: str, content: dict[str, Any]) -> Any:
        """Call a node. `ConnectionError` if it cannot be reached, or the connection breaks before the answer."""
        target = self.nodes.get(address)
        if target is None or not target.alive:
            await source.sleep(LATENCY_S)
            raise ConnectionError(f"{address} refuses the connection")
        call = _Call(source, target)
        self._calls[call] = None
        self._send(Message("request", op, source.address, address, content, self.simulation.clock.seconds), call)
        try:
            return await call.answer
        finally:
            call.closed = True
            self._calls.pop(call, None)

    def _send(self, message: Message, call: _Call) -> None:
        self.sent += 1
        fate = self._fate(message)
        if fate.drop:
            self.simulation.later(LATENCY_S + fate.delay, call.source, partial(_break, call, f"{message.op} was lost"))
            return
        arrive: Callable[[], None]
        if message.kind == "request":
            arrive = partial(self._arrived, message, call)
        else:
            arrive = partial(call.answer.resolve, message.content)
        for copy in range(fate.copies):
            delay = LATENCY_S + fate.delay + copy * fate.copy_delay
            self.simulation.later(delay, call.target if message.kind == "request" else call.source, arrive)

    def _fate(self, message: Message) -> Fate:
        for rule in self.rules:
            fate = rule.judge(message)
            if fate is not None:
                return fate
        return (self.chance.judge(message) if self.chance is not None else None) or Fate()

    def _arrived(self, message: Message, call: _Call) -> None:
        call.target.spawn(self._serve, message, call)

    async def _serve(self, message: Message, call: _Call) -> None:
        answer = await call.target.serve(message.op, message.content, lambda: not call.closed)
        now = self.simulation.clock.seconds
        self._send(Message("answer", message.op, message.target, message.source, answer, now), call)

    # -- disasters

    def kill(self, node: SimNode, *, silent: bool = False) -> None:
        """A process ends at once. `silent`: its machine does, so that its peers notice late."""
        theirs = [call for call in self._calls if call.target is node]
        ours = [call for call in self._calls if call.source is node]
        node.die()
        for call in theirs:
            notice = partial(_break, call, f"{node.address} is gone")
            self.simulation.later(DEAD_AFTER_S if silent else LATENCY_S, call.source, notice)
        if silent:  # its connections look as if they lived
            for call in ours:
                call.closed = False

    def disconnect(self, node: SimNode) -> None:
        """All connections that `node` made break."""
        for call in list(self._calls):
            if call.source is node:
                call.closed = True
                _break(call, f"the connections of {node.address} broke")


def _break(call: _Call, why: str) -> None:
    call.answer.fail(ConnectionError(why))
