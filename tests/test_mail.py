"""What arrives in a mailbox: its form, line by line."""

from __future__ import annotations

import re

import pytest
from flask import Flask

from tests.factories import make_signup
from tests.smtp_server import Mail, Server
from webapp import delivery


@pytest.fixture
def mail(app: Flask, smtp: Server) -> Mail:
    app.config["MAIL_REPLY_TO"] = "help@acme.example"
    email_id = make_signup(app)
    with app.app_context():
        delivery.deliver(email_id)
    return smtp.mails[0]


def test_the_alternatives_are_on_top_text_first(mail: Mail) -> None:
    assert mail.message.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in mail.message.iter_parts()] == ["text/plain", "text/html"]


def test_the_headers_say_who_what_and_that_no_person_wrote_it(mail: Mail) -> None:
    headers = mail.message
    assert re.fullmatch(r"<[0-9a-f-]{36}@signup\.example>", headers["Message-ID"])
    assert headers["Subject"] == "Confirm your e-mail address for Acme"
    assert headers["From"] == "no-reply@signup.example"
    assert headers["To"] == "mick@example.com"
    assert headers["Reply-To"] == "help@acme.example"
    assert headers["Auto-Submitted"] == "auto-generated"
    assert headers["Date"]
    assert headers.defects == []


def test_its_lines_pass_any_relay(mail: Mail) -> None:
    assert mail.content.isascii()
    assert max(map(len, mail.content.splitlines())) <= 78
    assert len(mail.content) < 30 * 1024


def test_the_text_has_one_link_which_the_html_shows_as_a_button_and_in_full(mail: Mail) -> None:
    assert mail.link.startswith("http://signup.example/verify/")
    assert re.findall(r'href="([^"]+)"', mail.html) == [mail.link, mail.link]
    assert f">{mail.link}</a>" in mail.html


def test_text_and_html_say_the_same(mail: Mail) -> None:
    html = mail.html[mail.html.index("<body") :]
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))
    for line in mail.text.splitlines():
        assert line in words


def test_the_html_loads_nothing_and_has_one_layout_table(mail: Mail) -> None:
    assert '<html lang="en">' in mail.html
    assert re.findall(r'<table[^>]*role="presentation"[^>]*width="600"', mail.html)
    assert mail.html.count("<table") == 1
    assert not re.findall(r"<(?:img|link|script|iframe)|src=|url\(", mail.html)


def luminance(color: str) -> float:
    channels = [int(color[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(
    ("text", "background"),
    [
        ("#1c2430", "#ffffff"),
        ("#1c2430", "#f2f4f7"),
        ("#586274", "#f2f4f7"),
        ("#586274", "#ffffff"),
        ("#1f5fbf", "#ffffff"),
        ("#ffffff", "#1f5fbf"),
        ("#e8ebf0", "#1b212c"),
        ("#e8ebf0", "#11151c"),
        ("#aab3c0", "#11151c"),
        ("#8fbcff", "#1b212c"),
    ],
)
def test_every_text_is_readable_on_its_background(mail: Mail, text: str, background: str) -> None:
    assert text in mail.html
    assert background in mail.html
    light, dark = sorted([luminance(text), luminance(background)], reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5
