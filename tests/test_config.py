"""Settings: all problems are reported at once, in words that help."""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from webapp.config import SETTINGS, load
from webapp.paths import ROOT
from webapp.setting_types import ConfigError

GOOD = {"SECRET_KEY": "0123456789abcdef-x", "PUBLIC_URL": "https://signup.example", "MAIL_SERVER": "mail.example"}


def problems(**environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load({**GOOD, **environ})
    return caught.value.problems


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load({"MAIL_PORT": "many", "VERIFY_EMAIL_DELAY": "-1", "LOG_FORMAT": "xml"})
    message = str(caught.value)
    for name in ("SECRET_KEY", "PUBLIC_URL", "MAIL_SERVER", "MAIL_PORT", "VERIFY_EMAIL_DELAY", "LOG_FORMAT"):
        assert re.search(rf"^  {name}: ", message, re.MULTILINE), name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SECRET_KEY", "short"),
        ("SECRET_KEY", "change-me-change-me"),
        ("SECRET_KEY", "insecure-default-secret-key"),
        ("SECRET_KEY", "django-insecure-x83jfhsk39fj"),
        ("SECRET_KEY", "please-set-this-secret-key"),
        ("SECRET_KEY", "development-key-0123456789"),
        ("SECRET_KEY", "aaaaaaaaaaaaaaaa"),
        ("SECRET_KEY", "1234567890123456"),
        ("SECRET_KEY", "passwordpassword"),
        ("SECRET_KEY", "passwordpassword1"),
        ("SECRET_KEY", "abcabcabcabcabcabcab"),
        ("SECRET_KEY", "1111222233334444"),
        ("METRICS_TOKEN", "0000000000000000000000001"),
        ("SECRET_KEY_FALLBACKS", "qwertyqwertyqwerty"),
        ("SESSION_COOKIE_NAME", "__Host-session"),
        ("SESSION_COOKIE_NAME", "a b"),
        ("REDIS_PREFIX", "{a}"),
        ("REDIS_PREFIX", "a b"),
        ("REDIS_PREFIX", "x" * 41),
        ("SESSION_COOKIE_NAME", "x" * 41),
        ("SECURITY_CONTACT", "nobody"),
        ("SECURITY_CONTACT", "a@b.example\nExpires: never"),
        ("HSTS_INCLUDE_SUBDOMAINS", "perhaps"),
        ("RESERVED_USERNAMES", "admin, two words"),
        ("SECRET_KEY_FALLBACKS", "0123456789abcdef,short"),
        ("DATABASE_URL", "mysql://localhost/app"),
        ("DATABASE_URL", "sqlite://"),
        ("PUBLIC_URL", "signup.example"),
        ("PUBLIC_URL", "ftp://signup.example"),
        ("PUBLIC_URL", "https://signup.example/?a=b"),
        ("PUBLIC_URL", "https://signup.example/app"),
        ("APP_URL", "/app"),
        ("APP_URL", "javascript://app.example/"),
        ("APP_URL", "https://user@app.example/"),
        ("APP_URL", "https://app.example//evil.example"),
        ("APP_URL", "https://app.example/\\evil.example"),
        ("TRUSTED_APPS", "https://app.example, *.example"),
        ("TRUSTED_APPS", "https://app.example/path"),
        ("PUBLIC_URL", "https://exa mple.com"),
        ("PUBLIC_URL", "https://ex<am>ple.com"),
        ("PUBLIC_URL", "https://signup.example:99999"),
        ("PUBLIC_URL", "https://例え.jp"),
        ("DATABASE_URL", "postgresql://u:p@host:port/db"),
        ("DATABASE_URL", "postgresql://host"),
        ("DATABASE_URL", "sqlite:///:memory:"),
        ("DATABASE_URL", "postgresql://u:p@host/db?pgbouncer=true"),
        ("DATABASE_URL", "postgresql://u:p@ss@host/db"),
        ("DATABASE_URL", "postgresql://u:p/ss@host/db"),
        ("DATABASE_URL", "postgresql://u:100%sure@host/db"),
        ("REDIS_URL", "redis://host:port/0"),
        ("REDIS_URL", "redis://host:6379/abc"),
        ("REDIS_URL", "redis://host/0?bogus=1"),
        ("REDIS_URL", "http://host"),
        ("REDIS_URL", "redis+sentinel://host:26379"),
        ("REDIS_URL", "redis+sentinel://host:26379/service/name"),
        ("REDIS_URL", "redis+sentinel://host:26379,:26379/service"),
        ("REDIS_URL", "redis+sentinel://host:26379/service?bogus=1"),
        ("REDIS_URL", "redis+cluster://host:6379/0"),
        ("REDIS_URL", "redis+cluster://host:6379,"),
        ("REDIS_URL", "redis+cluster://host:99999"),
        ("REDIS_URL", "redis+cluster://:pass/word@host"),
        ("MAIL_SERVER", "mail.example:587"),
        ("WEB_CONCURRENCY", "abc"),
        ("APP_NAME", "two\nlines"),
        ("APP_LOGO", "/nowhere/logo.png"),
        ("APP_LOGO", "README.md"),
        ("MAIL_LOGO", "/nowhere/logo.png"),
        ("MAIL_LOGO", "webapp/static/icon.svg"),
        ("MAIL_LOGO", "docs/phones-light.png"),
        ("APP_ACCENT", "blue"),
        ("APP_ACCENT", "#fff"),
        ("APP_ACCENT", "#ffcc00"),
        ("MAIL_PORT", "0"),
        ("MAIL_PORT", "65536"),
        ("MAIL_PORT", "²"),
        ("MAIL_USE_TLS", "perhaps"),
        ("MAIL_TIMEOUT", "0"),
        ("MAIL_ANSWER_TIMEOUT", "0"),
        ("MAIL_CONNECTIONS", "0"),
        ("MAIL_EHLO_NAME", "two names"),
        ("MAIL_DEFAULT_SENDER", "Acme <jürgen@acme.example>"),
        ("MAIL_REPLY_TO", "a@b@"),
        ("MAIL_DEFAULT_SENDER", "nobody"),
        ("MAIL_DEFAULT_SENDER", "a@b.example\nBcc: c@d.example"),
        ("VERIFY_EMAIL_TTL", "1"),
        ("PASSWORD_MIN_LENGTH", "4"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(name: str, value: str) -> None:
    (problem,) = problems(**{name: value})
    assert problem.startswith(f"{name}: must ")


@pytest.mark.parametrize("bytes_", [8, 16, 32, 64, 1000])
def test_a_random_secret_is_good(bytes_: int) -> None:
    for _ in range(200):
        for secret in (secrets.token_hex(bytes_), secrets.token_urlsafe(max(12, bytes_))):
            assert load({**GOOD, "SECRET_KEY": secret})["SECRET_KEY"] == secret


def test_names_are_reserved_by_a_setting() -> None:
    assert "admin" in load(GOOD)["RESERVED_USERNAMES"]
    assert load({**GOOD, "RESERVED_USERNAMES": "boss, Chef"})["RESERVED_USERNAMES"] == ["boss", "Chef"]
    assert load({**GOOD, "RESERVED_USERNAMES": "none"})["RESERVED_USERNAMES"] == []


def test_what_is_wrong_with_a_database_url_is_told_without_its_password() -> None:
    assert '"pgbouncer"' in problems(DATABASE_URL="postgresql://u:secret@host/db?pgbouncer=true")[0]
    for url in ("postgresql://u:sec%ret@host/db", "postgresql://u:sec@ret@[host/db", "postgresql://u:sec/ret@h/db"):
        (problem,) = problems(DATABASE_URL=url)
        assert "%40 for an @" in problem
        assert "sec" not in problem


def test_a_database_url_is_understood_as_libpq_does() -> None:
    url = "postgres://me:p%40ss%2Fw%25rd@one:5432,two:5433/name?sslmode=verify-full&options=-c%20lock_timeout%3D9s"
    options = load({**GOOD, "DATABASE_URL": url})["SQLALCHEMY_ENGINE_OPTIONS"]["connect_args"]
    given = {"user": "me", "password": "p@ss/w%rd", "host": "one,two", "port": "5432,5433", "dbname": "name"}
    given |= {"sslmode": "verify-full", "options": "-c lock_timeout=9s", "target_session_attrs": "read-write"}
    assert options.items() >= given.items()
    own = load({**GOOD, "DATABASE_URL": "postgresql:///name?target_session_attrs=primary&keepalives_idle=60"})
    chosen = own["SQLALCHEMY_ENGINE_OPTIONS"]["connect_args"]
    assert (chosen["target_session_attrs"], chosen["keepalives_idle"]) == ("primary", "60")


def dotenv(folder: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".env").write_bytes(content)
    monkeypatch.setattr("webapp.config.ROOT", folder)
    for name in GOOD:
        monkeypatch.delenv(name, raising=False)


LINES = "".join(f"{name}={value}\n" for name, value in GOOD.items())


def test_a_file_that_begins_with_a_byte_order_mark_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dotenv(tmp_path, LINES.encode("utf-8-sig"), monkeypatch)
    assert load()["SECRET_KEY"] == GOOD["SECRET_KEY"]


@pytest.mark.parametrize("content", [LINES.encode("utf-16"), LINES.encode("utf-16-le"), b"APP_NAME=Caf\xe9\n"])
def test_a_file_that_is_not_utf_8_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    dotenv(tmp_path, content, monkeypatch)
    with pytest.raises(ConfigError) as caught:
        load()
    assert caught.value.problems == [".env: is not UTF-8 text: save it as UTF-8 in your editor"]


def test_settings_that_contradict_each_other_are_refused() -> None:
    (problem,) = problems(MAIL_USE_TLS="true", MAIL_USE_SSL="true")
    assert "choose one" in problem
    (problem,) = problems(MAIL_USERNAME="mick")
    assert "set both or neither" in problem


def test_a_secret_can_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-a-file-0123456789\n")
    config = load({**GOOD, "SECRET_KEY": "", "SECRET_KEY_FILE": str(tmp_path / "key")})
    assert config["SECRET_KEY"].startswith("from-a-file")
    assert "cannot be read" in problems(MAIL_PASSWORD_FILE=str(tmp_path / "missing"))[0]


def test_an_empty_setting_counts_as_unset() -> None:
    assert load({**GOOD, "MAIL_PORT": "  "})["MAIL_PORT"] == 25


def test_the_sender_follows_from_the_public_url() -> None:
    assert load(GOOD)["MAIL_DEFAULT_SENDER"] == "Signup <no-reply@signup.example>"
    assert load({**GOOD, "APP_NAME": "Acme, Inc."})["MAIL_DEFAULT_SENDER"] == '"Acme, Inc." <no-reply@signup.example>'
    assert load({**GOOD, "MAIL_DEFAULT_SENDER": "Acme <hi@acme.example>"})["MAIL_DEFAULT_SENDER"] == (
        "Acme <hi@acme.example>"
    )


@pytest.mark.parametrize("url", ["https://192.0.2.10", "https://[2001:db8::1]:8443"])
def test_a_public_url_without_a_domain_has_no_sender(url: str) -> None:
    (problem,) = problems(PUBLIC_URL=url)
    assert problem.startswith("MAIL_DEFAULT_SENDER: is missing")
    assert load({**GOOD, "PUBLIC_URL": url, "MAIL_DEFAULT_SENDER": "hi@acme.example"})["MAIL_EHLO_NAME"] in {
        "[192.0.2.10]",
        "[IPv6:2001:db8::1]",
    }
    # In a trial only the mailbox gets those.
    trial = load({"APP_ENV": "development", "PUBLIC_URL": url})
    assert trial["MAIL_DEFAULT_SENDER"] == "Signup <no-reply@localhost>"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "signup.example"),
        ("mx1.acme.example", "mx1.acme.example"),
        ("192.0.2.1", "[192.0.2.1]"),
        ("[192.0.2.1]", "[192.0.2.1]"),
        ("2001:db8::1", "[IPv6:2001:db8::1]"),
        ("bücher.example", "xn--bcher-kva.example"),
    ],
)
def test_the_name_for_the_mail_server_is_said_as_smtp_has_it(given: str, said: str) -> None:
    assert load({**GOOD, "MAIL_EHLO_NAME": given})["MAIL_EHLO_NAME"] == said


def test_cookies_are_secure_exactly_when_the_public_url_is() -> None:
    assert load(GOOD)["SESSION_COOKIE_SECURE"] is True
    assert load({**GOOD, "PUBLIC_URL": "http://localhost:5000"})["SESSION_COOKIE_SECURE"] is False


@pytest.mark.parametrize("program", ["wsgi", "huey_worker"])
def test_a_program_with_wrong_settings_ends_with_one_message_and_no_traceback(program: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", f"import {program}"],
        cwd=ROOT,
        env={"MAIL_PORT": "many", "APP_ENV": "production"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "MAIL_PORT: must be a whole number from 1 to 65535, not 'many'" in ended.stderr
    assert "SECRET_KEY: is missing" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_worker_loads_neither_pages_nor_commands() -> None:
    needless = ["alembic", "flask_wtf", "webapp.cli", "webapp.pages"]
    loaded = subprocess.run(
        [sys.executable, "-c", f"import sys, huey_worker; print(*sys.modules.keys() & {needless})"],
        cwd=ROOT,
        env={**GOOD, "APP_ENV": "development"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.split() == []


def test_apps_are_known_by_how_browsers_write_them() -> None:
    config = load(
        {**GOOD, "APP_URL": "HTTPS://App.Example/Start", "TRUSTED_APPS": "https://Shop.example/, http://a:81"}
    )
    assert config["APP_URL"] == "https://app.example/Start"
    assert config["TRUSTED_APPS"] == ["https://shop.example", "http://a:81"]


def test_the_example_file_is_the_manual_of_every_setting() -> None:
    manual = (ROOT / ".env.example").read_text()
    assert re.findall(r"^#?([A-Z_]+)=", manual, re.MULTILINE) == list(SETTINGS)


def test_the_table_of_settings_has_a_row_for_each() -> None:
    table = (ROOT / "docs" / "settings.md").read_text("utf-8")
    assert re.findall(r"^\| `([A-Z_]+)`", table, re.MULTILINE) == list(SETTINGS)


def test_languages_are_those_that_have_a_catalogue() -> None:
    assert load(GOOD)["LANGUAGES"] == {"en": "English", "th": "ไทย"}
    assert load({**GOOD, "LANGUAGES": "th, en"})["LANGUAGES"] == {"th": "ไทย", "en": "English"}
    for wrong in ("xx", "en,fr", "en,,th", "../th", "."):
        (problem,) = problems(LANGUAGES=wrong)
        assert problem.startswith("LANGUAGES: must be languages of en, th, ")
        assert "instance/translations/<its code>.po" in problem
