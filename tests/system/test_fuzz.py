"""Whatever a form is sent, no answer is an error of ours, and no row is half written."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlencode

import pytest
from flask import Flask
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, update
from werkzeug.datastructures import MultiDict
from werkzeug.test import encode_multipart

from harness.visitor import PASSWORD, Visitor
from tests.factories import before_all_others
from webapp.accounts import links, password_change
from webapp.accounts.identifiers import email_addresses, usernames
from webapp.accounts.links import VerifyEmail
from webapp.accounts.users import User
from webapp.db.base import db
from webapp.db.clock import db_now
from webapp.outbox import claims, kinds
from webapp.outbox.outgoing_email import OutgoingEmail

LONGEST = 2000
TOKEN = "csrf_token"  # noqa: S105 - a field's name
NEW_PASSWORD = "another horse battery"  # noqa: S105 - a test's own

FIELDS = {
    "/signup": ["username", "full_name", "email", "password"],
    "/signup/resend": [],
    "/signup/email": ["email"],
    "/signup/code": ["code", "username"],
    "/verify": ["verification", "username", "password", "action", "new_password"],
    "/verify/renew": [],
    "/verify/undo": [],
    "/login": ["identifier", "password"],
    "/logout": [],
    "/forgot": ["email"],
    "/reset": ["verification", "username", "password"],
    "/reset/renew": [],
    "/account/password": ["password", "new_password"],
    "/account/profile": ["username", "full_name"],
    "/account/email": ["email", "password"],
    "/account/email/code": ["code"],
    "/account/email/resend": [],
    "/account/email/cancel": [],
    "/account/email/confirm": ["verification", "password", "action"],
    "/account/email/revoke": ["verification"],
    "/account/sessions/1/end": [],
    "/account/sessions/end-others": [],
    "/account/export": [],
    "/account/delete": ["password"],
}

BROWSERS = [
    *["stranger", "waiting", "link opened", "link opened elsewhere", "link expired", "link disowned", "signed in"],
    *["address asked", "address link opened", "address changed", "reset opened", "reset expired"],
]

# Which people get far with which form.
SUITED = {
    "/verify": ["link opened", "link opened elsewhere"],
    "/verify/renew": ["link expired"],
    "/verify/undo": ["link disowned"],
    "/login": ["stranger"],
    "/logout": ["signed in"],
    "/signup": ["stranger"],
    "/forgot": ["stranger"],
    "/reset": ["reset opened"],
    "/reset/renew": ["reset expired"],
    "/account/password": ["signed in"],
    "/account/profile": ["signed in"],
    "/account/email": ["signed in", "address asked"],
    "/account/email/code": ["address asked"],
    "/account/email/resend": ["address asked"],
    "/account/email/cancel": ["address asked"],
    "/account/email/confirm": ["address link opened"],
    "/account/email/revoke": ["address changed"],
    "/account/sessions/1/end": ["signed in"],
    "/account/sessions/end-others": ["signed in"],
    "/account/export": ["signed in"],
    "/account/delete": ["signed in", "address changed"],
}

# No lone surrogates: no text that is sent contains any.
anything = st.text(st.characters(codec="utf-8"), max_size=60)
long = st.builds(
    lambda part, times: (part * times)[:LONGEST],
    st.text(st.characters(codec="utf-8"), min_size=1),
    st.integers(1, LONGEST),
)
awkward = st.sampled_from(
    [
        "",
        " ",
        "\0",
        "a\0b",
        "\r\nBcc: x@example.com",
        "\ufeff",
        "\u2028",
        "\ufdfa" * 64,
        "\U0010ffff",
        "İ" * 64,
        "%",
        "'--",
    ]
)
domains = st.sampled_from(["example.com", "bücher.example", "xn--bcher-kva.example", "[127.0.0.1]", "com", "", "xn--"])
addresses = st.one_of(
    st.builds("{}@{}".format, st.text(st.characters(codec="utf-8"), max_size=70), domains),
    st.builds("a@{}.com".format, st.text(st.characters(codec="utf-8"), max_size=260)),
    st.emails(),
)
values = st.one_of(anything, long, awkward, addresses)

# Values that each field accepts, so that some requests get far.
GOOD = {
    "username": st.sampled_from(["mick19", "größe", "Zoë.x", "x" * 64]),
    "full_name": st.sampled_from(["", "Mick", "\N{LATIN SMALL LETTER SHARP S}" * 100]),
    "email": st.sampled_from(["mick@example.com", "mick@bücher.example", f"{'x' * 64}@example.com"]),
    "password": st.sampled_from([PASSWORD, NEW_PASSWORD, "\ufdfa" * 128]),
    "new_password": st.sampled_from([NEW_PASSWORD, "", "\ufdfa" * 128]),
    "code": st.sampled_from(["123456", "123 456"]),
    "verification": st.just("<its own>"),
    "action": st.sampled_from(["", "disown"]),
    "identifier": st.sampled_from(["mick19", "mick@example.com", "person1"]),
}

TYPES = [
    "application/json",
    "text/plain",
    "multipart/form-data",
    "multipart/form-data; boundary=",
    "multipart/form-data; boundary=x",
    "application/x-www-form-urlencoded; charset=utf-16",
    "application/x-www-form-urlencoded; charset=nonsense",
    "nonsense",
    "",
]

Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Post:
    path: str
    browser: str
    pairs: Pairs
    has_token: bool
    # How it is sent: "form", "multipart", or a type that does not match the content.
    kind: str
    junk: bytes | None


@st.composite
def posts(draw: st.DrawFn) -> Post:
    path = draw(st.sampled_from(sorted(FIELDS)))
    pairs: Pairs = []
    # Often at most one field is bad: otherwise the first bad one hides what the others do.
    careful = draw(st.booleans())
    bad = draw(st.sampled_from([*FIELDS[path], "none"]))
    for name in FIELDS[path]:
        good = GOOD[name]
        value = good if careful and name != bad else st.one_of(values, good)
        times = 1 if careful else draw(st.sampled_from([1, 1, 1, 0, 2, 3]))
        pairs += [(name, draw(value)) for _ in range(times)]
    if not careful:
        pairs += draw(st.lists(st.tuples(anything, values), max_size=2))
    kind = draw(st.sampled_from(["form"] * 6 + ["multipart"] * 2 + TYPES[:4]) | st.sampled_from(TYPES))
    return Post(
        path=path,
        browser=draw(st.sampled_from(SUITED.get(path, ["waiting"])) | st.sampled_from(BROWSERS)),
        pairs=pairs,
        has_token=draw(st.sampled_from([True] * 5 + [False])),
        kind=kind,
        junk=draw(st.none() | st.none() | st.none() | st.binary(max_size=200)),
    )


def encoded(post: Post, own: Pairs) -> tuple[bytes, str]:
    pairs = own + post.pairs
    if post.kind == "multipart":
        boundary, content = encode_multipart(MultiDict(pairs))
        return content + (post.junk or b""), f"multipart/form-data; boundary={boundary}"
    content = urlencode(pairs).encode()
    if post.junk is not None:
        content += b"&username=" + post.junk
    return content, "application/x-www-form-urlencoded" if post.kind == "form" else post.kind


class People:
    """Makes browsers that are somewhere on their way, each for a new person."""

    def __init__(self, app: Flask) -> None:
        self.app = app
        self.numbers = itertools.count()

    def browser(self, kind: str) -> Visitor:
        visitor = Visitor("http://signup.example", self.app)
        if kind == "stranger":
            return visitor
        number = next(self.numbers)
        visitor.sign_up(username=f"person{number}", email=f"person{number}@example.com")
        assert visitor.path == "/signup/sent"
        if kind == "waiting":
            return visitor
        if kind.startswith("reset"):
            return self.forget(f"person{number}@example.com", kind)
        link = self.newest_link()
        if kind == "link opened elsewhere":
            visitor = Visitor("http://signup.example", self.app)
        visitor.open(link)
        if kind == "link expired":
            with self.app.app_context():
                db.session.execute(update(VerifyEmail).values(expires_at=db_now(-1)))
                db.session.commit()
        elif kind == "link disowned":
            visitor.submit("/verify", action="disown")
        elif kind == "signed in" or kind.startswith("address"):
            visitor.submit("/verify")
            assert visitor.path == "/account"
        if kind.startswith("address"):
            self.change_address(visitor, f"other{number}@example.com", kind)
        return visitor

    def change_address(self, visitor: Visitor, address: str, kind: str) -> None:
        visitor.open("/account/email")
        visitor.submit("/account/email", email=address, password=PASSWORD)
        if kind == "address asked":
            return
        visitor.open(self.newest_link())
        if kind == "address changed":
            visitor.submit("/account/email/confirm")
            assert visitor.path == "/account"
            visitor.open(self.newest_link())

    def forget(self, address: str, kind: str) -> Visitor:
        visitor = Visitor("http://signup.example", self.app)
        with self.app.app_context():
            # Like the worker that claims it.
            asked = password_change.ask(email_addresses.parse_address(address), "en")
            with before_all_others(asked):
                (email,) = claims.claim("worker")
            password_change.find_owner(email)
            claims.release([email])
            if kind == "reset expired":
                db.session.execute(update(VerifyEmail).values(expires_at=db_now(-1)))
            db.session.commit()
        visitor.open(self.newest_link())
        return visitor

    def newest_link(self) -> str:
        with self.app.app_context():
            newest = select(VerifyEmail).order_by(VerifyEmail.user_id.desc(), VerifyEmail.created_at.desc()).limit(1)
            return links.link(db.session.scalars(newest).one())


def token(visitor: Visitor) -> str:
    """Return the session's token: it works for every form."""
    visitor.open("/login")
    found = re.search(rf'name="{TOKEN}" value="([^"]+)"', visitor.page.text)
    assert found
    return found[1]


def own_verification(visitor: Visitor, path: str) -> str:
    """Return what is named by the page of the link that this browser opened, if it opened one."""
    visitor.open(path)
    found = re.search(r'name="verification" value="([^"]+)"', visitor.page.text)
    return found[1] if found else ""


@pytest.fixture
def people(app: Flask) -> People:
    return People(app)


def whole_users(app: Flask) -> int:
    """Return how many users there are; each must be complete."""
    with app.app_context():
        has_proof = select(VerifyEmail.id).where(VerifyEmail.user_id == User.id).exists()
        assert db.session.scalars(select(User.username).where(~has_proof)).all() == []
        mails = (
            select(func.count())
            .where(OutgoingEmail.verify_email_id == VerifyEmail.id, OutgoingEmail.user_id == VerifyEmail.user_id)
            .scalar_subquery()
        )
        assert db.session.scalars(select(mails).select_from(VerifyEmail).where(mails != 1)).all() == []
        stray = OutgoingEmail.verify_email_id.is_(None) | OutgoingEmail.user_id.is_(None)
        # The owner of a reset link is known once its email is claimed, which never happens here.
        nobodys = (*kinds.NOTICES, kinds.RESET_TEMPLATE)
        is_promise = OutgoingEmail.template.is_(None) | OutgoingEmail.template.not_in(nobodys)
        strays = db.session.scalars(select(OutgoingEmail.status).where(stray, is_promise)).all()
        # Emails promised to people who deleted their account are not sent.
        assert set(strays) <= {"canceled"}
        usable = (
            select(func.count())
            .where(
                VerifyEmail.user_id == User.id,
                # However often an address was changed, each earlier one can be restored.
                VerifyEmail.purpose.not_in(["revoke", "reset"]),
                VerifyEmail.voided_at.is_(None),
                VerifyEmail.used_at.is_(None),
            )
            .scalar_subquery()
        )
        assert db.session.scalars(select(User.username).where(usable > 1)).all() == []
        everybody = db.session.scalars(select(User)).all()
        for user in everybody:
            assert usernames.key(usernames.normalize(user.username)) == user.username_key
            assert email_addresses.parse_address(user.email).key == user.email_key
            assert user.password_hash.startswith("$argon2id$")
            assert (user.purge_at is None) == user.is_email_verified
        return len(everybody)


def in_the_same_app(test: Callable[..., None]) -> Callable[..., None]:
    """Run the test's examples one after the other on one database: each creates its own people."""
    return settings(
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )(test)


@in_the_same_app
@given(post=posts())
def test_no_form_fails_or_writes_by_halves_whatever_is_sent_to_it(app: Flask, people: People, post: Post) -> None:
    visitor = people.browser(post.browser)
    own = [(TOKEN, token(visitor))] if post.has_token else []
    if ("verification", "<its own>") in post.pairs:
        own.append(("verification", own_verification(visitor, post.path)))
    content, content_type = encoded(post, own)
    before = whole_users(app)
    answer = visitor.http.post(
        post.path,
        content=content,
        headers={"Content-Type": content_type} if content_type else {},
        follow_redirects=False,
    )
    event(f"{post.path}: {answer.status_code}")
    assert answer.status_code < 500
    is_signup = post.path == "/signup" and answer.status_code == 303
    after = whole_users(app)
    is_end = False
    if answer.is_redirect:
        assert visitor.open(answer.headers["Location"]).status_code < 500
        is_end = "Your account was deleted." in visitor.text
    assert after == before + is_signup - is_end


@in_the_same_app
@given(typed=values, path_and_field=st.sampled_from([(path, name) for path in FIELDS for name in FIELDS[path]]))
def test_no_text_in_an_otherwise_good_form_fails(
    app: Flask, people: People, typed: str, path_and_field: tuple[str, str]
) -> None:
    path, name = path_and_field
    kinds = {"/verify": "link opened", "/account/email": "address asked", "/account": "signed in"}
    kinds |= {"/reset": "reset opened", "/reset/renew": "reset expired"}
    kinds |= {"/account/email/confirm": "address link opened", "/account/email/revoke": "address changed"}
    visitor = people.browser(
        next((kinds[start] for start in sorted(kinds, reverse=True) if path.startswith(start)), "waiting")
    )
    good = {
        "username": f"other{next(people.numbers)}",
        "email": "other@example.com",
        "password": PASSWORD,
        "code": "123456",
        "identifier": "person1",
        "verification": own_verification(visitor, path) if "verification" in FIELDS[path] else "",
    }
    fields = {field: good.get(field, "") for field in FIELDS[path]}
    before = whole_users(app)
    answer = visitor.http.post(path, data={TOKEN: token(visitor), **fields, name: typed}, follow_redirects=False)
    event(f"{path} {name}: {answer.status_code}")
    assert answer.status_code < 500
    assert answer.status_code != 400
    is_end = path == "/account/delete" and answer.status_code == 303
    assert whole_users(app) == before + (path == "/signup" and answer.status_code == 303) - is_end
