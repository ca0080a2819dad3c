"""The sending layer by itself: copies, attachments, and lines that no relay changes."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import trustme
from flask import Flask
from flask_mail import Attachment, BadHeaderError

from harness.processes import free_port, wait_until, within
from harness.smtp_server import Action, Answer, Connection, Server, drop, for_recipient, hang
from tests.conftest import Embedded
from tests.smtp.test_replies import server_tls
from webapp import create_app
from webapp.extensions import mail
from webapp.smtp import client
from webapp.smtp.message import Message
from webapp.smtp.protocol import Aborted, Crowded, SmtpError

# The SMTP conversation is the same whatever the database.
pytestmark = pytest.mark.parametrize("backend", [Embedded.name], indirect=True)


def message(**fields: object) -> Message:
    defaults: dict[str, object] = {
        "subject": "Hello",
        "recipients": ["mick@example.com"],
        "body": "Hi",
        "html": "<p>Hi",
    }
    return Message(**{**defaults, **fields})  # type: ignore[arg-type]


def send(app: Flask, mail_to_send: Message) -> str:
    with app.app_context(), mail.connect() as connection:
        return connection.send(mail_to_send)


def use(app: Flask, **settings: object) -> None:
    """Change where emails go, and how."""
    for name, value in settings.items():
        setattr(app.extensions["mail"], name, value)


def test_copies_and_hidden_copies_and_the_reply_address_arrive(app: Flask, smtp: Server) -> None:
    with app.app_context():
        copied = message(cc=["cc@example.com"], bcc=["bcc@example.com"], reply_to="help@example.com")
    assert send(app, copied) == "250 2.0.0 taken"
    (arrived,) = smtp.mails
    assert arrived.recipients == ["mick@example.com", "cc@example.com", "bcc@example.com"]
    assert arrived.message["Cc"] == "cc@example.com"
    assert arrived.message["Reply-To"] == "help@example.com"
    assert "bcc@example.com" not in arrived.content.decode()


def test_a_refused_copy_is_logged_and_the_mail_counts_as_sent(
    app: Flask, smtp: Server, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse_copies(connection: Connection) -> str | None:
        return None if connection.recipients == ["mick@example.com"] else "550 no such user"

    smtp.actions["RCPT"] = refuse_copies
    with app.app_context():
        copied = message(cc=["cc@example.com"], bcc=["bcc@example.com"])
    assert send(app, copied).startswith("250")
    assert smtp.mails[0].recipients == ["mick@example.com"]
    assert caplog.text.count("copy_refused") == 2


def test_when_the_recipient_itself_is_refused_nobody_gets_it(app: Flask, smtp: Server) -> None:
    smtp.actions["RCPT"] = "550 no such user"
    with app.app_context():
        copied = message(cc=["cc@example.com"])
    with pytest.raises(SmtpError, match="no such user") as caught:
        send(app, copied)
    assert (caught.value.phase, caught.value.code) == ("recipient", 550)
    assert smtp.mails == []


def test_an_attachment_arrives_whole_beside_both_texts(app: Flask, smtp: Server) -> None:
    content = bytes(range(256)) * 20
    with app.app_context():
        heavy = message(attachments=[Attachment("größe.bin", "application/octet-stream", content)])
    send(app, heavy)
    arrived = smtp.mails[0].message
    assert arrived.get_content_type() == "multipart/mixed"
    (attachment,) = arrived.iter_attachments()
    assert attachment.get_content() == content
    assert smtp.mails[0].text.strip() == "Hi"
    assert smtp.mails[0].html.strip() == "<p>Hi"


@pytest.mark.parametrize(
    "sender", ["Miller, Sons <shop@example.com>", "a@b <shop@example.com>", "ร้าน <shop@example.com>"]
)
def test_an_attachment_changes_nothing_of_who_sends_it_and_what_it_says(app: Flask, smtp: Server, sender: str) -> None:
    note = Attachment(None, "text/plain", "ร้าน", headers={"Content-Language": "th"})
    with app.app_context():
        send(app, message(sender=sender, body="ร้าน\n.\n", html=None))
        send(app, message(sender=sender, body="ร้าน\n.\n", html=None, attachments=[note]))
    without, attached = smtp.mails
    assert str(attached.message["From"]) == str(without.message["From"])
    assert attached.text == without.text
    (part,) = attached.message.iter_attachments()
    assert (part.get_content(), part.get_filename(), part["Content-Language"]) == ("ร้าน", None, "th")
    assert attached.content.isascii()


def test_thai_and_dots_and_long_lines_arrive_as_they_were(app: Flask, smtp: Server) -> None:
    text = "ยืนยันที่อยู่อีเมล\n.\n..two dots\n" + "x" * 2000 + "\n"
    with app.app_context():
        odd = message(subject="ยืนยัน " * 20, body=text, html=f"<pre>{text}</pre>", sender=("ร้าน", "shop@example.com"))
    send(app, odd)
    (arrived,) = smtp.mails
    assert arrived.text.replace("\r\n", "\n") == text
    assert arrived.message["Subject"] == ("ยืนยัน " * 20)
    assert str(arrived.message["From"]) == "ร้าน <shop@example.com>"
    assert arrived.content.isascii()
    assert max(map(len, arrived.content.splitlines())) <= 998


def test_an_international_domain_is_written_in_ascii(app: Flask, smtp: Server) -> None:
    with app.app_context():
        abroad = message(recipients=["mick@münchen.example"])
    send(app, abroad)
    assert smtp.mails[0].recipients == ["mick@xn--mnchen-3ya.example"]


@pytest.mark.parametrize("field", ["subject", "sender", "reply_to"])
def test_a_line_break_in_a_header_is_refused_before_anything_is_said(app: Flask, smtp: Server, field: str) -> None:
    with app.app_context():
        evil = message(**{field: "a@example.com\nBcc: all@example.com"})
    with pytest.raises(BadHeaderError):
        send(app, evil)
    assert smtp.mails == []


def test_without_leave_for_the_final_dot_nothing_is_sent(app: Flask, smtp: Server) -> None:
    with app.app_context():
        late = message()
        with pytest.raises(Aborted), mail.connect() as connection:
            connection.send(late, may_finish=lambda: False)
    # It does not get a QUIT either, which would become a line of the email.
    wait_until(lambda: smtp.unfinished == [b""], "the connection stayed open")
    assert smtp.mails == []


@pytest.mark.parametrize("is_pipelining", [True, False])
def test_a_refusal_is_the_recipients_whether_commands_go_together_or_not(
    app: Flask, smtp: Server, *, is_pipelining: bool
) -> None:
    smtp.is_pipelining = is_pipelining
    smtp.actions["RCPT"] = "550 5.1.1 no such user"
    with app.app_context():
        refused, taken = message(), message()
    with pytest.raises(SmtpError) as error:
        send(app, refused)
    assert (error.value.phase, error.value.code) == ("recipient", 550)
    smtp.actions.clear()
    send(app, taken)
    assert [mail.recipients for mail in smtp.mails] == [["mick@example.com"]]


def test_told_to_stop_nobody_waits_for_a_name(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    is_over = threading.Event()

    def resolve(*_: Any, **__: Any) -> list[Any]:
        is_over.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    threading.Timer(0.2, mail.stop).start()
    with app.app_context():
        stopped = message()
    with within(app.config["MAIL_TIMEOUT"] / 2), pytest.raises(SmtpError):
        send(app, stopped)
    is_over.set()


@pytest.mark.parametrize("step", ["before it is in use", "while it connects"])
def test_told_to_stop_a_mail_ends_at_once_wherever_it_is(
    app: Flask, smtp: Server, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Even if there is no connection yet that could be cut, or one that is kept from the last email."""
    smtp.actions["RCPT"] = hang

    def stop_first(what: Callable[..., Any]) -> Callable[..., Any]:
        def stopping(*arguments: Any) -> Any:
            mail.stop()
            return what(*arguments)

        return stopping

    with app.app_context():
        stopped = message()
    if step == "while it connects":
        monkeypatch.setattr(client, "look_up", stop_first(client.look_up))
    else:
        smtp.actions.clear()
        send(app, stopped)
        smtp.actions["RCPT"] = hang
        monkeypatch.setattr(mail.pool, "take", stop_first(mail.pool.take))
    with within(app.config["MAIL_TIMEOUT"] / 2), pytest.raises(SmtpError):
        send(app, stopped)


def send_both(app: Flask, *mails: Message) -> None:
    """Send them one after the other, each with the next one as `following`."""
    with app.app_context(), mail.connect() as connection:
        for mail_to_send, following in zip(mails, [*mails[1:], None], strict=True):
            connection.send(mail_to_send, following=following)


def several(app: Flask, count: int = 2) -> list[Message]:
    with app.app_context():
        return [message(recipients=[f"mick{n}@example.com"]) for n in range(count)]


def recipients(smtp: Server) -> list[str]:
    return [recipient for arrived in smtp.mails for recipient in arrived.recipients]


@pytest.mark.parametrize("is_pipelining", [True, False])
def test_the_next_mail_is_begun_behind_the_dot_where_the_server_lets_us(
    app: Flask, smtp: Server, *, is_pipelining: bool
) -> None:
    smtp.is_pipelining = is_pipelining
    heard: list[bytes] = []
    smtp.actions["answer"] = lambda connection: heard.append(connection.heard_already())
    send_both(app, *several(app, 3))
    ahead = [b"mail FROM:<no-reply@signup.example>\r\nrcpt TO:<mick%d@example.com>\r\ndata\r\n" % n for n in (1, 2)]
    assert heard == ([*ahead, b""] if is_pipelining else [b""] * 3)
    assert recipients(smtp) == ["mick0@example.com", "mick1@example.com", "mick2@example.com"]
    assert smtp.connections == 1


def test_what_was_begun_and_is_not_sent_never_arrives(app: Flask, smtp: Server) -> None:
    first, second, third = several(app, 3)
    with app.app_context(), within(0.9), mail.connect() as connection:
        connection.send(first, following=second)
        # No QUIT is sent either: the server is waiting for an email, and would not answer.
        connection.send(third)
    assert recipients(smtp) == ["mick0@example.com", "mick2@example.com"]
    assert smtp.connections == 2


def test_what_was_begun_ends_with_whoever_began_it(app: Flask, smtp: Server) -> None:
    first, second = several(app)
    with app.app_context():
        with within(0.9), mail.connect() as connection:
            connection.send(first, following=second)
        assert mail.pool.idle == []
        with mail.connect() as connection:
            connection.send(second)
    assert recipients(smtp) == ["mick0@example.com", "mick1@example.com"]
    assert smtp.connections == 2


def test_a_mail_that_is_refused_takes_the_one_that_was_begun_with_it_to_a_new_connection(
    app: Flask, smtp: Server
) -> None:
    first, second = several(app)
    smtp.actions["dot"] = lambda connection: "554 no" if connection.recipients == first.recipients else None
    with app.app_context():
        with pytest.raises(SmtpError) as refused, mail.connect() as connection:
            connection.send(first, following=second)
        with mail.connect() as connection:
            connection.send(second)
    assert (refused.value.phase, refused.value.code) == ("dot", 554)
    assert recipients(smtp) == ["mick1@example.com"]


@pytest.mark.parametrize("end", ["421 enough mails for one connection", drop])
def test_a_server_that_takes_one_mail_a_connection_gets_each_on_its_own(app: Flask, smtp: Server, end: Action) -> None:
    connections: list[Connection] = []

    def end_second(connection: Connection) -> Answer | None:
        if connection not in connections:
            connections.append(connection)
            return None
        return end(connection) if callable(end) else end

    smtp.actions["MAIL"] = end_second
    send_both(app, *several(app, 3))
    assert recipients(smtp) == ["mick0@example.com", "mick1@example.com", "mick2@example.com"]
    assert smtp.connections == 3


def test_a_server_that_drops_what_comes_behind_a_dot_is_waited_for_from_then_on(app: Flask, smtp: Server) -> None:
    mail.timeout = 2

    def drop_heard(connection: Connection) -> None:
        connection.file.read(len(connection.heard_already()))

    smtp.actions["answer"] = drop_heard
    begun = time.monotonic()
    with within(1):
        send_both(app, *several(app, 4))
    assert recipients(smtp) == [f"mick{n}@example.com" for n in range(4)]
    assert smtp.connections == 2
    assert time.monotonic() - begun >= 0.5


@pytest.mark.parametrize(
    "answer",
    [
        b"\r\n250 2.0.0 taken\r\n",
        b"250-2.0.0 taken\r\n250-and kept\r\n250 as 4711\r\n",
        b"250\r\n",
        b"250-\r\n\r\n250\r\n",
        b"250 taken\n",
        b"250 angenommen \xe4\xf6\xfc\r\n",
        b"354 go on\r\n250 taken\r\n",
        b"251 taken elsewhere\r\n",
    ],
)
def test_odd_answers_are_understood(app: Flask, smtp: Server, answer: bytes) -> None:
    smtp.actions["answer"] = answer
    with app.app_context():
        taken = message()
    assert send(app, taken).startswith("25")


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        (b"550-no\r\n\r\n550 such user\r\n", (550, "no\nsuch user")),
        (b"550\r\n", (550, "")),
        (b"250-yes\r\n550 no\r\n", (550, "yes\nno")),
        (b"550 5.1.1 \xff\r\n", (550, "5.1.1 \ufffd")),
    ],
)
def test_odd_refusals_are_understood(app: Flask, smtp: Server, answer: bytes, seen: tuple[int, str]) -> None:
    smtp.actions["RCPT"] = answer
    with app.app_context():
        refused = message()
    with pytest.raises(SmtpError) as error:
        send(app, refused)
    assert (error.value.code, error.value.reply) == seen


@pytest.mark.parametrize(
    "answer",
    [
        b"250-" + b"x" * 1_000_000 + b"\r\n250 taken\r\n",
        b"250-more\r\n" * 100_000,
        b"\r\n" * 500_000,
        b"taken\r\n",
        b"2500 taken\r\n",
        b"333 what\r\n",
    ],
)
def test_what_is_no_answer_leaves_the_mail_in_doubt(app: Flask, smtp: Server, answer: bytes) -> None:
    smtp.actions["answer"] = answer
    with app.app_context():
        unsure = message()
    with pytest.raises(SmtpError) as error:
        send(app, unsure)
    assert (error.value.phase, error.value.code) == ("dot", None)


def test_an_answer_that_breaks_off_is_none(app: Flask, smtp: Server) -> None:
    def break_off(connection: Connection) -> None:
        connection.send(b"250-tak")
        drop(connection)

    smtp.actions["answer"] = break_off
    with app.app_context():
        unsure = message()
    with pytest.raises(SmtpError) as error:
        send(app, unsure)
    assert (error.value.phase, error.value.code) == ("dot", None)


def test_a_250_to_data_sends_nothing(app: Flask, smtp: Server) -> None:
    smtp.actions["DATA"] = "250 not yet"
    with app.app_context():
        unsent = message()
    with pytest.raises(SmtpError) as error:
        send(app, unsent)
    assert error.value.phase == "data"
    assert smtp.mails == []


REASON = "421 4.3.0 in maintenance until noon"


@pytest.mark.parametrize(
    ("step", "phase"),
    [
        ("greeting", "greeting"),
        ("EHLO", "ehlo"),
        ("AUTH", "login"),
        ("MAIL", "sender"),
        ("RCPT", "recipient"),
        ("DATA", "data"),
        ("content", "dot"),
        ("dot", "dot"),
    ],
)
def test_the_servers_own_words_are_kept_in_every_phase(app: Flask, step: str, phase: str) -> None:
    with Server(password="sesame") as server, app.app_context():
        use(app, port=server.port, username="mick", password="sesame")
        server.actions[step] = REASON
        with pytest.raises(SmtpError) as error, mail.connect() as connection:
            connection.send(message())
    assert (error.value.phase, error.value.code, error.value.reply) == (phase, 421, REASON[4:])


def test_a_server_that_says_why_before_it_hangs_up_on_a_long_mail_is_heard(app: Flask, smtp: Server) -> None:
    def hang_up(connection: Connection) -> None:
        connection.send(REASON)

    smtp.actions["content"] = hang_up
    with app.app_context():
        long = message(body="x" * 3_000_000)
    with pytest.raises(SmtpError, match="in maintenance"):
        send(app, long)


@pytest.mark.parametrize("way", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_names_and_passwords_of_any_script_sign_in_each_way(app: Flask, way: str) -> None:
    with Server(password="Pässwörd€1", ways=[way]) as server, app.app_context():
        use(app, port=server.port, username="jürgen", password="Pässwörd€1")
        with mail.connect() as connection:
            assert connection.send(message()).startswith("250")


def test_plain_is_said_again_where_the_server_asks(app: Flask) -> None:
    with Server(password="sesame") as server, app.app_context():
        server.hears_initial = False
        use(app, port=server.port, username="mick", password="sesame")
        with mail.connect() as connection:
            assert connection.send(message()).startswith("250")


def test_a_way_that_the_server_only_claims_to_know_is_not_the_last(app: Flask) -> None:
    with Server(password="sesame", ways=["PLAIN", "LOGIN"]) as server, app.app_context():
        server.actions["EHLO"] = "250-mail.test\r\n250-AUTH=CRAM-MD5\r\n250 AUTH PLAIN"
        use(app, port=server.port, username="mick", password="sesame")
        with mail.connect() as connection:
            connection.send(message())
        ways = [said.split()[1] for said in server.heard if said.startswith("AUTH")]
    assert ways == ["CRAM-MD5", "PLAIN"]


def test_a_refused_login_says_what_the_server_said_and_never_the_password(app: Flask) -> None:
    with Server(password="sesame-1234") as server, app.app_context():
        # The right password, so that the server gets to what it was told to say.
        use(app, port=server.port, username="mick", password="sesame-1234")

        def repeat(connection: Connection) -> str:
            return f"535 5.7.8 wrong: {connection.server.heard[-1]} (sesame-1234)"

        server.actions["AUTH"] = repeat
        with pytest.raises(SmtpError) as error, mail.connect() as connection:
            connection.send(message())
        assert (error.value.phase, error.value.code) == ("login", 535)
        assert "5.7.8 wrong: AUTH PLAIN …" in error.value.reply
        assert "sesame" not in str(error.value)
        assert "AG1pY2s" not in str(error.value)


def test_a_server_that_offers_no_login_is_told_of(app: Flask, smtp: Server) -> None:
    with app.app_context():
        use(app, username="mick", password="sesame")
        with pytest.raises(SmtpError, match="no way to sign in") as error, mail.connect() as connection:
            connection.send(message())
    assert error.value.phase == "login"


def test_the_name_in_ehlo_is_the_public_urls(app: Flask, smtp: Server) -> None:
    with app.app_context():
        hello = message()
    send(app, hello)
    assert smtp.heard[0] == "ehlo signup.example"


def test_a_server_that_knows_no_ehlo_is_greeted_the_old_way(app: Flask, smtp: Server) -> None:
    smtp.actions["EHLO"] = "502 what"
    with app.app_context():
        old = message()
    assert send(app, old).startswith("250")
    assert smtp.heard[:2] == ["ehlo signup.example", "helo signup.example"]


@contextmanager
def swallowing() -> Iterator[int]:
    """A port that neither accepts nor refuses connections, as behind a firewall."""
    with socket.socket() as full, ExitStack() as waiting:
        full.bind(("127.0.0.2", 0))
        full.listen(0)
        for _ in range(8):
            caller = waiting.enter_context(socket.socket())
            caller.settimeout(0)
            caller.connect_ex(full.getsockname())
        yield full.getsockname()[1]


def addresses(*found: tuple[str, int]) -> Callable[..., list[Any]]:
    return lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in found]


def test_each_of_a_hosts_addresses_gets_its_share_of_the_time(
    app: Flask, smtp: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    mail.timeout = 4
    with app.app_context(), swallowing() as port:
        monkeypatch.setattr(socket, "getaddrinfo", addresses(("127.0.0.2", port), ("127.0.0.1", smtp.port)))
        use(app, server="two.example")
        waited: list[float] = []
        with mail.connect() as connection:
            connection.send(message(), while_waiting=waited.append)
        assert 1 <= len(waited) <= 2
        # The one that answered is tried first from now on.
        mail.close()
        waited.clear()
        with mail.connect() as connection:
            connection.send(message(), while_waiting=waited.append)
        assert waited == []


def test_an_address_that_is_refused_leaves_the_time_to_the_others_and_all_are_told(
    app: Flask, smtp: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with app.app_context():
        use(app, server="three.example")
        closed = [("127.0.0.1", free_port()), ("127.0.0.3", free_port())]
        monkeypatch.setattr(socket, "getaddrinfo", addresses(*closed, ("127.0.0.1", smtp.port)))
        with mail.connect() as connection:
            connection.send(message())
        mail.close()
        monkeypatch.setattr(socket, "getaddrinfo", addresses(*closed))
        with (
            pytest.raises(SmtpError, match=r"127.0.0.1: .*refused; 127.0.0.3: .*refused"),
            mail.connect() as connection,
        ):
            connection.send(message())


@pytest.mark.parametrize("step", ["connect", "EHLO", "MAIL", "RCPT", "DATA", "dot"])
def test_waiting_is_noticed_each_second_in_every_phase(app: Flask, smtp: Server, step: str) -> None:
    waited: list[float] = []
    smtp.actions[step] = lambda _connection: wait_until(lambda: len(waited) >= 2, "nobody was told")
    with app.app_context(), mail.connect() as connection:
        connection.send(message(), while_waiting=waited.append)
    assert waited == sorted(waited)
    assert 1 <= waited[0] < 2


def test_an_answer_that_came_while_we_stood_still_is_heard(app: Flask, smtp: Server) -> None:
    """As when the database that we ask meanwhile is frozen, or this machine is."""
    mail.answer_timeout = 2
    smtp.actions["answer"] = lambda _connection: time.sleep(1.5)
    with app.app_context(), mail.connect() as connection:
        assert connection.send(message(), while_waiting=lambda _seconds: time.sleep(3)) == "250 2.0.0 taken"


def test_a_machine_that_has_no_thread_left_makes_nobody_doubt_what_was_taken(
    app: Flask, smtp: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a container has reached its limit of processes, or of memory."""

    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    first, second = several(app)
    smtp.actions["answer"] = lambda _connection: monkeypatch.setattr(threading.Thread, "start", fail)
    assert send(app, first) == "250 2.0.0 taken"
    mail.close()
    # Nor is it the next mail's fault.
    with pytest.raises(SmtpError, match="can't start new thread") as error:
        send(app, second)
    assert error.value.phase == "connect"


def test_the_answer_to_the_dot_has_a_time_of_its_own(app: Flask, smtp: Server) -> None:
    mail.timeout, mail.answer_timeout = 1, 60
    waited: list[float] = []
    smtp.actions["answer"] = lambda _connection: wait_until(lambda: len(waited) >= 3, "it was not waited for")
    with app.app_context(), mail.connect() as connection:
        assert connection.send(message(), while_waiting=waited.append).startswith("250")
    mail.timeout, mail.answer_timeout = 60, 1
    smtp.actions["answer"] = hang
    with app.app_context(), pytest.raises(SmtpError) as error, mail.connect() as connection:
        connection.send(message())
    assert (error.value.phase, error.value.code) == ("dot", None)


@pytest.mark.parametrize("is_pipelining", [True, False])
@pytest.mark.parametrize(("step", "answer"), [("RCPT", "550 5.1.1 no"), ("DATA", "451 later"), ("dot", "554 no")])
def test_a_refused_mail_costs_no_connection(
    app: Flask, smtp: Server, step: str, answer: str, *, is_pipelining: bool
) -> None:
    smtp.is_pipelining = is_pipelining
    first, second, third, fourth = several(app, 4)
    smtp.actions[step] = for_recipient("mick1@example.com", answer)
    for taken in (first, third, fourth):
        send(app, taken)
        with pytest.raises(SmtpError):
            send(app, second)
    assert recipients(smtp) == ["mick0@example.com", "mick2@example.com", "mick3@example.com"]
    assert smtp.connections == 1
    assert smtp.unfinished == []


def test_a_refused_mail_leaves_the_one_that_was_begun_behind_it_where_it_is(app: Flask, smtp: Server) -> None:
    smtp.actions["dot"] = for_recipient("mick0@example.com", "554 no")
    first, second = several(app)
    with app.app_context(), mail.connect() as connection:
        with pytest.raises(SmtpError):
            connection.send(first, following=second)
        connection.send(second)
    assert recipients(smtp) == ["mick1@example.com"]
    assert smtp.connections == 1


def test_a_refused_recipient_whose_copies_are_taken_sends_them_nothing(app: Flask, smtp: Server) -> None:
    with app.app_context():
        copied, other = message(cc=["cc@example.com"]), message(recipients=["ann@example.com"])

    def refuse(connection: Connection) -> str | None:
        return "550 no" if connection.recipients == ["mick@example.com"] else None

    smtp.actions["RCPT"] = refuse
    with pytest.raises(SmtpError, match="550"):
        send(app, copied)
    send(app, other)
    assert recipients(smtp) == ["ann@example.com"]


@pytest.mark.parametrize("is_ahead", [True, False])
@pytest.mark.parametrize("answer", ["452 4.5.3 too many messages in this connection", "421 enough", "554 enough"])
def test_a_server_that_wants_a_new_connection_after_some_mails_gets_one_at_once(
    app: Flask, smtp: Server, answer: str, *, is_ahead: bool
) -> None:
    served: dict[Connection, int] = {}

    def three_each(connection: Connection) -> str | None:
        served[connection] = served.get(connection, 0) + 1
        return answer if served[connection] > 3 else None

    smtp.actions["MAIL"] = three_each
    mails = several(app, 7)
    if is_ahead:
        send_both(app, *mails)
    else:
        for each in mails:
            send(app, each)
    assert recipients(smtp) == [f"mick{n}@example.com" for n in range(7)]
    assert smtp.connections == 3


def test_a_first_mail_of_a_connection_that_is_refused_is_the_servers_trouble(app: Flask, smtp: Server) -> None:
    smtp.actions["MAIL"] = "452 4.3.1 no space"
    with app.app_context():
        unsent = message()
    with pytest.raises(SmtpError) as error:
        send(app, unsent)
    assert (error.value.phase, error.value.code) == ("sender", 452)
    assert smtp.connections == 1


def test_a_good_bye_between_two_mails_is_no_answer_to_the_second(app: Flask, smtp: Server) -> None:
    first, second = several(app)
    smtp.actions["answer"] = b"250 taken\r\n421 4.4.2 idle\r\n"
    send(app, first)
    smtp.actions.clear()
    send(app, second)
    assert recipients(smtp) == ["mick0@example.com", "mick1@example.com"]


def send_at_once(app: Flask, count: int) -> list[str]:
    mails = several(app, count)
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(lambda each: send(app, each), mails))


def test_all_threads_share_few_connections(app: Flask, smtp: Server) -> None:
    most: list[int] = []
    smtp.actions["dot"] = lambda _connection: most.append(len(smtp.open))
    assert len(send_at_once(app, 12)) == 12
    assert max(most) <= 2
    assert smtp.connections <= 2


@pytest.mark.parametrize("limit", [1, 3])
def test_a_server_that_allows_few_connections_is_served_all_the_same(app: Flask, limit: int) -> None:
    with Server(limit=limit) as server:
        use(app, port=server.port)
        assert len(send_at_once(app, 12)) == 12
        assert sorted(recipients(server)) == sorted(f"mick{n}@example.com" for n in range(12))
        assert server.turned_away <= 1


def test_a_connection_that_others_have_is_waited_for(app: Flask) -> None:
    """Another process holds the only one, and releases it a little later."""
    with Server(limit=1) as server, app.app_context():
        use(app, port=server.port)
        with socket.create_connection(("127.0.0.1", server.port)) as others, ThreadPoolExecutor(1) as thread:
            wait_until(lambda: len(server.open) == 1, "it was not taken")
            sending = thread.submit(send, app, message())
            wait_until(lambda: server.turned_away >= 2, "nobody asked again")
            # Not the server's end of it: ours may be being told of the limit just now.
            others.close()
            assert sending.result().startswith("250")


def test_a_connection_that_others_keep_is_given_up(app: Flask) -> None:
    with Server(limit=0) as server, app.app_context():
        use(app, port=server.port)
        with pytest.raises(Crowded, match="too many connections") as error, mail.connect() as connection:
            connection.send(message())
        assert (error.value.phase, error.value.code) == ("greeting", 421)


def test_who_finds_no_connection_free_says_nothing_of_the_server(app: Flask, smtp: Server) -> None:
    mail.timeout, mail.pool.size = 1, 1
    first, second = several(app)
    smtp.actions["answer"] = hang
    with ThreadPoolExecutor(1) as thread:
        hanging = thread.submit(send, app, first)
        wait_until(lambda: len(smtp.mails) == 1, "the first was not sent")
        with pytest.raises(Aborted, match="no connection was free"):
            send(app, second)
        mail.stop()
        with pytest.raises(SmtpError):
            hanging.result()


@pytest.mark.parametrize("is_trusted", [True, False])
def test_a_certificate_that_is_not_the_hosts_is_told_in_plain_words(app: Flask, *, is_trusted: bool) -> None:
    authority = trustme.CA()
    with Server(tls=server_tls(authority, "elsewhere.example")) as server, app.app_context():
        use(app, server="localhost", port=server.port, use_tls=True)
        mail.tls = ssl.create_default_context()
        if is_trusted:
            authority.configure_trust(mail.tls)
        words = (
            "Hostname mismatch, certificate is not valid for 'localhost'"
            if is_trusted
            else "self.signed certificate|unable to get local issuer"
        )
        trouble = pytest.raises(SmtpError, match=f"certificate is not trusted: .*({words})")
        with trouble as error, mail.connect() as connection:
            connection.send(message())
        assert error.value.phase == "tls"


def test_tls_where_there_is_none_is_told_in_plain_words(app: Flask, smtp: Server) -> None:
    with app.app_context():
        use(app, use_tls=True)
        with pytest.raises(SmtpError, match="does not offer STARTTLS"), mail.connect() as connection:
            connection.send(message())
        use(app, use_tls=False, use_ssl=True)
        with pytest.raises(SmtpError, match="does not begin with TLS"), mail.connect() as connection:
            connection.send(message())


def test_what_is_said_before_tls_begins_is_not_believed_after_it(app: Flask) -> None:
    authority = trustme.CA()
    with Server(tls=server_tls(authority, "localhost")) as server, app.app_context():
        use(app, server="localhost", port=server.port, use_tls=True)
        server.actions["STARTTLS"] = b"220 go ahead\r\n250 AUTH PLAIN\r\n"
        with pytest.raises(SmtpError, match="continued in plain text"), mail.connect() as connection:
            connection.send(message())


@pytest.mark.parametrize(
    ("sender", "header", "envelope"),
    [
        ('"Acme, Inc." <no-reply@acme.example>', '"Acme, Inc." <no-reply@acme.example>', "no-reply@acme.example"),
        ("Acme, Inc. <no-reply@acme.example>", '"Acme, Inc." <no-reply@acme.example>', "no-reply@acme.example"),
        ('The "Best" @ Acme <hi@acme.example>', r'"The \"Best\" @ Acme" <hi@acme.example>', "hi@acme.example"),
        ("Acme <hi@acme.example>", "Acme <hi@acme.example>", "hi@acme.example"),
        (
            "ร้าน, จำกัด <hi@acme.example>",
            "=?utf-8?b?4Lij4LmJ4Liy4LiZLCDguIjguLPguIHguLHguJQ=?= <hi@acme.example>",
            "hi@acme.example",
        ),
        ("hi@straße.example", "Acme <hi@xn--strae-oqa.example>", "hi@xn--strae-oqa.example"),
        ("hi@acme.example", "Acme <hi@acme.example>", "hi@acme.example"),
    ],
)
def test_the_sender_reaches_the_wire_as_it_was_set(
    environ: dict[str, str], smtp: Server, sender: str, header: str, envelope: str
) -> None:
    app = create_app({**environ, "MAIL_DEFAULT_SENDER": sender, "MAIL_REPLY_TO": sender})
    with app.app_context():
        sent = message(reply_to=app.config["MAIL_REPLY_TO"])
    send(app, sent)
    (arrived,) = smtp.mails
    assert arrived.sender == envelope
    assert f"From: {header}\r\n".encode() in arrived.content
    assert str(arrived.message["From"].addresses[0].addr_spec) == envelope
    assert str(arrived.message["Reply-To"].addresses[0].addr_spec) == envelope
    mail.close()


def test_what_one_thread_has_begun_another_does_not_close(app: Flask, smtp: Server) -> None:
    first, second, third = several(app, 3)
    with app.app_context(), mail.connect() as connection, ThreadPoolExecutor(1) as another:
        connection.send(first, following=second)
        another.submit(send, app, third).result()
        another.submit(mail.close).result()
        connection.send(second)
    assert recipients(smtp) == ["mick0@example.com", "mick2@example.com", "mick1@example.com"]
    assert smtp.connections == 2
    assert smtp.unfinished == []
