"""Settings: read from the environment, checked all at once, handed to Flask."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dotenv import dotenv_values
from limits import parse_many

from webapp import i18n, theme
from webapp.accounts.identifiers import usernames
from webapp.db.engines import engine_options
from webapp.paths import INSTANCE, ROOT
from webapp.queue import redis_url
from webapp.setting_types import (
    ConfigError,
    Parser,
    parse_app_url,
    parse_boolean,
    parse_choice,
    parse_contact,
    parse_cookie_name,
    parse_database_url,
    parse_header_name,
    parse_host,
    parse_key_prefix,
    parse_limits,
    parse_logo,
    parse_mail_logo,
    parse_number,
    parse_origins,
    parse_public_url,
    parse_secret,
    parse_secrets,
    parse_text,
)
from webapp.smtp import addresses

# Names that look official: mostly the mailboxes of RFC 2142.
RESERVED = [
    *("abuse", "admin", "administrator", "billing", "contact", "help", "helpdesk", "hostmaster", "info"),
    *("mailer-daemon", "moderator", "no-reply", "noreply", "official", "postmaster", "root", "security", "staff"),
    *("support", "sysadmin", "system", "team", "webmaster"),
]
# Fits the longest form, filled with four-byte characters, each byte written as "%F0".
FORM_BYTES = 16 * 1024
FORM_FIELDS = 100


def load(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return Flask's configuration.

    `environ` stands in for the process environment and `.env` (the environment wins).
    Raises ConfigError.
    """
    if environ is None:
        environ = {**_dotenv(), **os.environ}
    problems: list[str] = []
    config = {name: _read(name, parse, default, environ, problems) for name, (parse, default) in SETTINGS.items()}
    if config["APP_ENV"] == "development":
        _fill_in_for_development(config)
    problems += _missing(config, problems) + _contradictions(config)
    if problems:
        raise ConfigError(problems)
    return config | _flask(config)


def _dotenv() -> dict[str, str]:
    """Return the contents of `.env`, if there is one. Raises ConfigError."""
    try:
        # Some editors begin a file with a byte order mark, which is not part of the first name.
        values = dotenv_values(ROOT / ".env", encoding="utf-8-sig")
    except UnicodeDecodeError:
        values = {"\0": None}
    if any("\0" in name for name in values):
        raise ConfigError([".env: is not UTF-8 text: save it as UTF-8 in your editor"])
    return {name: value for name, value in values.items() if value is not None}


def _read(name: str, parse: Parser, default: object, environ: Mapping[str, str], problems: list[str]) -> Any:
    raw = environ.get(name, "")
    if path := environ.get(f"{name}_FILE"):
        try:
            raw = Path(path).read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{name}_FILE: cannot be read: {error}")
            return default
    if not raw.strip():
        return default
    try:
        return parse(raw.strip())
    except ValueError as error:
        problems.append(f"{name}: {error}")
        return default


def _redis_url(raw: str) -> str:
    redis_url.parse(raw)
    return raw


def _mailbox(raw: str) -> str:
    try:
        return addresses.mailbox(parse_text(raw))
    except ValueError:
        raise ValueError(f"must be an address, or Name <address>, not {raw!r}") from None


def _ehlo_name(raw: str) -> str:
    name = raw if re.fullmatch(r"\[[0-9A-Za-z.:]+\]", raw) else addresses.literal(raw)
    if not re.fullmatch(r"\[.+\]|[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", name):
        raise ValueError(f"must be the name or address that this machine tells the mail server, not {raw!r}")
    return name


def _usernames(raw: str) -> list[str]:
    names = [] if raw.lower() == "none" else [part.strip() for part in parse_text(raw).split(",")]
    for name in names:
        try:
            usernames.normalize(name)
        except usernames.UsernameInvalid:
            raise ValueError(f"must be usernames (admin, support) or none, and {name!r} can't be one") from None
    return names


# .env.example explains these settings; a test keeps the two in step.
SETTINGS: dict[str, tuple[Parser, Any]] = {
    "APP_ENV": (parse_choice("production", "development"), "production"),
    "SECRET_KEY": (parse_secret, None),
    "SECRET_KEY_FALLBACKS": (parse_secrets, []),
    "DATABASE_URL": (parse_database_url, f"sqlite:///{INSTANCE / 'app.db'}"),
    "DATABASE_POOL_SIZE": (parse_number(1, 200), 10),
    "DATABASE_TIMEOUT": (parse_number(1, 60), 2),
    "REDIS_URL": (_redis_url, None),
    "REDIS_PREFIX": (parse_key_prefix, "signup"),
    "PUBLIC_URL": (parse_public_url, None),
    "APP_URL": (parse_app_url, None),
    "TRUSTED_APPS": (parse_origins, []),
    "HSTS_INCLUDE_SUBDOMAINS": (parse_boolean, False),
    "SESSION_COOKIE_NAME": (parse_cookie_name, "session"),
    "SECURITY_CONTACT": (parse_contact, None),
    "APP_NAME": (parse_text, "Signup"),
    "APP_VERSION": (parse_text, None),
    "APP_LOGO": (parse_logo, None),
    "APP_ACCENT": (theme.accent, "#3b4cca"),
    "LANGUAGES": (i18n.parse, i18n.parse(",".join(i18n.SHIPPED))),
    "MAIL_SERVER": (parse_host, None),
    "MAIL_PORT": (parse_number(1, 65535), 25),
    "MAIL_USERNAME": (parse_text, None),
    "MAIL_PASSWORD": (parse_text, None),
    "MAIL_USE_TLS": (parse_boolean, False),
    "MAIL_USE_SSL": (parse_boolean, False),
    "MAIL_TIMEOUT": (parse_number(1, 300), 20),
    "MAIL_ANSWER_TIMEOUT": (parse_number(1, 600), 60),
    "MAIL_CONNECTIONS": (parse_number(1, 100), 2),
    "MAIL_EHLO_NAME": (_ehlo_name, None),
    "MAIL_DEFAULT_SENDER": (_mailbox, None),
    "MAIL_REPLY_TO": (_mailbox, None),
    "MAIL_LOGO": (parse_mail_logo, None),
    "MAIL_MAX_ATTEMPTS": (parse_number(1, 100), 10),
    "MAIL_LIMIT_PER_ADDRESS": (parse_limits, parse_many("1/minute, 5/hour, 10/day")),
    "MAIL_LIMIT_TOTAL": (parse_limits, parse_many("10000/hour")),
    "VERIFY_EMAIL_DELAY": (parse_number(0, 3600), 10),
    "VERIFY_EMAIL_TTL": (parse_number(60, 30 * 86400), 86400),
    "VERIFY_CODE_TTL": (parse_number(60, 86400), 3600),
    "RESET_EMAIL_TTL": (parse_number(60, 86400), 3600),
    "PASSWORD_MIN_LENGTH": (parse_number(8, 64), 8),
    "PASSWORD_HASH_MEMORY": (parse_number(19, 1024), 19),
    "PASSWORD_HASH_PASSES": (parse_number(2, 20), 2),
    "PASSWORD_HASH_LANES": (parse_number(1, 16), 1),
    "REQUIRE_SECOND_FACTOR": (parse_boolean, False),
    "RATELIMIT_ENABLED": (parse_boolean, True),
    "RATELIMIT_POST": (parse_limits, parse_many("1200/minute")),
    "RATELIMIT_STRENGTH": (parse_limits, parse_many("300/minute")),
    "RATELIMIT_SIGNUP": (parse_limits, parse_many("30/hour")),
    "RATELIMIT_RESEND": (parse_limits, parse_many("10/hour")),
    "RATELIMIT_RESET": (parse_limits, parse_many("30/hour")),
    "RATELIMIT_LOGIN_ACCOUNT": (parse_limits, parse_many("10/15 minutes")),
    "RATELIMIT_LOGIN_IP": (parse_limits, parse_many("100/hour")),
    "RATELIMIT_LOGIN_KNOWN": (parse_limits, parse_many("10/15 minutes")),
    "RATELIMIT_ACCOUNT": (parse_limits, parse_many("60/hour, 200/day")),
    "RESERVED_USERNAMES": (_usernames, RESERVED),
    "RETENTION_DAYS": (parse_number(14, 3650), 90),
    "METRICS_TOKEN": (parse_secret, None),
    "TRUSTED_PROXIES": (parse_number(0, 10), 0),
    "COUNTRY_HEADER": (parse_header_name, None),
    "WEB_CONCURRENCY": (parse_number(1, 64), 2),
    "LOG_FORMAT": (parse_choice("console", "json"), "console"),
    "LOG_LEVEL": (parse_choice("debug", "info", "warning", "error"), "info"),
    "LOG_ADDRESSES": (parse_boolean, False),
    "COMPOSE_COMMAND": (parse_text, None),
}

LIMITS = [name for name, (parse, _default) in SETTINGS.items() if parse is parse_limits]


def _fill_in_for_development(config: dict[str, Any]) -> None:
    """Let a fresh checkout run without any settings."""
    config["SECRET_KEY"] = config["SECRET_KEY"] or _development_secret()
    config["PUBLIC_URL"] = config["PUBLIC_URL"] or "http://localhost:5000"
    config["MAIL_SERVER"] = config["MAIL_SERVER"] or "127.0.0.1"
    if not _has_domain(config["PUBLIC_URL"]):
        config["MAIL_DEFAULT_SENDER"] = config["MAIL_DEFAULT_SENDER"] or "no-reply@localhost"


def _development_secret() -> str:
    """Return the secret kept under instance/, so that links survive a restart."""
    path = INSTANCE / "development-secret"
    INSTANCE.mkdir(exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.touch(0o600)
    draft.write_text(secrets.token_urlsafe(32), encoding="utf-8")
    # Web and worker start together and must agree: the first to link its draft wins.
    with suppress(FileExistsError):
        os.link(draft, path)
    draft.unlink()
    return path.read_text(encoding="utf-8")


def _missing(config: dict[str, Any], problems: list[str]) -> list[str]:
    told = {problem.partition(":")[0].removesuffix("_FILE") for problem in problems}
    return [
        f"{name}: is missing (on your own machine `make run` needs no settings, nor does a command after"
        " `export APP_ENV=development`)"
        for name in ("SECRET_KEY", "PUBLIC_URL", "MAIL_SERVER")
        if config[name] is None and name not in told
    ]


def _contradictions(config: dict[str, Any]) -> list[str]:
    problems = []
    if config["MAIL_USE_TLS"] and config["MAIL_USE_SSL"]:
        problems.append("MAIL_USE_TLS and MAIL_USE_SSL: choose one (TLS, or STARTTLS, is for port 587; SSL is for 465)")
    if (config["MAIL_USERNAME"] is None) != (config["MAIL_PASSWORD"] is None):
        problems.append("MAIL_USERNAME and MAIL_PASSWORD: set both or neither")
    if config["MAIL_DEFAULT_SENDER"] is None and not _has_domain(config["PUBLIC_URL"]):
        problems.append(
            "MAIL_DEFAULT_SENDER: is missing, and PUBLIC_URL names no domain that emails could come from:"
            " set it to an address of yours"
        )
    return problems


def _has_domain(url: str | None) -> bool:
    return not addresses.literal(urlsplit(url or "").hostname or "").startswith("[")


def _flask(config: dict[str, Any]) -> dict[str, Any]:
    """Return our settings under the names that Flask and its extensions use, and those derived from ours."""
    public = urlsplit(config["PUBLIC_URL"])
    secure = public.scheme == "https"
    return {
        "MAIL_DEFAULT_SENDER": addresses.mailbox(
            config["MAIL_DEFAULT_SENDER"] or f"no-reply@{public.hostname}", name=config["APP_NAME"]
        ),
        "MAIL_EHLO_NAME": config["MAIL_EHLO_NAME"] or addresses.literal(public.hostname or ""),
        # engine_options() passes the rest of the URL to the driver unchanged.
        "SQLALCHEMY_DATABASE_URI": config["DATABASE_URL"] if _is_sqlite(config) else "postgresql+psycopg://",
        # One switch for all limits.
        **({} if config["RATELIMIT_ENABLED"] else {name: [] for name in LIMITS}),
        "SQLALCHEMY_ENGINE_OPTIONS": engine_options(config),
        "MAX_CONTENT_LENGTH": FORM_BYTES,
        "MAX_FORM_MEMORY_SIZE": FORM_BYTES,
        "MAX_FORM_PARTS": FORM_FIELDS,
        **_cookies(config["SESSION_COOKIE_NAME"], secure=secure),
        "SESSION_COOKIE_SECURE": secure,
        "SESSION_COOKIE_HTTPONLY": True,
        "SESSION_COOKIE_SAMESITE": "Lax",
        "PREFERRED_URL_SCHEME": public.scheme,
        # Our pages send no Referer, and the token is bound to the session anyway.
        "WTF_CSRF_SSL_STRICT": False,
        # A waiting page may stay open for hours.
        "WTF_CSRF_TIME_LIMIT": None,
    }


def _cookies(name: str, *, secure: bool) -> dict[str, str]:
    """Return the names of all our cookies: derived from the session's, so that two apps on one host share none."""
    others = ("link", "language", "known")
    link, language, known = (other if name == "session" else f"{name}-{other}" for other in others)
    # Browsers accept these prefixes only with https, and "__Host-" only with Path=/, which a link's cookie lacks.
    everywhere, in_places = ("__Host-", "__Secure-") if secure else ("", "")
    return {
        "SESSION_COOKIE_NAME": f"{everywhere}{name}",
        "LANGUAGE_COOKIE_NAME": f"{everywhere}{language}",
        "KNOWN_COOKIE_NAME": f"{everywhere}{known}",
        "LINK_COOKIE_NAME": f"{in_places}{link}",
    }


def _is_sqlite(config: Mapping[str, Any]) -> bool:
    return str(config["DATABASE_URL"]).startswith("sqlite")
