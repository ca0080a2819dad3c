"""Proxies between a program and its server: TLS, a black hole, a line that breaks."""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Handler = Callable[[socket.socket], None]


@contextmanager
def listening(handle: Handler) -> Iterator[int]:
    """Accept connections on a free port and pass each to `handle`, in its own thread; yield the port."""
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    accepted.append(connection)
                    threading.Thread(target=_quietly, args=[handle, connection], daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in accepted:
        connection.close()


def _quietly(handle: Handler, connection: socket.socket) -> None:
    with suppress(OSError):
        handle(connection)


def black_hole(connection: socket.socket) -> None:
    """Read everything, answer nothing."""
    while connection.recv(65536):
        pass


def hang_up(connection: socket.socket) -> None:
    """Die in the middle of the first request."""
    connection.recv(65536)
    connection.close()


def tls(context: ssl.SSLContext, port: int) -> Handler:
    """Speak TLS with the client, and forward to this port."""

    def handle(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as outside, socket.socket() as inside:
            inside.connect(("127.0.0.1", port))
            back = threading.Thread(target=_quietly_pump, args=[inside, outside], daemon=True)
            back.start()
            _quietly_pump(outside, inside)
            back.join()

    return handle


def pooler(host: str, port: int, lost: threading.Event) -> Handler:
    """Forward to the PostgreSQL there, with a backend number of its own.

    Once it is `lost`, still let clients log in, but hang up at the first query.
    """

    def handle(connection: socket.socket) -> None:
        with connection, socket.socket(socket.AF_UNIX if host.startswith("/") else socket.AF_INET) as inside:
            inside.connect(f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port))
            threading.Thread(target=_greet_for, args=[inside, connection], daemon=True).start()
            # Query, Parse or Bind.
            while (chunk := connection.recv(65536)) and not (lost.is_set() and chunk[:1] in {b"Q", b"P", b"B"}):
                inside.sendall(chunk)
            connection.shutdown(socket.SHUT_RDWR)

    return handle


def _greet_for(server: socket.socket, client: socket.socket) -> None:
    """Name another process to the client than the server does, with another key to cancel by."""
    greeted = 0
    while not greeted and (chunk := server.recv(65536)):
        greeting, greeted = re.subn(rb"(?s)(K\x00\x00\x00\x0c).{8}", rb"\g<1>otherkey", chunk)
        client.sendall(greeting)
    _quietly_pump(server, client)


def _quietly_pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while chunk := source.recv(65536):
            sink.sendall(chunk)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)
