"""The sending layer by itself: copies, attachments, and lines that no relay changes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask_mail import Attachment, BadHeaderError

from tests.processes import wait_until, within
from tests.smtp_server import Action, Connection, Server, drop, hang
from webapp import wire
from webapp.extensions import mail
from webapp.message import Message
from webapp.phases import Aborted, SmtpError


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
    # Nor is it told to quit, which would be a line of the mail's.
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


def test_a_connection_that_took_long_to_make_leaves_the_next_mail_its_whole_time(app: Flask, smtp: Server) -> None:
    smtp.actions["greeting"] = lambda _connection: time.sleep(0.3)
    with app.app_context(), mail.connect() as connection:
        assert connection.opened().sock.gettimeout() == app.config["MAIL_TIMEOUT"]


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
    """Also where there is no connection yet that could be cut, or one that is kept from the last mail."""
    smtp.actions["RCPT"] = hang

    def stop_first(what: Callable[..., Any]) -> Callable[..., Any]:
        def stopping(*arguments: Any) -> Any:
            mail.stop()
            return what(*arguments)

        return stopping

    if step == "while it connects":
        monkeypatch.setattr(wire, "look_up", stop_first(wire.look_up))
    else:
        with app.app_context(), mail.connect():
            pass
        monkeypatch.setattr(mail.busy, "add", stop_first(mail.busy.add))
    with app.app_context():
        stopped = message()
    with within(app.config["MAIL_TIMEOUT"] / 2), pytest.raises(SmtpError):
        send(app, stopped)


def send_both(app: Flask, *mails: Message) -> None:
    """Send them one after the other, each with the next one in view."""
    with app.app_context():
        for mail_to_send, following in zip(mails, [*mails[1:], None], strict=True):
            with mail.connect() as connection:
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
    with app.app_context():
        with mail.connect() as connection:
            connection.send(first, following=second)
        # Nor is the server asked to say good-bye: it waits for a mail, and would not answer.
        with within(0.9), mail.connect() as connection:
            connection.send(third)
    assert recipients(smtp) == ["mick0@example.com", "mick2@example.com"]
    assert smtp.connections == 2


def test_what_was_begun_long_ago_is_not_gone_on_with(app: Flask, smtp: Server) -> None:
    first, second = several(app)
    with app.app_context():
        with mail.connect() as connection:
            connection.send(first, following=second)
        connection.last_used -= 60
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

    def end_second(connection: Connection) -> str | None:
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
