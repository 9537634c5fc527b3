"""A TCP proxy between two processes of a cluster: connections that break, and connections that say nothing more.

It copies bytes and knows no protocol, so TLS passes as well. Two threads a connection: made for tens of them.

Invariants: a connection is opened to the target before a byte is read from the caller, and refused to the caller if
that fails; a byte that was read before `stall` may arrive, none after.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

from distributed.comm import get_address_host_port

__all__ = ["Proxy"]

BLOCK: Final = 1 << 16

_NOT_SENT: Final = 0x894B  # SIOCOUTQNSD; TIOCOUTQ counts what was sent and is not yet acknowledged, too

_Pair = tuple[socket.socket, socket.socket]


class Proxy:
    """Listens at `address`, and passes on to `target`: an address of Dask's, or a function that gives it."""

    def __init__(self, target: str | Callable[[], str | None], host: str = "127.0.0.1") -> None:
        self._target = target
        self._listener = socket.create_server((host, 0))
        self.address = "tcp://{}:{}".format(*self._listener.getsockname())
        self._pairs: set[_Pair] = set()
        self._lock = threading.Lock()
        self._flowing = threading.Event()
        self._flowing.set()
        self._refusing = False
        self._closed = False
        self._accepting = self._thread(self._accept)

    @property
    def connections(self) -> int:
        """How many are open now."""
        with self._lock:
            return len(self._pairs)

    def drop(self, *, refuse: bool = False) -> int:
        """Reset all connections; returns how many. `refuse`: and each new one, until `restore`."""
        self._refusing = refuse
        with self._lock:
            pairs = list(self._pairs)
            self._pairs.clear()  # their pumps see it, and close nothing in peace
        for pair in pairs:
            for side in pair:
                _reset(side)
        return len(pairs)

    def stall(self) -> None:
        """Pass nothing on, until `restore`: connections stay open, new ones are accepted, nobody hears anything."""
        self._flowing.clear()

    def restore(self) -> None:
        """As at the beginning. What a stall held back arrives now."""
        self._refusing = False
        self._flowing.set()

    def close(self) -> None:
        """The end of it and of its connections."""
        self._closed = True
        self._flowing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        self._listener.close()
        self._accepting.join()
        self.drop(refuse=True)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- the threads

    def _thread(self, function: Callable[..., None], *arguments: Any) -> threading.Thread:
        thread = threading.Thread(target=function, args=arguments, name="daskqueue-proxy", daemon=True)
        thread.start()
        return thread

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                if self._closed:
                    return
                continue
            self._thread(self._connect, caller)

    def _connect(self, caller: socket.socket) -> None:
        target = self._target() if callable(self._target) else self._target
        try:
            if self._out_of_order() or target is None:
                raise ConnectionRefusedError
            callee = socket.create_connection(get_address_host_port(target), timeout=10)
        except OSError:
            _reset(caller)
            return
        for side in (caller, callee):
            side.settimeout(None)
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = (caller, callee)
        with self._lock:
            self._pairs.add(pair)
        if self._out_of_order():  # since it was asked, and this one was not among those that were dropped
            self.drop(refuse=True)
            return
        other = self._thread(self._pump, pair, callee, caller)
        self._pump(pair, caller, callee)
        other.join()
        self._part(pair)

    def _out_of_order(self) -> bool:
        return self._refusing or self._closed

    def _pump(self, pair: _Pair, source: socket.socket, sink: socket.socket) -> None:
        """One way, until it is closed; then the other side is told."""
        try:
            while True:
                self._flowing.wait()
                block = source.recv(BLOCK)
                self._flowing.wait()
                if pair not in self._pairs:
                    return
                if not block:
                    sink.shutdown(socket.SHUT_WR)
                    return
                sink.sendall(block)
        except OSError:
            if pair in self._pairs:
                for side in pair:
                    _reset(side)

    def _part(self, pair: _Pair) -> None:
        with self._lock:
            self._pairs.discard(pair)
        for side in pair:
            side.close()


def _reset(side: socket.socket) -> None:
    """Close so that the other end gets a reset, as from a host that has forgotten everything.

    Close alone wakes no thread that reads or writes here, and until then the connection stays. Shutting it down wakes
    them; but to shut down writing is a peaceful end to the other side, so only where a thread may hang in it.
    """
    with contextlib.suppress(OSError):
        side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        (unsent,) = struct.unpack("i", fcntl.ioctl(side, _NOT_SENT, bytes(4)))
        side.shutdown(socket.SHUT_RDWR if unsent else socket.SHUT_RD)
    side.close()
