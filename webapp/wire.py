"""smtplib's client, whose name look-up and connecting end at a deadline, and whose line can be cut at any time."""

from __future__ import annotations

import queue
import smtplib
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

LINE_MAX = 8192

# How often the connections in use are looked at.
WATCH_SECONDS = 0.1

# What is left when nothing is: a timeout of 0 would mean not to wait at all.
MOMENT = 0.001


class Plain(smtplib.SMTP):
    """A conversation without encryption, or with STARTTLS."""

    deadline: float
    sock: Any
    file: Any
    # A second handle on the connection: TLS takes the first one over while it shakes hands.
    line: socket.socket | None = None

    def _get_socket(self, host: str, port: int, _timeout: float) -> socket.socket:
        addresses = look_up(host, port, self._time_left)
        for family, kind, protocol, _name, address in addresses:
            connection = socket.socket(family, kind, protocol)
            self._hold(connection)
            try:
                connection.settimeout(self._time_left())
                connection.connect(address)
            except OSError:
                connection.close()
                if address == addresses[-1][-1]:
                    raise
            else:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                # It may be kept for other mails, which have deadlines of their own.
                connection.settimeout(self.timeout)
                return connection
        raise OSError(f"{host} has no address")

    def getreply(self) -> tuple[int, bytes]:
        """Smtplib's own, but a reply that breaks off is none: smtplib would take its first digits for a code."""
        if self.file is None:
            self.file = self.sock.makefile("rb")
        texts: list[bytes] = []
        while True:
            try:
                line = self.file.readline(LINE_MAX)
            except OSError as error:
                self.close()
                raise smtplib.SMTPServerDisconnected(f"the connection broke: {error}") from error
            if not line.endswith(b"\n") or not line[:3].isdigit():
                self.close()
                raise smtplib.SMTPServerDisconnected("the connection ended" if not line else "that was no reply")
            texts.append(line[4:].strip())
            if line[3:4] != b"-":
                return int(line[:3]), b"\n".join(texts)

    def cut(self) -> None:
        """End the connection, from any thread: whoever waits for it gets an error at once."""
        self.deadline = min(self.deadline, time.monotonic())
        line = self.line
        if line is not None:
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def _time_left(self) -> float:
        return max(MOMENT, self.deadline - time.monotonic())

    def _hold(self, connection: socket.socket | None) -> None:
        """Let cut() reach this connection, and no longer the one before."""
        line, self.line = self.line, connection and connection.dup()
        if line is not None:
            line.close()

    def close(self) -> None:
        super().close()
        self._hold(None)


class Encrypted(smtplib.SMTP_SSL, Plain):
    """A conversation with TLS from the first byte on."""


class Late(Protocol):
    deadline: float

    def cut(self) -> None: ...


L = TypeVar("L", bound=Late)


class Watchdog(Generic[L]):
    """Cuts what is still in use when its deadline is over.

    Timeouts of single reads add up without end against a server that drips.
    """

    def __init__(self) -> None:
        self.watched: set[L] = set()
        self.has_work = threading.Event()
        self.lock = threading.Lock()
        self.thread: threading.Thread | None = None

    def add(self, used: L) -> None:
        self.watched.add(used)
        self.has_work.set()
        with self.lock:
            # Begun when it is needed, and again in a process that was forked off.
            if self.thread is None or not self.thread.is_alive():
                self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
                self.thread.start()

    def discard(self, used: L) -> None:
        self.watched.discard(used)

    def _watch(self) -> None:
        while True:
            self.has_work.clear()
            for used in list(self.watched):
                if time.monotonic() >= used.deadline:
                    used.cut()
            if self.watched:
                time.sleep(WATCH_SECONDS)
            else:
                self.has_work.wait()


def look_up(host: str, port: int, time_left: Callable[[], float]) -> list[Any]:
    """Resolve a name while time is left, which may end at any moment: the system's resolver knows no deadline."""
    answers: queue.Queue[list[Any] | OSError] = queue.Queue()

    def resolve() -> None:
        try:
            answers.put(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except OSError as error:
            answers.put(error)

    resolving = threading.Thread(target=resolve, daemon=True)
    resolving.start()
    while resolving.is_alive() and time_left() > MOMENT:
        resolving.join(min(WATCH_SECONDS, time_left()))
    try:
        answer = answers.get_nowait()
    except queue.Empty:
        raise TimeoutError(f"looking up {host} took too long") from None
    if isinstance(answer, OSError):
        raise answer
    return answer
