"""The journeys of visitors: signing up and verifying in every way, signing in, changing and deleting accounts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from chaos.soak.town import PATIENCE, Browser, Journey, Unexpected, Visit
from harness.smtp_server import Mail
from harness.visitor import PASSWORD

# Newcomers.


def click(visit: Visit) -> None:
    """Open the link, which a mail scanner may have opened first, and confirm."""
    begun = time.monotonic()
    own = visit.sign_up()
    link = path_of(visit.mail("/verify/", since=begun, watching=own))
    if visit.chance(0.35):
        scanner = visit.browser()
        scanner.http.head(link)
        for _ in range(2):
            scanner.open(link)
            scanner.must_be_at("/verify")
    own.open(link)
    visit.think()
    own.submit("/verify")
    own.must_be_at("/account")
    visit.is_member = True
    if visit.chance(0.5):
        sign_out(own)


def click_elsewhere(visit: Visit) -> None:
    begun = time.monotonic()
    own = visit.sign_up()
    other = visit.browser()
    other.open(path_of(visit.mail("/verify/", since=begun, watching=own)))
    visit.think()
    other.submit("/verify", password=visit.account.password)
    other.must_be_at("/account")
    visit.is_member = True
    own.open("/signup/sent/progress")
    own.open("/signup/sent")


def type_code(visit: Visit) -> None:
    _type_code(visit, wrong_first=False)


def mistype_code(visit: Visit) -> None:
    _type_code(visit, wrong_first=True)


def _type_code(visit: Visit, *, wrong_first: bool) -> None:
    begun = time.monotonic()
    own = visit.sign_up()
    code = visit.mail("/verify/", since=begun, watching=own).code
    own.open("/signup/sent")
    if wrong_first:
        own.submit("/signup/code", code=f"{(int(code) + 1) % 1_000_000:06}")
        own.must_be_refused()
        visit.think()
    own.submit("/signup/code", code=code)
    own.must_be_at("/account")
    visit.is_member = True


def ask_again(visit: Visit) -> None:
    begun = time.monotonic()
    own = visit.sign_up()
    visit.mail("/verify/", since=begun, watching=own)
    own.open("/signup/sent")
    asked = time.monotonic()
    own.submit("/signup/resend")
    own.must_be_at("/signup/sent")
    own.open(path_of(visit.mail("/verify/", since=asked, watching=own)))
    own.submit("/verify")
    own.must_be_at("/account")
    visit.is_member = True


def mend_address(visit: Visit) -> None:
    own = visit.sign_up(email=f"mistyped-{visit.account.email}")
    _mend(visit, own)


def be_refused(visit: Visit) -> None:
    """Sign up with an address that does not exist; the page says so, and some correct it."""
    own = visit.sign_up(email=f"refused-{visit.account.email}")
    begun = time.monotonic()
    while 'data-state="failed"' not in own.page.text:
        if time.monotonic() > begun + PATIENCE:
            raise Unexpected(f"the page did not tell of the refusal within {PATIENCE:.0f} s")
        visit.wait(1)
        own.open("/signup/sent")
    if visit.chance(0.5):
        _mend(visit, own)


def _mend(visit: Visit, own: Browser) -> None:
    begun = time.monotonic()
    own.submit("/signup/email", email=visit.account.email)
    own.must_be_at("/signup/sent")
    code = visit.mail("/verify/", since=begun, watching=own).code
    own.open("/signup/sent")
    own.submit("/signup/code", code=code)
    own.must_be_at("/account")
    visit.is_member = True


def never_look(visit: Visit) -> None:
    own = visit.sign_up()
    for _ in range(3):
        visit.wait(1)
        own.open("/signup/sent/progress")


def disown(visit: Visit) -> None:
    """Have the owner of the address say that they did not sign up."""
    begun = time.monotonic()
    visit.sign_up()
    owner = visit.browser()
    owner.open(path_of(visit.mail("/verify/", since=begun)))
    owner.submit("/verify", action="disown")
    if "/verify/undo" not in owner.page.text:
        raise Unexpected(f"not disowned: {owner.text[:200]}")


# People who have an account.


def come_in(visit: Visit) -> None:
    browser = visit.sign_in()
    browser.http.get("/auth").raise_for_status()
    browser.open("/account/sessions")
    visit.think()
    browser.open("/account")
    if visit.chance(0.7):
        sign_out(browser)


def mistype_password(visit: Visit) -> None:
    browser = visit.browser()
    browser.open("/login")
    browser.submit("/login", identifier=visit.account.username, password="wrong horse")  # noqa: S106 - opens nothing
    browser.must_be_refused()
    visit.sign_in()


def forget_password(visit: Visit) -> None:
    browser = visit.browser()
    browser.open("/forgot")
    begun = time.monotonic()
    browser.submit("/forgot", email=visit.account.email)
    browser.must_be_at("/forgot/sent")
    browser.open(path_of(visit.mail("/reset/", since=begun)))
    password = another_password(visit)
    browser.submit("/reset", password=password)
    browser.must_be_at("/account")
    visit.account.password = password


def another_password(visit: Visit) -> str:
    return f"{PASSWORD} {visit.rng.randrange(10**6)}"


def change_password(visit: Visit) -> None:
    browser = visit.sign_in()
    browser.open("/account/password")
    password = another_password(visit)
    browser.submit("/account/password", password=visit.account.password, new_password=password)
    browser.must_be_at("/account")
    visit.account.password = password


def move(visit: Visit) -> None:
    """Change the address, confirmed by link or by code."""
    browser = visit.sign_in()
    browser.open("/account/email")
    address = f"moved{visit.rng.randrange(10**9)}@town.example"
    begun = time.monotonic()
    browser.submit("/account/email", email=address, password=visit.account.password)
    browser.must_be_at("/account/email")
    mail = visit.mail("/account/email/confirm/", address, since=begun)
    if visit.chance(0.5):
        browser.open(path_of(mail))
        browser.submit("/account/email/confirm")
    else:
        browser.open("/account/email")
        browser.submit("/account/email/code", code=mail.code)
    browser.must_be_at("/account")
    visit.account.email = address


def sign_up_again(visit: Visit) -> None:
    """Sign up although there is an account, and be told by email."""
    begun = time.monotonic()
    visit.sign_up(username=f"again{visit.rng.randrange(10**9)}")
    visit.mail("/login", since=begun)
    visit.sign_in()


def leave(visit: Visit) -> None:
    browser = visit.sign_in()
    browser.open("/account/delete")
    visit.think()
    browser.submit("/account/delete", password=visit.account.password)
    browser.must_read("Your account was deleted.")
    visit.is_member = False


def operate(visit: Visit) -> None:
    """Look at the pages of /ops."""
    browser = visit.sign_in()
    for page in ("/ops", "/ops/mails", "/ops/dead", "/ops/workers", "/ops/audit", "/ops/users"):
        browser.open(page)
        browser.must_be_at(page)
    sign_out(browser)


def sign_out(browser: Browser) -> None:
    browser.submit("/logout")
    browser.must_read("You're signed out.")


def path_of(mail: Mail) -> str:
    return urlsplit(mail.link).path


# Weights: of a hundred people, so many take each journey.
NEWCOMERS: Mapping[Journey, int] = {
    click: 40,
    click_elsewhere: 9,
    type_code: 19,
    mistype_code: 7,
    ask_again: 6,
    mend_address: 4,
    be_refused: 3,
    never_look: 10,
    disown: 2,
}
MEMBERS: Mapping[Journey, int] = {
    come_in: 55,
    mistype_password: 15,
    forget_password: 7,
    change_password: 4,
    move: 5,
    sign_up_again: 3,
    leave: 11,
}
