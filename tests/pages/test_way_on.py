"""Where people are sent after they sign in, by whichever path, and where nobody is sent."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st

from harness.smtp_server import Server
from harness.visitor import PASSWORD, Visitor
from tests.accounts.test_codes import code_in
from webapp.pages.shared import way_on

Send = Callable[[], None]

APPS = {"APP_URL": "https://app.example/start", "TRUSTED_APPS": "https://wiki.example:8443, http://shop.example"}

OURS = [
    "/",
    "/account/sessions",
    "/a//b?x=1&y=//evil.example#top",
    "/caf%C3%A9/%20x",
    "http://signup.example/account",
    "https://app.example",
    "https://app.example?x=1",
    "https://app.example/elsewhere?x=https://evil.example",
    "https://wiki.example:8443/page",
    "http://shop.example/cart",
]
OTHERS = [
    "",
    "account",
    "//evil.example",
    "///evil.example",
    "/\\evil.example",
    "\\\\evil.example",
    "/\t/evil.example",
    "/\n/evil.example",
    " /account",
    "/account\r\nSet-Cookie: a=b",
    "/\x00",
    "/\x85",
    "/%2fevil.example",
    "/%5cevil.example",
    "/%252fevil.example",
    "/%255cevil.example",
    "/%09/evil.example",
    "/.//evil.example",
    "/x/..//evil.example",
    "/%2e%2e//evil.example",
    "javascript:alert(1)",
    "data:text/html,x",
    "HTTPS://app.example/",
    "https://APP.example/",
    "http://app.example/",
    "https:app.example",
    "https:/app.example",
    "https:///app.example",
    "https://app.example:8443/",
    "https://app.example:443/",
    "https://app.example.evil.example/",
    "https://app.example@evil.example/",
    "https://app.example:pass@evil.example/",
    "https://app.example\\@evil.example/",
    "https://app.example\\evil",
    "https://app.example%40evil.example/",
    "https://app.example\u3002evil.example/",
    "https://app.example.",
    "https://user@app.example/",
    "https://wiki.example/",
    "https://wiki.example:84430/",
    "http://signup.example.evil.example/",
    "http://signup.exampleevil/",
    "https://evil.example/https://app.example/",
    "/" + "x" * 10_000,
]


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return {**environ, **APPS}


@pytest.fixture
def member(visitor: Visitor, send_due: Send, smtp: Server) -> Visitor:
    """A visitor who is signed in, and was sent to the app by that."""
    visitor.sign_up()
    send_due()
    visitor.open(smtp.mails.pop().link)
    assert led_to(visitor, "/verify") == "https://app.example/start"
    return visitor


def login(next_: str) -> str:
    return f"/login?next={quote(next_, safe='')}"


def led_to(visitor: Visitor, action: str, **fields: Any) -> str:
    """Return where the response to this form leads, possibly to another site."""
    return visitor.submit(action, follow=False, **fields).headers["Location"]


def form_of(visitor: Visitor, path: str) -> str:
    """Return the action of the page's form for this path, with its query."""
    found = re.search(rf'action="({path}(\?[^"]*)?)"', visitor.page.text)
    assert found
    return found[1]


def link_to(visitor: Visitor, path: str) -> str:
    found = re.findall(rf'href="({path}(?:\?[^"]*)?)"', visitor.page.text)
    return str(found[-1])


@pytest.mark.parametrize("place", OURS)
def test_what_is_ours_is_followed(app: Flask, place: str) -> None:
    with app.test_request_context():
        assert way_on.accept(place) == place


def test_letters_of_any_script_are_led_to_as_bytes(app: Flask) -> None:
    with app.test_request_context():
        assert way_on.accept("/หน้า") == "/" + quote("หน้า")
        assert way_on.accept("/\uff0fevil.example") == "/%EF%BC%8Fevil.example"


@pytest.mark.parametrize("place", OTHERS)
def test_anything_else_is_ignored(app: Flask, place: str) -> None:
    with app.test_request_context():
        assert way_on.accept(place) is None


PIECES = st.sampled_from(
    [
        *("/", "//", "\\", "@", ":", ".", "..", "?", "#", "%2f", "%5c", "%09", "%0d%0a"),
        *("\t", "\n", "\0", " ", "\uff0f", "\u3002"),
        *("https:", "http:", "HTTP:", "javascript:", "app.example", "signup.example", "evil.example", "443", "x", "é"),
        *("https://app.example", "http://signup.example", "https://wiki.example:8443"),
    ]
)


@given(place=st.lists(PIECES, max_size=8).map("".join) | st.text(max_size=40))
def test_no_text_leads_to_another_site(app_of_module: Flask, place: str) -> None:
    with app_of_module.test_request_context():
        accepted = way_on.accept(place)
    if accepted is not None:
        # As browsers read it: they take a backslash for a slash and drop control characters.
        assert re.fullmatch(r"[!-\[\]-~]+", accepted)
        parts = urlsplit(accepted)
        origin = f"{parts.scheme}://{parts.netloc}" if parts.scheme or parts.netloc else None
        assert origin in {None, "http://signup.example", "https://app.example", "https://wiki.example:8443"}
        assert origin or re.match(r"/(?!/)", accepted)


@pytest.fixture(scope="module")
def app_of_module() -> Flask:
    app = Flask(__name__)
    app.config.update(
        PUBLIC_URL="http://signup.example", APP_URL="https://app.example/", TRUSTED_APPS=["https://wiki.example:8443"]
    )
    return app


def test_who_signs_in_is_led_on(member: Visitor, another_visitor: Visitor) -> None:
    another_visitor.open(login("https://wiki.example:8443/page?a=1&b=2"))
    assert "take you to the page you wanted" in another_visitor.text
    action = form_of(another_visitor, "/login")
    another_visitor.submit(action, identifier="mick19", password="wrong")
    action = form_of(another_visitor, "/login")
    assert led_to(another_visitor, action, identifier="mick19", password=PASSWORD) == (
        "https://wiki.example:8443/page?a=1&b=2"
    )
    # And again for someone who is already signed in.
    assert another_visitor.open(login("/account/sessions"), follow=False).headers["Location"] == "/account/sessions"


@pytest.mark.parametrize("place", ["", "//evil.example", "https://evil.example/"])
def test_who_wanted_nothing_is_led_to_the_app(member: Visitor, another_visitor: Visitor, place: str) -> None:
    another_visitor.open(login(place))
    assert "evil" not in another_visitor.page.text
    action = f"{form_of(another_visitor, '/login')}"
    assert action == "/login"
    assert led_to(another_visitor, action, identifier="mick19", password=PASSWORD) == "https://app.example/start"
    assert another_visitor.open(login(place), follow=False).headers["Location"] == "https://app.example/start"


def test_a_page_that_wants_a_sign_in_is_come_back_to(member: Visitor, another_visitor: Visitor) -> None:
    another_visitor.open("/account/sessions?a=1&b=%2F")
    assert another_visitor.path == "/login"
    action = form_of(another_visitor, "/login")
    assert led_to(another_visitor, action, identifier="mick19", password=PASSWORD) == "/account/sessions?a=1&b=%2F"


def signs_up(visitor: Visitor, next_: str = "https://app.example/cart?a=1&b=2", **fields: str) -> None:
    visitor.open(login(next_))
    visitor.open(link_to(visitor, "/signup"))
    action = form_of(visitor, "/signup")
    typed: dict[str, Any] = {"username": "mick19", "full_name": "", "email": "mick@example.com", "password": PASSWORD}
    visitor.submit(action, **{**typed, "password": "x"})
    visitor.submit(form_of(visitor, "/signup"), **{**typed, **fields})
    assert visitor.path == "/signup/sent"


CART = "https://app.example/cart?a=1&b=2"


def test_the_link_leads_on_where_one_signed_up(visitor: Visitor, send_due: Send, smtp: Server) -> None:
    signs_up(visitor)
    send_due()
    visitor.open(smtp.mails[0].link)
    assert led_to(visitor, "/verify") == CART
    # It is in no email.
    assert b"cart" not in smtp.mails[0].content


def test_the_link_leads_on_in_another_browser(
    visitor: Visitor, another_visitor: Visitor, send_due: Send, smtp: Server
) -> None:
    signs_up(visitor)
    send_due()
    another_visitor.open(smtp.mails[0].link)
    assert led_to(another_visitor, "/verify", password=PASSWORD) == CART
    visitor.open("/signup/sent")
    visitor.open(link_to(visitor, "/login"))
    assert led_to(visitor, form_of(visitor, "/login"), identifier="mick19", password=PASSWORD) == CART


def test_the_code_leads_on_also_after_another_address(visitor: Visitor, send_due: Send, smtp: Server) -> None:
    signs_up(visitor)
    visitor.submit("/signup/email", email="mick@new.example")
    send_due()
    assert led_to(visitor, "/signup/code", code=code_in(smtp.mails[-1])) == CART


def test_who_signs_in_before_verifying_is_led_on_then(
    visitor: Visitor, another_visitor: Visitor, send_due: Send, smtp: Server
) -> None:
    visitor.sign_up()
    another_visitor.open(login("/account/sessions"))
    another_visitor.submit(form_of(another_visitor, "/login"), identifier="mick19", password=PASSWORD)
    assert another_visitor.path == "/signup/sent"
    send_due()
    visitor.open(smtp.mails[0].link)
    assert led_to(visitor, "/verify") == "/account/sessions"


def test_a_new_password_leads_on(member: Visitor, another_visitor: Visitor, send_due: Send, smtp: Server) -> None:
    another_visitor.open(login(CART))
    another_visitor.open(link_to(another_visitor, "/forgot"))
    another_visitor.submit(form_of(another_visitor, "/forgot"), email="mick@example.com")
    send_due()
    another_visitor.open(smtp.mails[0].link)
    assert led_to(another_visitor, "/reset", password="quite another horse") == CART


def test_who_has_an_account_already_is_led_on_by_the_email_that_says_so(
    app: Flask, member: Visitor, another_visitor: Visitor, send_due: Send, smtp: Server
) -> None:
    signs_up(another_visitor, username="mick20")
    send_due()
    (mail,) = smtp.mails
    assert "already have an account" in mail.message["Subject"]
    # Whoever typed the address chose the destination too: the email does not repeat it.
    assert b"cart" not in mail.content
    (link,) = re.findall(r"http://signup.example/login\S*", mail.text)
    assert f'href="{link}"' in mail.html
    phone = Visitor("http://signup.example", app)
    phone.open(link)
    assert "take you to the page you wanted" in phone.text
    assert led_to(phone, form_of(phone, "/login"), identifier="mick19", password=PASSWORD) == CART
    # A signup without a destination, and one that is forgotten.
    another_visitor.sign_up(username="mick21")
    send_due()
    assert "http://signup.example/login\r\n" in smtp.mails[-1].text
    stranger = Visitor("http://signup.example", app)
    stranger.open(f"/login/{uuid.uuid4()}")
    assert form_of(stranger, "/login") == "/login"


@pytest.mark.parametrize("way", ["link", "code", "asked again"])
def test_another_address_leads_on_once_it_is_confirmed(
    app: Flask, member: Visitor, send_due: Send, smtp: Server, way: str
) -> None:
    member.open(f"/account/email?next={quote(CART, safe='')}")
    action = form_of(member, "/account/email")
    member.submit(action, email="new@example.com", password="wrong")
    member.submit(form_of(member, "/account/email"), email="new@example.com", password=PASSWORD)
    if way == "asked again":
        member.submit("/account/email", email="newer@example.com", password=PASSWORD)
    send_due()
    if way == "code":
        assert led_to(member, "/account/email/code", code=code_in(smtp.mails[-1])) == CART
    else:
        phone = Visitor("http://signup.example", app)
        phone.open(smtp.mails[-1].link)
        assert led_to(phone, "/account/email/confirm", password=PASSWORD) == CART
    # And without a destination people see their account, as usual.
    member.open("/account/email")
    member.submit("/account/email", email="third@example.com", password=PASSWORD)
    send_due()
    member.open(smtp.to("third@example.com")[-1].link)
    assert led_to(member, "/account/email/confirm") == "/account"


def test_the_start_page_and_a_link_that_was_used_lead_on(visitor: Visitor, send_due: Send, smtp: Server) -> None:
    visitor.open(f"/?next={quote(CART, safe='')}")
    assert visitor.page.text.count(f'"/signup?next={quote(CART)}"') == 2
    assert visitor.page.text.count(f'"/login?next={quote(CART)}"') == 2
    signs_up(visitor)
    send_due()
    visitor.open(smtp.mails[0].link)
    visitor.submit("/verify", follow=False)
    visitor.http.cookies.clear()
    visitor.open(smtp.mails[0].link)
    assert "Already confirmed" in visitor.text
    assert link_to(visitor, "/login") == f"/login?next={quote(CART)}"


def test_an_app_that_is_trusted_no_more_is_not_led_to(
    app: Flask, visitor: Visitor, send_due: Send, smtp: Server
) -> None:
    signs_up(visitor, "http://shop.example/cart")
    send_due()
    app.config["TRUSTED_APPS"] = []
    visitor.open(smtp.mails[0].link)
    assert led_to(visitor, "/verify") == "https://app.example/start"


@pytest.mark.thai
def test_another_language_forgets_nothing(visitor: Visitor) -> None:
    visitor.open(f"/signup?next={quote(CART, safe='')}")
    found = re.search(r'href="(\?next=[^"]*language=th)"', visitor.page.text)
    assert found
    visitor.open("/signup" + found[1].replace("&amp;", "&"))
    assert form_of(visitor, "/signup") == f"/signup?next={quote(CART)}"


def test_pages_that_are_rendered_once_lead_each_person_on(visitor: Visitor, another_visitor: Visitor) -> None:
    visitor.open(f"/signup?next={quote(CART, safe='')}")
    another_visitor.open("/signup?next=/account")
    assert form_of(another_visitor, "/signup") == "/signup?next=/account"
    another_visitor.open("/signup")
    assert form_of(another_visitor, "/signup") == "/signup"


def test_browsers_may_be_led_there_by_a_form(visitor: Visitor) -> None:
    policy = visitor.open("/login").headers["Content-Security-Policy"]
    assert "form-action 'self' https://app.example https://wiki.example:8443 http://shop.example;" in policy
