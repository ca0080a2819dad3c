"""Addresses with the extra characters that people paste around them."""

from __future__ import annotations

import pytest
from flask import Flask
from sqlalchemy import select

from harness.visitor import Visitor
from webapp.accounts.identifiers import email_addresses
from webapp.accounts.users import User
from webapp.db.base import db

PASTED = [
    " mick@example.com ",
    "\u200bmick@\u200dexample.com\ufeff",
    "mi\u00adck@example.com",
    "\u202amick@example.com\u202c",
    "\u00a0mick@example.com\u3000",
    "mailto:mick@example.com",
    "MAILTO:mick@example.com?subject=Hello",
    "Mick <mick@example.com>",
    '"Example, Mick" <mick@example.com>',
    "<mick@example.com>",
    "Mick Example <mailto:mick@example.com>",
    "mick＠example.com",
    "mick@example.com.",
    "mick@example.com,",
    "mick@example.com;",
    "mick@example.com .",
    "(mick@example.com)",
    "'mick@example.com'",
    "Mick <mick@example.com>,",
]


@pytest.mark.parametrize("text", PASTED)
def test_what_is_pasted_around_an_address_is_taken_off(text: str) -> None:
    assert email_addresses.parse_address(text) == email_addresses.Address(
        mailed="mick@example.com", key="mick@example.com"
    )


@pytest.mark.parametrize("text", ["Mick <mick@example.com>", "mick＠example.com", "\u200bmailto:mick@example.com."])
def test_a_pasted_address_signs_up_and_signs_in(app: Flask, visitor: Visitor, text: str) -> None:
    assert visitor.sign_up(email=text).url.path == "/signup/sent"
    with app.app_context():
        assert db.session.scalars(select(User.email)).one() == "mick@example.com"


@pytest.mark.parametrize("text", PASTED)
def test_however_it_is_pasted_guesses_at_an_address_count_together(text: str) -> None:
    assert email_addresses.identifier_key(text) == "mick@example.com"


@pytest.mark.parametrize(
    "text",
    [
        "mick@example.com\r\nBcc: all@example.com",
        "Mick\r\nBcc: <all@example.com>",
        "mick@example.com <ann@example.com>, <bob@example.com>",
        "<b>@example.com",
        "<>",
        "mailto:",
        "()",
        ".",
        "mick@example..com",
        "mick @example.com",
        "a" + "\u0300\u0316" * 500_000,
        "a." * 500_000,
        "Mick " * 200 + "<mick@example.com>",
        f"{'x' * 250}@example.com",
    ],
    ids=ascii,
)
def test_what_is_no_address_stays_none(text: str) -> None:
    with pytest.raises(email_addresses.AddressInvalid):
        email_addresses.parse_address(text)
