"""Every email as it arrives: its form, line by line."""

from __future__ import annotations

import itertools
import re
import struct
import time
import zlib
from base64 import b64encode
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from flask import Flask
from flask_mail import Attachment
from jinja2 import TemplateSyntaxError

from harness.smtp_server import Mail, Server
from harness.visitor import PASSWORD, Visitor
from tests.conftest import Embedded
from webapp import create_worker, devmail, theme
from webapp.emails import render
from webapp.outbox import kinds
from webapp.setting_types import MAIL_LOGO_MAX, parse_mail_logo
from webapp.smtp.message import Message

Send = Callable[[], None]

ADDRESS = "mick@example.com"

# Emails look the same whatever the database.
pytestmark = [
    pytest.mark.usefixtures("cheap_passwords"),
    pytest.mark.parametrize("backend", [Embedded.name], indirect=True),
]


@pytest.fixture
def arrive(
    app: Flask, visitor: Visitor, another_visitor: Visitor, send_due: Send, smtp: Server
) -> Callable[[str], Mail]:
    """Do what leads to an email of this kind, and return the email."""
    app.config["MAIL_REPLY_TO"] = "help@acme.example"

    def verify() -> None:
        visitor.sign_up(full_name="Mick Example")

    def exists() -> None:
        visitor.open(smtp.mails[-1].link)
        visitor.submit("/verify")
        another_visitor.sign_up(username="rival", full_name="Rival Example")

    def reset() -> None:
        another_visitor.open("/forgot")
        another_visitor.submit("/forgot", email=ADDRESS)

    def changed() -> None:
        another_visitor.open(smtp.mails[-1].link)
        another_visitor.submit("/reset", password="another horse battery")

    def arrive(kind: str) -> Mail:
        for step in (verify, exists, reset, changed):
            step()
            send_due()
            if step.__name__ == kind:
                break
        return smtp.mails[-1]

    return arrive


@pytest.fixture
def notice(app: Flask, visitor: Visitor, send_due: Send, smtp: Server) -> Callable[[str], Mail]:
    """Change the account this way, and return the notice about it."""
    app.config["MAIL_REPLY_TO"] = "help@acme.example"

    def sign_up(address: str) -> None:
        visitor.sign_up(email=address, full_name="Mick Example")
        send_due()
        visitor.open(smtp.mails[-1].link)
        visitor.submit("/verify")

    def act(page: str, **fields: str) -> None:
        visitor.open(page)
        visitor.submit(page, **fields)  # type: ignore[arg-type]
        send_due()

    def notice(kind: str) -> Mail:
        first, second = ("other@example.com", ADDRESS) if kind == "new address" else (ADDRESS, "other@example.com")
        sign_up(first)
        if kind == "new username":
            act("/account/profile", username="rival", full_name="Rival")
        elif kind == "deleted":
            act("/account/delete", password=PASSWORD)
        else:
            act("/account/email", email=second, password=PASSWORD)
        if kind == "former address":
            visitor.open(smtp.mails[-1].link)
            visitor.submit("/account/email/confirm")
            send_due()
        return smtp.mails[-1]

    return notice


ARRIVED: dict[str, Mail] = {}

OF_ACCOUNTS = ("new address", "former address", "new username", "deleted")


@pytest.fixture(params=["verify", "exists", "reset", "changed", *OF_ACCOUNTS])
def mail(request: pytest.FixtureRequest, arrive: Callable[[str], Mail], notice: Callable[[str], Mail]) -> Mail:
    """Each kind of email, which arrives once for all tests: they only read it."""
    kind: str = request.param
    if kind not in ARRIVED:
        ARRIVED[kind] = notice(kind) if kind in OF_ACCOUNTS else arrive(kind)
    return ARRIVED[kind]


@pytest.fixture
def verify_mail(arrive: Callable[[str], Mail]) -> Mail:
    return arrive("verify")


@pytest.fixture
def exists_mail(arrive: Callable[[str], Mail]) -> Mail:
    return arrive("exists")


@pytest.fixture
def reset_mail(arrive: Callable[[str], Mail]) -> Mail:
    return arrive("reset")


def test_the_alternatives_are_on_top_text_first(mail: Mail) -> None:
    assert mail.message.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in mail.message.iter_parts()] == ["text/plain", "text/html"]


def test_the_headers_say_who_what_and_that_no_person_wrote_it(mail: Mail) -> None:
    headers = mail.message
    assert re.fullmatch(r"<[0-9a-f-]{36}@signup\.example>", headers["Message-ID"])
    assert re.sub(r"^\d{3} \d{3} ", "123 456 ", headers["Subject"]) in SUBJECTS.values()
    assert headers["From"] == "Acme <no-reply@signup.example>"
    assert headers["To"] == ADDRESS
    assert headers["Reply-To"] == "help@acme.example"
    assert headers["Auto-Submitted"] == "auto-generated"
    arrived_at = time.time() - (time.monotonic() - mail.at)
    assert abs(parsedate_to_datetime(headers["Date"]).timestamp() - arrived_at) < 60
    assert headers.defects == []


SUBJECTS = {
    "account_deleted": "Your Acme account was deleted",
    "account_exists": "You already have an account with Acme",
    "account_removed": "Your Acme account was deleted",
    "address_changed": "Your Acme address was changed",
    "change_email": "123 456 is your Acme code",
    "password_changed": "Your Acme password was changed",
    "recovery_code_used": "A recovery code for Acme was used",
    "recovery_codes_made": "New recovery codes for Acme",
    "reset_password": "Set a new password for Acme",
    "second_factor_off": "Your Acme second factor was turned off",
    "second_factor_on": "Your Acme second factor was turned on",
    "second_factor_reset": "Your Acme second factor was reset",
    "test": "Test email from Acme",
    "username_changed": "Your Acme username was changed",
    "verify_email": "123 456 is your Acme code",
}


def test_the_subject_says_what_it_is_about(app: Flask) -> None:
    with app.app_context():
        assert {template: render.sample(template).subject for template in kinds.TEMPLATES} == SUBJECTS


def test_its_lines_pass_any_relay(mail: Mail) -> None:
    assert mail.content.isascii()
    assert max(map(len, mail.content.splitlines())) <= 78
    assert len(mail.content) < 30 * 1024


def test_the_verify_mail_has_one_link_which_the_html_shows_as_a_button_and_in_full(verify_mail: Mail) -> None:
    assert verify_mail.link.startswith("http://signup.example/verify/")
    assert re.findall(r'href="([^"]+)"', verify_mail.html) == [verify_mail.link, verify_mail.link]
    assert re.search(
        rf'<a class="button" style="[^"]+" href="{verify_mail.link}">Confirm this address</a>', verify_mail.html
    )
    assert f">{verify_mail.link}</a>" in verify_mail.html


def test_the_code_is_what_is_seen_first(verify_mail: Mail) -> None:
    (code,) = re.findall(r"^(\d{3} \d{3})\s*$", verify_mail.text, re.MULTILINE)
    assert verify_mail.message["Subject"] == f"{code} is your Acme code"
    assert shown(verify_mail.html).startswith(f"Acme Is this your address? {code} ")


def test_words_for_the_inbox_hide_by_nothing_that_filters_take_for_spams(mail: Mail) -> None:
    (style,) = re.findall(r'class="preheader" style="([^"]+)"', mail.html)
    assert "max-height: 0; overflow: hidden;" in style
    assert "mso-hide: all;" in style
    assert not re.search("color|display|visibility|opacity", style)
    assert re.search(r"\.preheader \{\s*display: none;", mail.html)


def test_the_reset_mail_has_one_link_which_the_html_shows_as_a_button_and_in_full(reset_mail: Mail) -> None:
    assert reset_mail.link.startswith("http://signup.example/reset/")
    assert re.findall(r'href="([^"]+)"', reset_mail.html) == [reset_mail.link, reset_mail.link]
    assert re.search(
        rf'<a class="button" style="[^"]+" href="{reset_mail.link}">Set a new password</a>', reset_mail.html
    )
    assert not re.search(r"\d{3} ?\d{3}", reset_mail.text.replace(reset_mail.link, ""))


def test_who_has_an_account_is_led_to_signing_in_or_to_another_password_and_gets_neither_link_nor_code(
    exists_mail: Mail,
) -> None:
    login, forgot = "http://signup.example/login", "http://signup.example/forgot"
    assert re.findall(r"http\S+", exists_mail.text) == [login, forgot]
    assert re.findall(r'href="([^"]+)"', exists_mail.html) == [login, login, forgot]
    for part in (exists_mail.text, shown(exists_mail.html)):
        assert "/verify" not in part
        assert not re.search(r"\d{3} ?\d{3}", part)


def test_nothing_that_the_person_typed_but_the_address_is_in_it(mail: Mail) -> None:
    for part in (mail.text, mail.html, mail.content.decode()):
        assert not re.search("mick19|Mick|rival|Rival", part)
    assert ADDRESS in mail.text


def test_text_and_html_say_the_same(mail: Mail) -> None:
    assert_equal(mail.text, mail.html)


def test_text_and_html_of_every_notice_say_the_same(app: Flask) -> None:
    with app.app_context():
        for template in kinds.NOTICES:
            sample = render.sample(template)
            assert_equal(sample.body or "", sample.html or "")
            assert "\ue000" not in sample.content.decode()


def assert_equal(text: str, html: str) -> None:
    # Except for how to follow the link: the text shows it in full, the HTML also as a button.
    html = shown(re.sub(r'<p class="action".*?</p>', "", html))
    html = html.replace("Click the button", "Open this link").replace("click the button", "open this link")
    html = html.replace("If the button doesn't work, copy this into your browser:", "")
    for line in filter(None, text.splitlines()):
        assert line in html
        html = html.replace(line, "", 1)
    assert html.split() == []


def test_the_html_loads_nothing_and_has_one_layout_table(mail: Mail) -> None:
    assert '<html lang="en">' in mail.html
    assert re.findall(r'<table[^>]*role="presentation"[^>]*width="600"', mail.html)
    assert mail.html.count("<table") == 1
    assert not re.findall(r"<(?:img|link|script|iframe|object|form)|src=|url\(|@import", mail.html)


@pytest.fixture
def logo(app: Flask, tmp_path: Path) -> bytes:
    """A logo of the maximum size in bytes."""
    drawn = png(160, 64)
    path = tmp_path / "logo.png"
    path.write_bytes(drawn + bytes(MAIL_LOGO_MAX - len(drawn)))
    app.config["MAIL_LOGO"] = parse_mail_logo(str(path))
    return path.read_bytes()


def png(width: int, height: int) -> bytes:
    """Return a picture of this size, in a single color."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress((b"\0" + b"\x3b\x4c\xca" * width) * height)),
        (b"IEND", b""),
    ]
    written = (
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def test_a_logo_travels_with_the_html_and_the_text_stays_first(logo: bytes, verify_mail: Mail) -> None:
    text, related = verify_mail.message.iter_parts()
    assert (text.get_content_type(), related.get_content_type()) == ("text/plain", "multipart/related")
    html, picture = related.iter_parts()
    assert html.get_content_type() == "text/html"
    assert (picture.get_content_type(), picture.get_content()) == ("image/png", logo)
    assert picture["Content-Disposition"] == "inline"
    name = picture["Content-ID"].strip("<>")
    (tag,) = re.findall("<img[^>]*>", verify_mail.html)
    assert f'src="cid:{name}" alt="Acme" width="80" height="32"' in tag
    assert re.findall("src=|url\\(", verify_mail.html) == ["src="]
    assert all(len(line) <= 78 for line in verify_mail.content.decode("ascii").splitlines())


@pytest.mark.usefixtures("logo")
def test_with_the_heaviest_logo_every_mail_is_under_30_kilobytes_in_every_language(app: Flask) -> None:
    with app.app_context():
        for template, language in itertools.product(kinds.TEMPLATES, app.config["LANGUAGES"]):
            assert len(render.sample(template, language).content) < 30_000, (template, language)


def test_a_logo_is_there_beside_an_attachment_too_and_in_what_a_browser_shows(app: Flask, logo: bytes) -> None:
    with app.app_context():
        message = render.sample("test")
        message.attachments = [Attachment("note.txt", "text/plain", b"attached")]
        arrived = devmail.parse("1", message.content)
        shown = f'src="data:image/png;base64,{b64encode(logo).decode()}"'
        assert shown in arrived.html_with_pictures
        # And a search in the email's text does not search the logo's base64.
        assert not arrived.has("iVBORw0KGgo")
        assert shown in render.document(message)


def test_it_looks_right_where_stylesheets_are_dropped(mail: Mail) -> None:
    for tag in re.findall(r"<[^>]*class=[^>]*>", mail.html):
        assert re.search(r'style="[^"]+"', tag), tag


def test_it_says_that_it_knows_the_dark(mail: Mail) -> None:
    assert '<meta name="color-scheme" content="light dark">' in mail.html
    assert "@media (prefers-color-scheme: dark)" in mail.html


ACCENTS = ("#3b4cca", "#000000", "#7a0000", "#0b6e4f", "#5a5a00")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_is_readable_on_its_background_whatever_the_accent(app: Flask, scheme: str) -> None:
    for template, accent in itertools.product(kinds.TEMPLATES, ACCENTS):
        app.config["APP_ACCENT"] = theme.accent(accent)
        with app.app_context():
            html = render.sample(template).html or ""
        reader = Colors(dark_rules(html) if scheme == "dark" else {})
        reader.feed(html)
        assert len(reader.seen) >= 4
        for text, color, background in reader.seen:
            assert contrast(color, background) >= 4.5, f"{text}: {color} on {background}"
        assert ({"#ffffff", "#f6f5f2"} <= {seen[2] for seen in reader.seen}) is (scheme == "light")


def test_the_button_and_the_links_have_the_accent(app: Flask) -> None:
    app.config["APP_ACCENT"] = "#0b6e4f"
    with app.app_context():
        html = render.sample(kinds.VERIFY_TEMPLATE).html or ""
    (button,) = re.findall(r'class="button" style="([^"]+)"', html)
    assert "background: #0b6e4f; color: #ffffff;" in button
    (link,) = re.findall(r'class="link" style="([^"]+)"', html)
    assert "color: #0b6e4f;" in link
    night = theme.of_mails("#0b6e4f")["night_accent"]
    assert f"background: {night}" in dark_rules(html)["button"]
    assert "var(" not in html


def test_mails_of_a_kind_share_what_is_rendered_and_nothing_of_each_other(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rendered(address: str, code: str, link: str) -> Message:
        return render.render(kinds.VERIFY_TEMPLATE, "en", address, code=code, link=link)

    first = ("mick@example.com", "482 913", "http://signup.example/verify/x?a&b")
    with app.app_context():
        before = rendered(*first)
        monkeypatch.setattr(render, "render_frame", None)
        other, again = (
            rendered("<b>\ue000code\ue001@example.com", "111 222", "http://signup.example/verify/y"),
            rendered(*first),
        )
    assert (before.body, before.html) == (again.body, again.html)
    assert "http://signup.example/verify/x?a&amp;b" in (before.html or "")
    assert "&lt;b&gt;\ue000code\ue001@example.com" in (other.html or "")
    assert not any(own in f"{other.body}{other.html}" for own in first)


def test_a_class_without_a_style_is_told_when_the_template_loads(app: Flask) -> None:
    with pytest.raises(TemplateSyntaxError, match=r"mail/inlined\.css has no style for nothing-like-it"):
        app.jinja_env.preprocess('<p class="nothing-like-it">', "mail/x/body.html")


def shown(html: str, *, hidden: bool = False) -> str:
    """Return the words of the email; with `hidden`, those that only an inbox shows."""
    body = html[html.index("<body") :]
    if not hidden:
        body = re.sub(r'<div class="preheader".*?</div>', "", body, flags=re.DOTALL)
    # Only these appear in the middle of a sentence.
    body = re.sub(r"</?strong[^>]*>", "", body)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def dark_rules(html: str) -> dict[str, str]:
    """Return the dark-mode rules of each class."""
    block = html[html.index("@media (prefers-color-scheme: dark)") : html.index("@media (max-width")]
    found: dict[str, str] = {}
    for selectors, style in re.findall(r"([.\w,\s-]+)\{([^{}]*)\}", block):
        for selector in selectors.split(","):
            found[selector.strip().removeprefix(".")] = style.replace("!important", "")
    return found


class Colors(HTMLParser):
    """Collects each text with its color and the color behind it."""

    def __init__(self, rules: dict[str, str]) -> None:
        super().__init__()
        self.rules = rules
        self.open: list[tuple[str, dict[str, str]]] = []
        self.seen: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in {"meta", "br"}:
            return
        given = {name: value or "" for name, value in attributes}
        style = dict(self.open[-1][1]) if self.open else {"color": "#000000", "background": "#ffffff"}
        own = [given.get("style", ""), *(self.rules.get(name, "") for name in given.get("class", "").split())]
        for name, value in re.findall(r"([\w-]+):\s*([^;]+);", ";".join(own) + ";"):
            if name in {"color", "background"}:
                style[name] = value.strip()
            elif (name, value) in {("display", "none"), ("max-height", "0")}:
                style["display"] = "none"
        self.open.append((tag, style))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        style = self.open[-1][1] if self.open else {}
        is_text = "body" in [tag for tag, _style in self.open]
        if data.strip() and is_text and style.get("display") != "none":
            self.seen.append((data.strip(), style["color"], style["background"]))


def contrast(one: str, other: str) -> float:
    """Return the WCAG contrast ratio of two colors, from 1 to 21."""
    light, dark = sorted([luminance(one), luminance(other)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(color: str) -> float:
    channels = [int(color[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("template", kinds.TEMPLATES)
def test_a_worker_writes_what_the_web_shows(app: Flask, environ: dict[str, str], template: str) -> None:
    written = []
    for each in (app, create_worker(environ)):
        with each.app_context():
            sample = render.sample(template, list(app.config["LANGUAGES"])[-1])
            written.append((sample.subject, sample.body, sample.html, sample.alts))
    assert written[0] == written[1]
    assert "Acme" in str(written[0])
