"""Passwords: how they are stored, and what checking them costs."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from argon2 import PasswordHasher
from argon2.profiles import CHEAPEST
from flask import Flask

from harness.processes import wait_until
from harness.visitor import PASSWORD, Visitor
from tests.factories import only_user
from webapp.accounts import passwords
from webapp.accounts.users import User
from webapp.db.base import db

OLD_HASHER = PasswordHasher.from_parameters(CHEAPEST)


def keep(app: Flask, password_hash: str) -> None:
    with app.app_context():
        db.session.query(User).update({"password_hash": password_hash})
        db.session.commit()


@pytest.fixture
def cheap_passwords() -> None:
    """Here they cost what the settings say."""


def test_a_hash_is_argon2id_with_at_least_19_mebibytes_and_two_passes(app: Flask, visitor: Visitor) -> None:
    visitor.sign_up()
    assert only_user(app).password_hash.startswith("$argon2id$v=19$m=19456,t=2,p=1$")


def test_signing_in_gives_an_old_hash_the_strength_of_today(app: Flask, visitor: Visitor) -> None:
    visitor.sign_up()
    keep(app, OLD_HASHER.hash(PASSWORD))
    visitor.open("/login")
    visitor.submit("/login", identifier="mick19", password="staple battery horse")
    assert "m=8," in only_user(app).password_hash
    visitor.submit("/login", identifier="mick19", password=PASSWORD)
    assert visitor.path == "/signup/sent"
    renewed = only_user(app).password_hash
    assert "m=19456," in renewed
    with app.app_context():
        assert passwords.verify(renewed, PASSWORD)


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads that switch as often as they can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("hasty_threads")
def test_the_words_of_people_who_choose_at_the_same_time_are_kept_apart() -> None:
    words = [f"gorvik{letter}umbelzat" for letter in "abcdefgh"]
    assert passwords.weakness(words[0], []) == []
    with ThreadPoolExecutor(len(words)) as pool:
        assert all(pool.map(lambda word: passwords.weakness(word, [word]), words * 50))


@pytest.mark.parametrize(
    ("password", "told"),
    [("x" * 7, "at least 8"), ("correct horse battery " * 6, "at most 128")],
)
def test_a_password_that_is_too_short_or_too_long_is_refused_before_it_is_hashed(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch, password: str, told: str
) -> None:
    monkeypatch.delattr(passwords, "hasher")
    visitor.sign_up(password=password)
    assert visitor.page.status_code == 422
    assert told in visitor.text


def test_no_more_are_hashed_at_once_than_there_are_cores(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most = 0, 0
    allowed = max(1, passwords.CORES // app.config["WEB_CONCURRENCY"])
    lock = threading.Lock()

    class Hasher(PasswordHasher):
        def hash(self, password: str | bytes, *, salt: bytes | None = None) -> str:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            wait_until(lambda: most >= allowed, "fewer are hashed at once than may be")
            # Time for one too many to show up, if that can happen. A slow machine may hide it, but fails nothing.
            time.sleep(0.02)
            with lock:
                running -= 1
            return super().hash(password, salt=salt)

    def hash_one() -> None:
        with app.app_context():
            passwords.hash(PASSWORD)

    monkeypatch.setattr(passwords, "hasher", lambda: Hasher.from_parameters(CHEAPEST))
    run_at_once(20, hash_one)
    assert most == allowed


def run_at_once(count: int, run: Callable[[], object]) -> None:
    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
