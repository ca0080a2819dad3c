"""Two languages: which one a person gets, and that every string is translated."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import urlencode

import pytest
from babel.dates import format_datetime
from babel.messages import Catalog, Message
from flask import Flask

from harness.smtp_server import Server
from harness.visitor import PASSWORD, Visitor
from tests.accounts.test_codes import code_in
from tests.pages.test_ops import operator
from tools import translations
from tools.translations import texts
from webapp import create_app, i18n
from webapp.accounts.users import OWN_FIELDS
from webapp.i18n import SHIPPED, catalogue

Send = Callable[[], None]

pytestmark = pytest.mark.thai

TRANSLATED = [code for code in SHIPPED if code != "en"]
PLACEHOLDER = re.compile(r"%\(\w+\)[sd]")


# The catalogs.


@pytest.fixture(scope="module")
def said() -> Catalog:
    """The strings in code and templates."""
    return translations.extract()


@pytest.mark.parametrize("code", TRANSLATED)
def test_a_catalogue_has_what_the_code_says_and_nothing_else(said: Catalog, code: str) -> None:
    known = {message.id for message in translations.read(catalogue(code))}
    advice = f"run `make translations`, and translate what it names in webapp/translations/{code}.po"
    assert known == {message.id for message in said}, advice
    assert not translations.read(catalogue(code)).obsolete, advice


@pytest.mark.parametrize("code", TRANSLATED)
def test_nothing_is_untranslated_or_guessed(code: str) -> None:
    left = [message.id for message in strings(code) if message.fuzzy or not all(texts(message))]
    assert not left, f"translate this in webapp/translations/{code}.po, or offer English alone by LANGUAGES=en in .env"


@pytest.mark.parametrize("code", TRANSLATED)
def test_a_translation_has_the_values_and_the_spaces_of_its_original(code: str) -> None:
    for message in strings(code):
        original = message.id if isinstance(message.id, str) else message.id[-1]
        for text in texts(message):
            assert sorted(PLACEHOLDER.findall(text)) == sorted(PLACEHOLDER.findall(original)), message.id
            assert text == " ".join(text.split()), message.id


@pytest.mark.parametrize("code", TRANSLATED)
def test_a_pattern_of_dates_gives_the_whole_date(code: str) -> None:
    pattern = i18n.load(code).gettext("d MMMM y, HH:mm 'UTC'")
    # Other letters would mean something to Babel too: literal words are quoted.
    assert re.fullmatch(r"(?:'[^']*'|[dMyGHm]|\W)+", pattern), pattern
    told = format_datetime(datetime(2031, 7, 24, 16, 58, tzinfo=UTC), pattern, locale=code)
    assert all(part in told for part in ("24", "2031", "16:58", "UTC")), told


def test_thai_is_written_in_thai() -> None:
    same = [message.id for message in strings("th") if not re.search("[\u0e00-\u0e7f]", "".join(texts(message)))]
    assert same == ["HTML"]


def test_what_the_password_meter_says_is_in_the_catalogues(said: Catalog) -> None:
    assert "Dates are often easy to guess." in said


def test_a_language_without_a_catalogue_is_english() -> None:
    assert i18n.load("xx").gettext("Sign in") == "Sign in"


def strings(code: str) -> list[Message]:
    # The first is the header.
    return [message for message in translations.read(catalogue(code)) if message.id]


# Which language.


@pytest.mark.parametrize(
    ("wish", "given"),
    [
        ("th", "th"),
        ("th-TH,th;q=0.9,en;q=0.8", "th"),
        ("fr,th;q=0.5", "th"),
        ("en-GB,th;q=0.9", "en"),
        ("fr", "en"),
        ("", "en"),
        ("*;q=x, ;;", "en"),
    ],
)
def test_the_browser_asks_for_a_language(visitor: Visitor, wish: str, given: str) -> None:
    visitor.http.headers["Accept-Language"] = wish
    assert f'<html lang="{given}">' in visitor.open("/").text


def test_the_person_chooses_another_and_every_page_remembers(visitor: Visitor) -> None:
    visitor.http.headers["Accept-Language"] = "en"
    page = visitor.open("/login").text
    assert re.search(r'href="\?language=th"\s+lang="th"\s+hreflang="th"', page)
    for url in ("/login?language=th", "/signup", "/nowhere"):
        assert '<html lang="th">' in visitor.open(url).text
    visitor.open("/nowhere?language=en")
    assert '<html lang="en">' in visitor.open("/").text


def test_the_choice_changes_nothing_else(visitor: Visitor) -> None:
    visitor.sign_up()
    visitor.open("/signup/sent?language=th")
    assert visitor.path == "/signup/sent"
    assert "mick@example.com" in visitor.text


@pytest.mark.parametrize("choice", ["xx", "", "th%0d%0aX: 1", "../en", "%00"])
def test_a_language_that_we_do_not_speak_is_no_choice(visitor: Visitor, choice: str) -> None:
    page = visitor.open(f"/?language={choice}")
    assert page.status_code == 200
    assert "set-cookie" not in page.headers
    visitor.http.cookies.set("language", "xx")
    assert '<html lang="en">' in visitor.open("/").text


def test_over_https_the_choice_is_kept_as_safely_as_the_session(environ: dict[str, str]) -> None:
    app = create_app({**environ, "PUBLIC_URL": "https://signup.example"})
    cookie = Visitor("https://signup.example", app).open("/?language=th").headers["set-cookie"]
    assert cookie.startswith("__Host-language=th; ")
    assert {"Secure", "HttpOnly", "Path=/", "SameSite=Lax"} <= set(cookie.split("; "))


def test_a_page_that_a_form_brought_back_leads_to_itself_in_the_other_language(app: Flask) -> None:
    posts = [rule for rule in app.url_map.iter_rules() if "POST" in (rule.methods or ())]
    assert len(posts) > 5
    for rule in posts:
        visitor = Visitor("http://signup.example", app)
        visitor.sign_up()
        visitor.page = visitor.http.post(rule.rule, data={"csrf_token": "bad"})
        # Some redirect, and some responses are not pages.
        if visitor.page.history or not visitor.page.headers["content-type"].startswith("text/html"):
            continue
        visitor.submit("/language", language="th")
        assert visitor.page.status_code in {200, 403, 404}, rule.rule
        assert '<html lang="th">' in visitor.page.text


def test_a_page_that_a_strangers_form_brought_back_leads_to_itself_too(visitor: Visitor) -> None:
    for path in ("/signup", "/login", "/forgot"):
        visitor.page = visitor.http.post(path, data={"csrf_token": "bad"})
        found = re.search(r'href="([^"]*\?language=th)"', visitor.page.text)
        assert found, path
        visitor.open(str(visitor.page.url.join(found[1])))
        assert visitor.path == path
        assert '<html lang="th">' in visitor.page.text


# What people read.


@pytest.fixture
def thai(visitor: Visitor) -> Visitor:
    visitor.http.headers["Accept-Language"] = "th-TH"
    return visitor


# Here your own words are not translated: tools/own_words.py asks for that.
YOUR_WORDS = [str(column.info[name]) for column in OWN_FIELDS for name in ("label", "hint") if name in column.info]


def without(page: Visitor, *texts: str) -> str:
    """Return the page's text without these, and without your own words."""
    return re.sub("|".join([*texts, *map(re.escape, YOUR_WORDS)]), "", page.text)


def assert_all_thai(page: Visitor) -> None:
    """Fail if an English word is left, except for what has no other name."""
    # The language switch names each language in that language; the rest is the test's own, or an example.
    own = r"English|mick19|mick@example\.com|m•+@example\.com|name@example\.com|Acme|HTML|UTC|Mick Example"
    own += r"|new@example\.com|n•+@example\.com|JSON|IP"
    words = f"{without(page, own)} {re.sub(own, '', ' '.join(attributes(page.page.text)))}"
    assert re.findall("[\u0e00-\u0e7f]{2,}", words), page.path
    assert re.findall(r"[A-Za-z]{2,}", words) == [], page.path


def attributes(html: str) -> list[str]:
    """Return what a screen reader reads, and the title."""
    named = re.findall(r'(?:aria-label|placeholder|title|alt)="([^"]*)"', html)
    return [*named, *re.findall(r"<title>(.*?)</title>", html, re.DOTALL)]


def test_all_of_a_signup_is_in_thai(thai: Visitor, send_due: Send, smtp: Server) -> None:
    assert_all_thai_at(thai, "/", "/login", "/signup", "/verify", "/nowhere")
    thai.sign_up(full_name="Mick Example")
    assert_all_thai(thai)
    assert re.search("เราจะส่งอีเมลในอีก (?:9|10) วินาที", thai.text)
    send_due()
    thai.open("/signup/sent")
    assert_all_thai(thai)
    assert re.search(r"ส่งแล้วเมื่อ \d+ วินาทีที่ผ่านมา", thai.text)
    (mail,) = smtp.mails
    thai.open(mail.link)
    assert_all_thai(thai)
    thai.submit("/verify", action="disown")
    assert_all_thai(thai)
    thai.submit("/verify/undo")
    thai.submit("/verify")
    assert thai.path == "/account"
    assert_all_thai(thai)
    thai.open(mail.link)
    assert_all_thai(thai)


@pytest.mark.usefixtures("cheap_passwords")
def test_all_of_an_account_is_in_thai(thai: Visitor, send_due: Send, smtp: Server) -> None:
    thai.sign_up()
    send_due()
    thai.open(smtp.mails[0].link)
    thai.submit("/verify")
    assert_all_thai_at(thai, "/logout")
    assert_all_thai_at(thai, *(f"/account{path}" for path in ("", "/profile", "/sessions", "/export", "/delete")))
    thai.submit("/account/delete", password="not the password")
    assert_all_thai(thai)
    thai.open("/account/email")
    assert_all_thai(thai)
    for address, password in (("@", ""), ("mick@example.com", "x"), ("new@example.com", "x")):
        thai.submit("/account/email", email=address, password=password)
        assert_all_thai(thai)
    thai.submit("/account/email", email="new@example.com", password=PASSWORD)
    assert_all_thai(thai)
    send_due()
    thai.open("/account/email")
    assert_all_thai(thai)
    link = smtp.mails[-1].link
    thai.open(link)
    assert_all_thai(thai)
    thai.submit("/account/email/confirm")
    assert_all_thai(thai)
    send_due()
    assert_all_thai_at(thai, link, "/account/email/confirm/x", smtp.mails[-1].link, "/account/email/revoke/x")
    thai.open(smtp.mails[-1].link)
    thai.submit("/account/email/revoke")
    assert_all_thai(thai)
    assert [mail.message["Subject"] for mail in smtp.mails[1:]] == [
        f"{code_in(smtp.mails[1])} คือรหัสยืนยัน Acme ของคุณ",
        "อีเมลของบัญชี Acme ถูกเปลี่ยนแล้ว",
    ]
    assert re.search(r"เมื่อ \d+ \S+ ค\.ศ\. \d{4} เวลา \d\d:\d\d น\. \(UTC\) ผ่าน", smtp.mails[-1].text)


def test_all_that_a_form_can_say_is_in_thai(thai: Visitor) -> None:
    for typed in (
        {"username": "", "email": "", "password": ""},
        {"username": "@", "full_name": "x" * 200, "email": "@@", "password": "x"},
        {"username": "x" * 200, "full_name": "a\0b", "email": "a" * 300, "password": "x" * 200},
        {"password": "password"},
        {"password": "qwertyuiop"},
        {"password": "aaaaaaaa"},
        {"password": "20112012"},
        {"password": "mick19mick19"},
        {"csrf_token": "bad"},
    ):
        thai.sign_up(**typed)
        assert thai.page.status_code in {400, 422}
        assert_all_thai_but(thai, typed)
    for identifier, password in (("", ""), ("x" * 300, "x" * 200), ("nobody", PASSWORD)):
        thai.open("/login")
        thai.submit("/login", identifier=identifier, password=password)
        assert_all_thai_but(thai, {"identifier": identifier})
    thai.sign_up()
    for code in ("", "1" * 30, *["000000"] * 6):
        thai.submit("/signup/code", code=code)
        assert_all_thai_but(thai, {"code": code})
    for address in ("", "@"):
        thai.submit("/signup/email", email=address)
        assert_all_thai_but(thai, {})


def assert_all_thai_at(thai: Visitor, *paths: str) -> None:
    for path in paths:
        thai.open(path)
        assert_all_thai(thai)


def assert_all_thai_but(thai: Visitor, typed: dict[str, str]) -> None:
    # Examples within the password meter's advice.
    examples = '"(?:aaa|abc|abcabcabc)"'
    words = without(thai, examples, "name@example.com", "English", "mick@example.com", "Acme")
    assert re.findall(r"[A-Za-z]{2,}", words) == [], typed


def test_mail_is_in_the_language_of_the_signup(thai: Visitor, send_due: Send, smtp: Server) -> None:
    thai.sign_up()
    # What the browser prefers later does not change an email that is already promised.
    thai.http.headers["Accept-Language"] = "en"
    send_due()
    (mail,) = smtp.mails
    assert mail.message["Subject"].endswith(" คือรหัสยืนยัน Acme ของคุณ")
    assert '<html lang="th">' in mail.html
    assert mail.link.startswith("http://signup.example/verify/")
    assert "ยืนยันอีเมลนี้" in mail.html


def test_mails_follow_the_language_that_one_chooses_while_waiting(thai: Visitor, send_due: Send, smtp: Server) -> None:
    thai.sign_up()
    # The first one was not sent yet.
    thai.submit("/language", language="en")
    assert thai.path == "/signup/sent"
    send_due()
    thai.submit("/language", language="th")
    thai.submit("/signup/resend")
    send_due()
    first, second = (mail.message["Subject"] for mail in smtp.mails)
    assert first.endswith(" is your Acme code")
    assert second.endswith(" คือรหัสยืนยัน Acme ของคุณ")


def test_mails_follow_the_language_that_one_chooses_while_signed_in(
    visitor: Visitor, another_visitor: Visitor, send_due: Send, smtp: Server
) -> None:
    visitor.sign_up()
    send_due()
    visitor.open(smtp.mails[0].link)
    visitor.submit("/verify")
    visitor.submit("/language", language="th")
    assert visitor.path == "/account"
    another_visitor.sign_up(username="rival", password=f"{PASSWORD} too")
    send_due()
    assert smtp.mails[1].message["Subject"] == "คุณมีบัญชี Acme อยู่แล้ว"


def test_who_has_an_account_is_written_to_in_the_own_language(
    thai: Visitor, another_visitor: Visitor, send_due: Send, smtp: Server
) -> None:
    thai.sign_up()
    send_due()
    thai.open(smtp.mails[0].link)
    thai.submit("/verify")
    another_visitor.http.headers["Accept-Language"] = "en"
    another_visitor.sign_up(username="rival", password=f"{PASSWORD} too")
    send_due()
    assert smtp.mails[1].message["Subject"] == "คุณมีบัญชี Acme อยู่แล้ว"
    assert '<html lang="th">' in smtp.mails[1].html


def test_what_operators_filter_wrongly_is_told_in_thai(app: Flask) -> None:
    thai = operator(app)
    thai.http.headers["Accept-Language"] = "th"
    wrong = {"status": "x", "code": "x", "user": "0", "since": "x", "address": "x" * 300}
    thai.open(f"/ops/mails?{urlencode(wrong)}")
    assert thai.page.status_code == 422
    for error in re.findall(r'<small id="\w+-error" class="error">(.*?)</small>', thai.page.text):
        assert not re.search("[A-Za-z]", error)
        wrong.popitem()
    assert not wrong
