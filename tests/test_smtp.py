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

from tests.smtp_server import Connection, Server, hang
from webapp import wire
from webapp.extensions import mail
from webapp.message import Message
from webapp.smtp import Aborted, SmtpError


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
    begun = time.monotonic()
    with pytest.raises(SmtpError):
        send(app, stopped)
    is_over.set()
    assert time.monotonic() - begun < app.config["MAIL_TIMEOUT"] / 2


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
    begun = time.monotonic()
    with pytest.raises(SmtpError):
        send(app, stopped)
    assert time.monotonic() - begun < app.config["MAIL_TIMEOUT"] / 2
