"""The development mailbox: what it was sent can be read there, and nothing else."""

from __future__ import annotations

import os
import re
import signal
import smtplib
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from email.message import EmailMessage
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from harness.processes import Process, free_port, wait_for_port
from harness.visitor import ASKED_FOR, PASSWORD
from webapp import create_app, devmail
from webapp.devmail import Mailbox

LINK = "http://signup.example/verify/abc"
NEWLINE = b"\r\n"


def make_mail(subject: str = "Confirm your address", text: str = f"Open {LINK}.\n") -> bytes:
    mail = EmailMessage()
    mail["Subject"] = subject
    mail["From"] = "Acme <no-reply@signup.example>"
    mail["To"] = "mick@example.com"
    mail.set_content(text)
    mail.add_alternative(f'<html><head></head><body><a href="{LINK}">Confirm</a></body></html>', subtype="html")
    return mail.as_bytes()


@pytest.fixture
def box(tmp_path: Path) -> Mailbox:
    return Mailbox(tmp_path / "mailbox")


@pytest.fixture
def server(box: Mailbox) -> Iterator[int]:
    """The port of a running server that fills the mailbox."""
    port = free_port()
    with Process(sys.executable, "-m", "tools.mailbox_server", str(port), str(box.folder), environ=os.environ):
        wait_for_port(port)
        yield port


@pytest.fixture
def browser(environ: Mapping[str, str], tmp_path: Path) -> Iterator[FlaskClient]:
    app = create_app({**environ, "APP_ENV": "development"})
    app.instance_path = str(tmp_path)
    yield app.test_client()
    with app.app_context():
        app.extensions["sqlalchemy"].engine.dispose()


# The store.


def test_a_kept_mail_reads_as_it_was_sent(box: Mailbox) -> None:
    sent = make_mail(subject="Grüße ✓")
    mail = box.get(box.save(sent))
    assert mail is not None
    assert mail.subject == "Grüße ✓"
    assert mail.sender == "Acme <no-reply@signup.example>"
    assert mail.recipients == ("mick@example.com",)
    assert mail.text == f"Open {LINK}.\n"
    assert LINK in mail.html
    assert ("Subject", "Grüße ✓") in mail.headers
    assert mail.raw == sent


def test_the_newest_mail_is_first(box: Mailbox) -> None:
    for number in range(20):
        box.save(make_mail(subject=str(number)))
    assert [mail.subject for mail in box.list()] == [str(number) for number in reversed(range(20))]


def test_only_the_newest_mails_are_kept(box: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devmail, "KEPT", 3)
    for number in range(5):
        box.save(make_mail(subject=str(number)))
    assert [mail.subject for mail in box.list()] == ["4", "3", "2"]


def test_a_mailbox_that_never_got_mail_is_empty(box: Mailbox) -> None:
    assert box.list() == []


@pytest.mark.parametrize(
    "bad_id", ["", "../app", "../../etc/passwd", "1/../2", "0000000000000-00001\n", "1" * 500, "\u0661" * 13 + "-00001"]
)
def test_an_id_that_is_none_finds_nothing(box: Mailbox, bad_id: str) -> None:
    box.save(make_mail())
    (box.folder.parent / "app.eml").write_bytes(make_mail())
    assert box.get(bad_id) is None


def test_foreign_files_in_the_folder_do_no_harm(box: Mailbox) -> None:
    box.save(make_mail())
    (box.folder / "notes.eml").write_text("not ours")
    (box.folder / "0000000000000-00001.part").write_text("half of a mail")
    assert len(box.list()) == 1


HEADERS = st.tuples(
    st.sampled_from(
        [b"Subject", b"From", b"To", b"Content-Type", b"Content-Transfer-Encoding", b"Content-Disposition"]
    ),
    st.binary(max_size=40)
    | st.sampled_from(
        [
            b"=?no-such-charset?q?x?=",
            b"=?utf-8?b?!!!?=",
            b"multipart/alternative",
            b"text/html; charset=unicode_escape",
            b"text/html; charset=no-such-charset",
            b'text/plain; charset="a\0b"',
            b"base64",
            b"x-uuencode",
            b"attachment; filename*=x'y",
        ]
    ),
)


@given(st.lists(HEADERS, max_size=5), st.binary(max_size=100) | st.just(rb"\ud800"))
def test_whatever_arrives_can_be_shown(headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    raw = b"".join(name + b": " + value + b"\r\n" for name, value in headers) + b"\r\n" + body
    mail = devmail.parse("0000000000000-00001", raw)
    for shown in (mail.subject, mail.sender, mail.text, mail.html, *mail.recipients, *sum(mail.headers, ())):
        shown.encode()


# The server.


def test_a_mail_sent_by_smtp_is_kept_with_everybody_it_was_for(server: int, box: Mailbox) -> None:
    with smtplib.SMTP("127.0.0.1", server) as smtp:
        smtp.sendmail("bounces@signup.example", ["mick@example.com", "hidden@example.com"], make_mail())
    (mail,) = box.list()
    assert mail.recipients == ("mick@example.com", "hidden@example.com")
    assert ("Return-Path", "<bounces@signup.example>") in mail.headers
    assert LINK in mail.text


def test_the_server_survives_garbage(server: int, box: Mailbox) -> None:
    with smtplib.SMTP("127.0.0.1", server) as smtp:
        smtp.sendmail("a@example.com", ["b@example.com"], b"\0\xff\xfe no header at all \x80")
        smtp.sendmail("a@example.com", ["b@example.com"], b"")
        smtp.sendmail("a@example.com", ["b@example.com"], make_mail())
    assert [mail.subject for mail in box.list()] == ["Confirm your address", "", ""]


def test_a_mail_that_cannot_be_kept_is_refused_for_now(server: int, box: Mailbox) -> None:
    box.folder.write_text("a file where the folder should be")
    with smtplib.SMTP("127.0.0.1", server) as smtp, pytest.raises(smtplib.SMTPDataError) as refusal:
        smtp.sendmail("a@example.com", ["b@example.com"], make_mail())
    assert refusal.value.smtp_code == 451


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_the_process_ends_when_told_to(tmp_path: Path, ending: signal.Signals) -> None:
    port = free_port()
    command = (sys.executable, "-m", "tools.mailbox_server", str(port), str(tmp_path))
    with Process(*command, environ=os.environ) as process:
        wait_for_port(port)
        # A worker keeps its connection, which must neither delay the end nor be reported as an error.
        with smtplib.SMTP("127.0.0.1", port), suppress(smtplib.SMTPServerDisconnected):
            process.popen.send_signal(ending)
            assert process.popen.wait(30) == 0
        assert process.log == ""


def test_a_taken_port_is_told_in_one_line(server: int, tmp_path: Path) -> None:
    command = (sys.executable, "-m", "tools.mailbox_server", str(server), str(tmp_path))
    with Process(*command, environ=os.environ) as process:
        assert process.popen.wait(30) == 1
        assert process.log.strip() == f"The mailbox cannot listen on port {server}: Address already in use"


# The pages.


def test_an_empty_mailbox_says_what_to_do(browser: FlaskClient) -> None:
    page = browser.get("/dev/mailbox").text
    assert "No emails yet." in page
    assert 'href="/signup"' in page


def test_the_waiting_page_leads_to_the_mailbox(browser: FlaskClient) -> None:
    token = re.search(r'name="csrf_token" value="([^"]+)"', browser.get("/signup").text)
    assert token
    typed = {"username": "mick19", "email": "mick@example.com", "password": PASSWORD, **ASKED_FOR}
    browser.post("/signup", data={"csrf_token": token[1], **typed})
    assert 'href="/dev/mailbox"' in browser.get("/signup/sent").text


def test_the_list_leads_to_each_mail(browser: FlaskClient, box: Mailbox) -> None:
    mail_id = box.save(make_mail(subject="<b>Hello</b>"))
    page = browser.get("/dev/mailbox").text
    assert re.search(rf'href="/dev/mailbox/{mail_id}">&lt;b&gt;Hello&lt;/b&gt;</a>', page)
    assert "to mick@example.com" in page
    assert f'<span class="snippet">Open {LINK}.</span>' in page
    assert "1 email, newest first." in page


@pytest.mark.parametrize("words", ["confirm address", "MICK@EXAMPLE", "verify/abc", "acme"])
def test_a_search_finds_the_mails_that_have_all_the_words(browser: FlaskClient, box: Mailbox, words: str) -> None:
    found = box.save(make_mail())
    other = make_mail(subject="Hello", text="Nothing.").replace(b"mick@", b"ann@").replace(b"verify/abc", b"login")
    box.save(other.replace(b"Acme", b"Other"))
    page = browser.get("/dev/mailbox", query_string={"q": words}).text
    assert re.findall(r'href="/dev/mailbox/([0-9-]+)"', page) == [found]
    assert "1 email with these words." in page
    assert f'value="{words}"' in page


def test_a_search_that_finds_nothing_leads_back(browser: FlaskClient, box: Mailbox) -> None:
    box.save(make_mail())
    page = browser.get("/dev/mailbox?q=%22%3Cb%3E").text
    assert "0 emails with these words." in page
    assert "Show all" in page


def test_a_mail_shows_its_html_first_and_leads_to_its_other_views(browser: FlaskClient, box: Mailbox) -> None:
    mail_id = box.save(make_mail(text=f"<script>alert(1)</script> Open {LINK}."))
    page = browser.get(f"/dev/mailbox/{mail_id}").text
    for view in ("html", "phone"):
        assert f'href="/dev/mailbox/{mail_id}?view={view}"' in page
        shown = browser.get(f"/dev/mailbox/{mail_id}?view={view}").text
        assert f'src="/dev/mailbox/{mail_id}/html"' in shown
    assert f'src="/dev/mailbox/{mail_id}/html"' in page
    text = browser.get(f"/dev/mailbox/{mail_id}?view=text").text
    assert f'&lt;script&gt;alert(1)&lt;/script&gt; Open <a href="{LINK}">{LINK}</a>.' in text
    assert '<th scope="row">Subject</th>' in browser.get(f"/dev/mailbox/{mail_id}?view=headers").text
    assert "Content-Type: multipart/alternative" in browser.get(f"/dev/mailbox/{mail_id}?view=source").text


def test_a_mail_without_html_shows_its_text(browser: FlaskClient, box: Mailbox) -> None:
    page = browser.get(f"/dev/mailbox/{box.save(b'Subject: Hi' + NEWLINE * 2 + b'Only text')}").text
    assert "Only text" in page
    assert "iframe" not in page


def test_a_mail_leads_to_the_newer_and_the_older_one(browser: FlaskClient, box: Mailbox) -> None:
    oldest, middle, newest = (box.save(make_mail(subject=str(number))) for number in range(3))
    page = browser.get(f"/dev/mailbox/{middle}?view=text").text
    assert f'rel="prev" href="/dev/mailbox/{newest}?view=text"' in " ".join(page.split())
    assert f'rel="next" href="/dev/mailbox/{oldest}?view=text"' in " ".join(page.split())


def test_a_deleted_mail_is_gone_and_the_others_stay(browser: FlaskClient, box: Mailbox) -> None:
    kept, deleted = box.save(make_mail()), box.save(make_mail())
    assert f'href="/dev/mailbox/{deleted}/delete"' in browser.get(f"/dev/mailbox/{deleted}").text
    assert "Delete this email?" in press(browser, f"/dev/mailbox/{deleted}/delete")
    assert [mail.id for mail in box.list()] == [kept]
    assert browser.get(f"/dev/mailbox/{deleted}").status_code == 404


def test_all_mails_can_be_deleted_at_once(browser: FlaskClient, box: Mailbox) -> None:
    for _ in range(3):
        box.save(make_mail())
    assert 'href="/dev/mailbox/delete"' in browser.get("/dev/mailbox").text
    assert "Delete 3 emails?" in press(browser, "/dev/mailbox/delete")
    assert box.list() == []


def test_without_a_csrf_token_nothing_is_deleted(browser: FlaskClient, box: Mailbox) -> None:
    mail_id = box.save(make_mail())
    for action in (f"/dev/mailbox/{mail_id}/delete", "/dev/mailbox/delete"):
        answer = browser.post(action)
        assert answer.status_code == 400
        assert "Nothing was changed" in answer.text
    assert len(box.list()) == 1


def press(browser: FlaskClient, action: str) -> str:
    """Press the button on the page that asks before a deletion; return that page."""
    asked = browser.get(action).text
    token = re.search(r'name="csrf_token" value="([^"]+)"', asked)
    assert token
    assert browser.post(action, data={"csrf_token": token[1]}).location == "/dev/mailbox"
    return asked


def test_the_list_has_pages_of_fifty(browser: FlaskClient, box: Mailbox) -> None:
    ids = [box.save(make_mail()) for _ in range(51)]
    first = browser.get("/dev/mailbox").text
    assert "51 emails, newest first." in first
    assert "Page 1 of 2" in first
    assert re.findall(r'data-mail="([0-9-]+)"', first) == ids[:0:-1]
    assert 'rel="next" href="/dev/mailbox?page=2"' in first
    assert re.findall(r'data-mail="([0-9-]+)"', browser.get("/dev/mailbox?page=2").text) == ids[:1]
    # At least one page, and no page beyond the last.
    assert "Page 2 of 2" in browser.get("/dev/mailbox?page=99").text
    assert browser.get("/dev/mailbox?page=-1").status_code == 200


@pytest.mark.parametrize(
    ("text", "code"),
    [("Your code: 123 456.", "123456"), ("654321", "654321"), (f"{LINK}/123456", None), ("Tel. 1234567", None)],
)
def test_a_code_can_be_copied(browser: FlaskClient, box: Mailbox, text: str, code: str | None) -> None:
    mail_id = box.save(make_mail(text=text))
    for path in ("/dev/mailbox", f"/dev/mailbox/{mail_id}"):
        assert re.findall('data-copy="([^"]+)"', browser.get(path).text) == ([code] if code else [])


def test_the_html_of_a_mail_can_neither_run_nor_fetch_anything(browser: FlaskClient, box: Mailbox) -> None:
    answer = browser.get(f"/dev/mailbox/{box.save(make_mail())}/html")
    assert answer.mimetype == "text/html"
    assert '<head><base target="_top"></head>' in answer.text
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "sandbox" in policy
    assert "allow-scripts" not in policy
    assert "allow-same-origin" not in policy


def test_the_source_is_what_was_sent_as_plain_text(browser: FlaskClient, box: Mailbox) -> None:
    sent = make_mail()
    answer = browser.get(f"/dev/mailbox/{box.save(sent)}/source")
    assert answer.mimetype == "text/plain"
    assert answer.data == sent


@pytest.mark.parametrize("view", ["", "/html", "/source"])
@pytest.mark.parametrize("mail_id", ["0000000000000-00001", "..%2F..%2Fapp", "%00", "x"])
def test_an_unknown_mail_is_not_found(browser: FlaskClient, mail_id: str, view: str) -> None:
    assert browser.get(f"/dev/mailbox/{mail_id}{view}").status_code == 404


def test_there_is_no_mailbox_in_production(app: Flask, box: Mailbox) -> None:
    mail_id = box.save(make_mail())
    for path in ("/dev/mailbox", f"/dev/mailbox/{mail_id}", f"/dev/mailbox/{mail_id}/html"):
        assert app.test_client().get(path).status_code == 404
