"""A real SMTP server that answers as told, and keeps a ledger of what it accepted."""

from __future__ import annotations

import base64
import email
import hmac
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.policy import default
from types import TracebackType
from typing import Self

# The steps at which it can be told to do something else:
# connect, greeting, EHLO, STARTTLS, AUTH, MAIL, RCPT, DATA, content (before the final dot is read),
# dot (the email is not in the ledger yet), answer (it is), RSET, NOOP, QUIT.
Step = str


@dataclass
class Mail:
    """An accepted email: it is in the ledger before the server says so."""

    sender: str
    recipients: list[str]
    content: bytes
    at: float = field(default_factory=time.monotonic)
    # Whether the server could confirm it.
    is_answered: bool = False

    @property
    def message(self) -> EmailMessage:
        message = email.message_from_bytes(self.content, policy=default)
        assert isinstance(message, EmailMessage)
        return message

    @property
    def message_id(self) -> str:
        return str(self.message["Message-ID"])

    @property
    def text(self) -> str:
        part = self.message.get_body(("plain",))
        assert part is not None
        return str(part.get_content())

    @property
    def html(self) -> str:
        part = self.message.get_body(("html",))
        assert part is not None
        return str(part.get_content())

    @property
    def link(self) -> str:
        """The only link in the text part."""
        (link,) = re.findall(r"https?://\S+", self.text)
        return str(link)

    @property
    def code(self) -> str:
        """The digits to type instead of following the link."""
        (code,) = re.findall(r"\b\d{3} \d{3}\b", self.text)
        return str(code).replace(" ", "")


class Dropped(Exception):
    """Close the connection without a word."""


# What to do at a step instead: a reply (bytes are sent as they are), or a function of the connection that returns a
# reply or None.
Answer = str | bytes
Action = Answer | Callable[["Connection"], Answer | None]


def drop(_connection: Connection) -> None:
    """Close the connection."""
    raise Dropped


def hang(connection: Connection) -> None:
    """Say nothing until the other side gives up, or the server ends."""
    connection.server.stopping.wait(60)
    raise Dropped


def for_recipient(address: str, action: Action) -> Action:
    """Act only on emails to this address, at RCPT or later."""

    def act(connection: Connection) -> Answer | None:
        if address not in connection.recipients:
            return None
        return action(connection) if callable(action) else action

    return act


def drip(connection: Connection) -> None:
    """Send one byte every quarter second: no single read ever times out."""
    for _ in range(4 * 60):
        if connection.server.stopping.wait(0.25):
            break
        connection.socket.sendall(b"2")
    raise Dropped


class Server:
    """`actions`: what to do at each step; without any, the server works.

    `password`: AUTH is required, with this password. `tls`: STARTTLS is required, with this context.
    `ways`: the AUTH mechanisms. `limit`: connections beyond it get a 421.
    """

    def __init__(
        self,
        *,
        password: str | None = None,
        tls: ssl.SSLContext | None = None,
        ways: Sequence[str] = ("PLAIN",),
        limit: int | None = None,
    ) -> None:
        self.mails: list[Mail] = []
        # The received parts of emails without a final dot.
        self.unfinished: list[bytes] = []
        self.connections = 0
        self.actions: dict[Step, Action] = {}
        self.password = password
        self.tls = tls
        self.ways = ways
        self.limit = limit
        # How many connections the limit refused.
        self.turned_away = 0
        self.is_pipelining = True
        # Whether AUTH accepts an initial response.
        self.hears_initial = True
        # Every command from clients.
        self.heard: list[str] = []
        self.arrived = threading.Condition()
        self.stopping = threading.Event()
        self.open: set[socket.socket] = set()
        self.port = 0
        # Bound to the port of a stopped server.
        self.kept = socket.socket()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.kept.close()

    def start(self) -> None:
        self.stopping = threading.Event()
        self.kept.close()
        self.listener = socket.create_server(("127.0.0.1", self.port), backlog=200)
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._accept, args=[self.listener], daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Refuse new connections, and break open ones. No other test gets its port, and answers for it."""
        if self.stopping.is_set():
            return
        self.stopping.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.kept = socket.socket()
        self.kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.kept.bind(("127.0.0.1", self.port))
        self.thread.join()
        self.break_connections()

    def break_connections(self) -> None:
        for connection in list(self.open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.connections += 1
                self.open.add(connection)
                threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, accepted: socket.socket) -> None:
        connection = Connection(self, accepted)
        try:
            with suppress(OSError, Dropped):
                connection.converse()
        finally:
            self.open.discard(accepted)
            connection.file.close()
            connection.socket.close()

    def accept(self, mail: Mail) -> None:
        with self.arrived:
            self.mails.append(mail)
            self.arrived.notify_all()

    def to(self, address: str) -> list[Mail]:
        return [mail for mail in list(self.mails) if address in mail.recipients]

    def wait_for(self, address: str, *, seconds: float = 30, count: int = 1) -> Mail:
        """Return the newest email to this address, once there are `count`."""
        deadline = time.monotonic() + seconds
        with self.arrived:
            while len(self.to(address)) < count:
                if not self.arrived.wait(max(0, deadline - time.monotonic())):
                    raise AssertionError(f"no mail to {address} within {seconds} s")
        return self.to(address)[-1]


class Connection:
    def __init__(self, server: Server, connection: socket.socket) -> None:
        self.server = server
        self.socket = connection
        self.file = connection.makefile("rb")
        self.sender = ""
        self.recipients: list[str] = []
        self.is_signed_in = False

    def converse(self) -> None:
        if self.server.limit is not None and len(self.server.open) > self.server.limit:
            self.server.turned_away += 1
            self.send("421 4.7.0 mail.test Error: too many connections from 127.0.0.1")
        self.act("connect")
        self.reply("greeting", "220 mail.test ready")
        while line := self.file.readline():
            self.server.heard.append(line.decode(errors="replace").strip())
            command, _, rest = line.decode(errors="replace").strip().partition(" ")
            answer = getattr(self, f"on_{command.lower()}", None)
            if answer is None:
                self.send("502 unknown command")
            else:
                answer(rest)

    def act(self, step: Step) -> Answer | None:
        """Do what the server was told to do at this step; return the reply to send instead, if any."""
        action = self.server.actions.get(step)
        return action(self) if callable(action) else action

    def reply(self, step: Step, usual: str) -> bool:
        """Send a reply; return whether it was the usual one."""
        unusual = self.act(step)
        self.send(unusual or usual)
        return unusual is None

    def send(self, line: Answer) -> None:
        said = line if isinstance(line, bytes) else line.encode() + b"\r\n"
        self.socket.sendall(said)
        if said.startswith(b"421"):
            raise Dropped

    def ask(self, challenge: bytes) -> bytes:
        self.send(b"334 " + base64.b64encode(challenge) + b"\r\n")
        return base64.b64decode(self.file.readline())

    def heard_already(self) -> bytes:
        """Return what the client sent ahead of our answers, without waiting for more."""
        self.socket.settimeout(0)
        heard = self.file.peek()
        self.socket.settimeout(None)
        return heard

    def on_ehlo(self, _rest: str) -> None:
        offers = ["mail.test", "8BITMIME", *(["PIPELINING"] if self.server.is_pipelining else [])]
        if self.server.tls and not isinstance(self.socket, ssl.SSLSocket):
            offers.append("STARTTLS")
        if self.server.password and (not self.server.tls or isinstance(self.socket, ssl.SSLSocket)):
            offers.append(f"AUTH {' '.join(self.server.ways)}")
        lines = [f"250-{offer}" for offer in offers[:-1]] + [f"250 {offers[-1]}"]
        self.reply("EHLO", "\r\n".join(lines))

    def on_helo(self, _rest: str) -> None:
        self.reply("HELO", "250 mail.test")

    def on_starttls(self, _rest: str) -> None:
        assert self.server.tls
        if self.reply("STARTTLS", "220 go ahead"):
            self.socket = self.server.tls.wrap_socket(self.socket, server_side=True)
            self.file = self.socket.makefile("rb")

    def on_auth(self, rest: str) -> None:
        way, _, initial = rest.partition(" ")
        password = (self.server.password or "").encode()
        if way not in self.server.ways:
            self.send("504 5.5.4 unknown mechanism")
            return
        if way == "LOGIN":
            if initial:
                self.send("501 5.5.2 I ask for the name")
                return
            self.ask(b"Username:")
            is_right = self.ask(b"Password:") == password
        elif way == "CRAM-MD5":
            challenge = b"<1896.697170952@mail.test>"
            proof = hmac.new(password, challenge, "md5").hexdigest().encode()
            is_right = self.ask(challenge).rpartition(b" ")[2] == proof
        else:
            given = base64.b64decode(initial) if initial and self.server.hears_initial else self.ask(b"")
            is_right = given.split(b"\0")[-1] == password
        if is_right:
            self.is_signed_in = self.reply("AUTH", "235 welcome")
        else:
            self.send("535 5.7.8 wrong password")

    def on_mail(self, rest: str) -> None:
        if self.server.tls and not isinstance(self.socket, ssl.SSLSocket):
            self.send("530 5.7.0 STARTTLS first")
        elif self.server.password and not self.is_signed_in:
            self.send("530 5.7.0 sign in first")
        elif self.reply("MAIL", "250 OK"):
            self.sender, self.recipients = address_in(rest), []

    def on_rcpt(self, rest: str) -> None:
        self.recipients.append(address_in(rest))
        if not self.reply("RCPT", "250 OK"):
            self.recipients.pop()

    def on_data(self, _rest: str) -> None:
        if not self.recipients:
            self.send("503 5.5.1 no recipients")
            return
        if not self.reply("DATA", "354 go on"):
            return
        lines: list[bytes] = []
        refusal = self.act("content")
        while (line := self.file.readline()) != b".\r\n":
            if not line:
                self.server.unfinished.append(b"".join(lines))
                raise Dropped
            lines.append(line.removeprefix(b".") if line.startswith(b"..") else line)
        refusal = refusal or self.act("dot")
        if refusal is not None:
            self.send(refusal)
            return
        mail = Mail(self.sender, list(self.recipients), b"".join(lines))
        self.server.accept(mail)
        refusal = self.act("answer")
        self.send(refusal or "250 2.0.0 taken")
        mail.is_answered = refusal is None

    def on_rset(self, _rest: str) -> None:
        self.sender, self.recipients = "", []
        self.reply("RSET", "250 OK")

    def on_noop(self, _rest: str) -> None:
        self.reply("NOOP", "250 OK")

    def on_quit(self, _rest: str) -> None:
        self.reply("QUIT", "221 bye")
        raise Dropped


def address_in(command: str) -> str:
    found = re.search(r"<([^>]*)>", command)
    return found[1] if found else ""
