"""What may stand between a program and its server: TLS, a black hole, a line that breaks."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Handler = Callable[[socket.socket], None]


@contextmanager
def listening(handle: Handler) -> Iterator[int]:
    """Accept connections on a free port and give each to `handle`, in a thread of its own; yields the port."""
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
    """Take everything, answer nothing."""
    while connection.recv(65536):
        pass


def hang_up(connection: socket.socket) -> None:
    """Die in the middle of the first request."""
    connection.recv(65536)
    connection.close()


def tls(context: ssl.SSLContext, port: int) -> Handler:
    """Speak TLS with whoever connects, and pass what they say on to this port."""

    def handle(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as outside, socket.socket() as inside:
            inside.connect(("127.0.0.1", port))
            back = threading.Thread(target=_quietly_pump, args=[inside, outside], daemon=True)
            back.start()
            _quietly_pump(outside, inside)
            back.join()

    return handle


def pooler(host: str, port: int, lost: threading.Event) -> Handler:
    """Pass on what is said to the PostgreSQL there; once it is lost, let people log in, and hang up when they ask."""

    def handle(connection: socket.socket) -> None:
        with connection, socket.socket(socket.AF_UNIX if host.startswith("/") else socket.AF_INET) as inside:
            inside.connect(f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port))
            threading.Thread(target=_quietly_pump, args=[inside, connection], daemon=True).start()
            # A query, or the parse or the parameters of a statement.
            while (chunk := connection.recv(65536)) and not (lost.is_set() and chunk[:1] in {b"Q", b"P", b"B"}):
                inside.sendall(chunk)
            connection.shutdown(socket.SHUT_RDWR)

    return handle


def _quietly_pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while chunk := source.recv(65536):
            sink.sendall(chunk)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)
