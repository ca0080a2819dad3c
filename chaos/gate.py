"""A gate in front of a server: open, held like a network that swallows everything, or refusing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from harness.proxies import listening


class Gate:
    """Bytes sent while it is held arrive when it opens again, like late packets."""

    def __init__(self, server: int) -> None:
        self.server = server
        self.port = 0
        self.passing = threading.Event()
        self.passing.set()
        self.refusing = False
        self.lines: set[socket.socket] = set()

    def hold(self) -> None:
        self.passing.clear()

    def refuse(self) -> None:
        self.refusing = True
        for line in list(self.lines):
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def open(self) -> None:
        self.refusing = False
        self.passing.set()

    def handle(self, outside: socket.socket) -> None:
        with outside:
            self.passing.wait()
            if self.refusing:
                return
            with socket.create_connection(("127.0.0.1", self.server)) as inside:
                self.lines |= {outside, inside}
                back = threading.Thread(target=self._pump, args=[inside, outside], daemon=True)
                back.start()
                self._pump(outside, inside)
                back.join()
                self.lines -= {outside, inside}

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while chunk := source.recv(65536):
                self.passing.wait()
                sink.sendall(chunk)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def gate(server: int) -> Iterator[Gate]:
    """Put a gate, with its own port, in front of this port."""
    door = Gate(server)
    with listening(door.handle) as door.port:
        yield door
        door.open()
