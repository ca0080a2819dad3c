"""A line to a mail server on which no wait is endless or goes unnoticed."""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

# How often a wait checks its deadline and whether we were told to stop; and how often it reports.
LOOK_SECONDS = 0.1
TELL_SECONDS = 1.0

READ = 65536
REPLY_MAX = 65536
REPLY = re.compile(rb"(\d{3})(?!\d)(-?)[ \t]*(.*)", re.DOTALL)

# The address where each host was last reached: another of its addresses may swallow everything sent to it.
reached: dict[str, Any] = {}

T = TypeVar("T")


class Reply(NamedTuple):
    code: int
    text: str


class Refused(Exception):
    """The server said no: 4xx or 5xx."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        super().__init__(f"{reply.code} {reply.text}")


class Deadline:
    """When one email ends its wait for its server: timeouts of single steps would add up without limit.

    `while_waiting` is called each second with the seconds it has waited so far.
    """

    def __init__(
        self, seconds: float, is_stopping: Callable[[], bool], while_waiting: Callable[[float], None] | None = None
    ) -> None:
        self.begun = time.monotonic()
        self.is_stopping = is_stopping
        self.while_waiting = while_waiting
        self.next_word = self.begun + TELL_SECONDS
        self.restart(seconds)

    def restart(self, seconds: float, when_stopping: float = 0) -> None:
        """Wait for `seconds` from now on, but only for `when_stopping` once we are told to stop."""
        self.ends_at = time.monotonic() + seconds
        self.when_stopping = when_stopping

    @contextmanager
    def at_most(self, seconds: float) -> Iterator[None]:
        former, self.ends_at = self.ends_at, min(self.ends_at, time.monotonic() + seconds)
        try:
            yield
        finally:
            self.ends_at = former

    def share(self, of: int) -> float:
        """Return the time left in seconds, divided by `of`."""
        return (self.ends_at - time.monotonic()) / of

    def wait(self, attempt: Callable[[float], T | None]) -> T:
        """Call `attempt` with the seconds it may take until it returns something, and return that.

        Raises TimeoutError.
        """
        while True:
            now = time.monotonic()
            if self.is_stopping():
                self.ends_at = min(self.ends_at, now + self.when_stopping)
            if now >= self.ends_at:
                # The answer may have arrived while this process was suspended.
                if (found := attempt(0)) is not None:
                    return found
                raise TimeoutError(
                    "we are stopping" if self.is_stopping() else f"no answer in {now - self.begun:.1f} s"
                )
            if now >= self.next_word:
                if self.while_waiting:
                    self.while_waiting(now - self.begun)
                self.next_word = time.monotonic() + TELL_SECONDS
            elif (found := attempt(min(LOOK_SECONDS, self.ends_at - now))) is not None:
                return found


class Line:
    """A connection: writes are complete, and replies are read one by one."""

    def __init__(self, connection: socket.socket, deadline: Deadline) -> None:
        self.socket = connection
        # That of the email being sent at this moment.
        self.deadline = deadline
        self.received = b""

    def encrypt(self, context: ssl.SSLContext, host: str) -> None:
        if self.received:
            # Anyone could have injected it before TLS began.
            raise OSError("the server continued in plain text")
        encrypted = context.wrap_socket(self.socket, server_hostname=host, do_handshake_on_connect=False)
        self.socket = encrypted
        self._until_done(encrypted.do_handshake)

    def write(self, said: bytes) -> None:
        """Raises Refused if the server said why before it hung up."""
        unsaid = memoryview(said)
        try:
            while unsaid:
                sent = self._until_done(partial(self.socket.send, unsaid), select.POLLOUT)
                unsaid = unsaid[sent:]
        except ConnectionError as error:
            try:
                raise Refused(self.read())
            except OSError:
                raise error from None

    def read(self) -> Reply:
        """Return the next reply. One that is cut off is an error: its first digits may not be its code."""
        texts: list[bytes] = []
        size = 0
        while True:
            line = self._read_line(REPLY_MAX - size)
            size += len(line)
            if not line.strip():
                continue
            found = REPLY.match(line)
            if not found:
                raise OSError("the server sent something that is not an SMTP reply")
            code, more, text = found.groups()
            texts.append(text.strip())
            if not more:
                return Reply(int(code), b"\n".join(texts).decode(errors="replace"))

    def _read_line(self, longest: int) -> bytes:
        while (end := self.received.find(b"\n") + 1) == 0 and len(self.received) < longest:
            more = self._until_done(partial(self.socket.recv, READ))
            if not more:
                raise ConnectionError("it hung up")
            self.received += more
        if not 0 < end <= longest:
            raise OSError("the server's reply is too long")
        line, self.received = self.received[:end], self.received[end:]
        return line

    def is_quiet(self) -> bool:
        """Return whether the server is still there, and has said nothing unasked, such as goodbye."""
        try:
            self.received += self.socket.recv(READ)
        except (BlockingIOError, ssl.SSLWantReadError):
            return not self.received
        except OSError:
            pass
        return False

    def close(self) -> None:
        self.socket.close()

    def _until_done(self, operation: Callable[[], T], event: int = select.POLLIN) -> T:
        while True:
            try:
                return operation()
            except ssl.SSLWantWriteError:
                wait_for(select.POLLOUT, self.socket, self.deadline)
            except ssl.SSLWantReadError:
                wait_for(select.POLLIN, self.socket, self.deadline)
            except BlockingIOError:
                wait_for(event, self.socket, self.deadline)


def connect(host: str, port: int, deadline: Deadline) -> socket.socket:
    """Return a connection to one of the host's addresses, each of which gets its share of the time. Raises OSError."""
    addresses = look_up(host, port, deadline)
    addresses.sort(key=lambda found: found[-1] != reached.get(host))
    troubles: list[tuple[str, OSError]] = []
    for tried, (family, kind, protocol, _name, address) in enumerate(addresses):
        try:
            with deadline.at_most(deadline.share(of=len(addresses) - tried)):
                connection = _connect(family, kind, protocol, address, deadline)
        except OSError as error:
            troubles.append((address[0], error))
        else:
            reached[host] = address
            return connection
    if len(troubles) == 1:
        raise troubles[0][1]
    raise OSError("; ".join(f"{address}: {error}" for address, error in troubles) or f"{host} has no address")


def _connect(family: int, kind: int, protocol: int, address: Any, deadline: Deadline) -> socket.socket:
    with ExitStack() as undo:
        connection = undo.enter_context(socket.socket(family, kind, protocol))
        connection.setblocking(False)  # noqa: FBT003 - its only argument
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trouble = connection.connect_ex(address)
        if trouble == errno.EINPROGRESS:
            wait_for(select.POLLOUT, connection, deadline)
            trouble = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if trouble:
            raise OSError(trouble, os.strerror(trouble))
        undo.pop_all()
    return connection


def wait_for(event: int, connection: socket.socket, deadline: Deadline) -> None:
    poll = select.poll()
    poll.register(connection, event)
    deadline.wait(lambda seconds: poll.poll(seconds * 1000) or None)


def look_up(host: str, port: int, deadline: Deadline) -> list[Any]:
    """Resolve a name in a separate thread: the system's resolver has no deadline."""
    answer: Future[list[Any]] = Future()

    def resolve() -> None:
        try:
            answer.set_result(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except (OSError, UnicodeError) as error:
            answer.set_exception(error if isinstance(error, OSError) else OSError(f"{host}: {error}"))

    try:
        threading.Thread(target=resolve, daemon=True).start()
    except RuntimeError as error:
        # No thread could be started: a problem of this machine, not of the email.
        raise OSError(str(error)) from error
    deadline.wait(lambda seconds: wait([answer], seconds).done or None)
    return answer.result()
