"""Settings: read from the environment, checked all at once, handed to Flask."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
from dotenv import dotenv_values
from limits import RateLimitItem, parse_many
from psycopg.conninfo import conninfo_to_dict

from webapp import theme
from webapp.accounts.identifiers import usernames
from webapp.queue import redis_url
from webapp.smtp import addresses

ROOT = Path(__file__).resolve().parent.parent
INSTANCE = ROOT / "instance"
LOGOS = (".svg", ".png", ".webp", ".jpg", ".jpeg", ".gif")
EXAMPLE_SECRETS = ("change", "secret", "example", "your-")
# Names that people take for ours: mostly those of RFC 2142, to which mail of a domain's owner goes.
RESERVED = [
    *("abuse", "admin", "administrator", "billing", "contact", "help", "helpdesk", "hostmaster", "info"),
    *("mailer-daemon", "moderator", "no-reply", "noreply", "official", "postmaster", "root", "security", "staff"),
    *("support", "sysadmin", "system", "team", "webmaster"),
]
# The longest form, all of it in letters that take four bytes, each byte written as "%F0".
FORM_BYTES = 16 * 1024
FORM_FIELDS = 100

Parser = Callable[[str], Any]


class ConfigError(SystemExit):
    """Settings that make no sense; its text names every problem, one a line.

    Uncaught, it ends the process with that text and no traceback: there is nothing to debug.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(["These settings need your attention:", *(f"  {problem}" for problem in problems)]))


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
    """Return what `.env` holds, if it is there. Raises ConfigError."""
    try:
        # Editors that begin a file with a byte order mark mean no part of the first name.
        values = dotenv_values(ROOT / ".env", encoding="utf-8-sig")
    except UnicodeDecodeError:
        values = {"\0": None}
    if any("\0" in name for name in values):
        raise ConfigError([".env: is not text in UTF-8: have your editor save it so"])
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


# Parsers: text in, value out, ValueError with what would be right.


def _text(raw: str) -> str:
    if not raw.isprintable():
        raise ValueError("must be one line of printable text")
    return raw


def _boolean(raw: str) -> bool:
    try:
        return {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}[raw.lower()]
    except KeyError:
        raise ValueError(f"must be true or false, not {raw!r}") from None


def _host(raw: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*", raw):
        raise ValueError(f"must be a host's name or address, and its port in MAIL_PORT, not {raw!r}")
    return raw


def _number(minimum: int, maximum: int) -> Parser:
    def parse(raw: str) -> int:
        if not raw.isascii() or not raw.isdigit() or not minimum <= int(raw) <= maximum:
            raise ValueError(f"must be a whole number from {minimum} to {maximum}, not {raw!r}")
        return int(raw)

    return parse


def _choice(*choices: str) -> Parser:
    def parse(raw: str) -> str:
        if raw.lower() not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}, not {raw!r}")
        return raw.lower()

    return parse


def _secret(raw: str) -> str:
    if len(raw) < 16 or raw.lower().startswith(EXAMPLE_SECRETS) or _repeats(raw):
        raise ValueError(
            "must be at least 16 random characters, "
            "such as this prints: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return raw


def _repeats(raw: str) -> bool:
    """Return whether a secret is made of few characters, or of few that come again and again."""
    # Of a long one, ever more come by chance.
    triples = [raw[start : start + 3] for start in range(min(len(raw), 100) - 2)]
    return len(set(triples)) < 0.75 * len(triples)


def _secrets(raw: str) -> list[str]:
    return [_secret(part.strip()) for part in raw.split(",") if part.strip()]


def _database_url(raw: str) -> str:
    scheme, _, rest = raw.partition("://")
    if scheme == "sqlite" and rest.startswith("/") and rest not in {"/", "/:memory:"}:
        return f"sqlite:///{INSTANCE / rest[1:].partition('?')[0]}"
    if scheme not in {"postgresql", "postgres", "postgresql+psycopg"}:
        raise ValueError("must begin with postgresql:// or sqlite:/// and name a database")
    # What libpq understands, psql does too: several hosts, options, certificates.
    url = f"postgresql://{rest}"
    try:
        parts = conninfo_to_dict(url)
    except psycopg.Error as error:
        # Other messages quote what may be the password.
        if unknown := re.search(r'invalid URI query parameter: "\w+"', str(error)):
            raise ValueError(f"must have parameters that PostgreSQL knows: {unknown[0]}") from None
        parts = {}
    ports = str(parts.get("port", "")).split(",")
    if not parts.get("dbname") or "@" in str(parts.get("host", "")) or not all(p.isdigit() or not p for p in ports):
        raise ValueError(
            "must look like postgresql://user:password@host:5432/name, with %40 for an @ in the password,"
            " %2F for a /, %25 for a %"
        )
    return url


def _redis_url(raw: str) -> str:
    redis_url.parse(raw)
    return raw


def _public_url(raw: str) -> str:
    # A path would need every route below it; a name in another script is written in punycode in mails.
    found = re.fullmatch(r"https?://(?:[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?/?", raw)
    if not found or int(found[1] or 443) > 65535:
        raise ValueError(f"must look like https://www.example.com, in ASCII and without a path, not {raw!r}")
    return raw.rstrip("/")


def _cookie_name(raw: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", raw):
        raise ValueError(f"must be letters, digits, - and _ (what https wants before it is added), not {raw!r}")
    return raw


def _contact(raw: str) -> str:
    """Return where to write, as an address that security.txt takes."""
    if re.fullmatch(r"(https://|mailto:|tel:)[!-~]+", raw):
        return raw
    if re.fullmatch(r"[!-~]+@[A-Za-z0-9.-]+", raw):
        return f"mailto:{raw}"
    raise ValueError(f"must be an address such as security@example.com, or https://…, not {raw!r}")


def _logo(raw: str) -> str:
    path = ROOT / _text(raw)
    if path.suffix.lower() not in LOGOS or not path.is_file():
        raise ValueError(f"must be the path of a picture ({', '.join(LOGOS)}), not {raw!r}")
    return str(path)


def _mailbox(raw: str) -> str:
    try:
        return addresses.mailbox(_text(raw))
    except ValueError:
        raise ValueError(f"must be an address, or Name <address>, not {raw!r}") from None


def _ehlo_name(raw: str) -> str:
    name = raw if re.fullmatch(r"\[[0-9A-Za-z.:]+\]", raw) else addresses.literal(raw)
    if not re.fullmatch(r"\[.+\]|[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", name):
        raise ValueError(f"must be this machine's name or address, as its mail server shall see it, not {raw!r}")
    return name


def _limits(raw: str) -> list[RateLimitItem]:
    if raw.lower() == "none":
        return []
    try:
        limits = parse_many(raw)
    except ValueError:
        limits = []
    if not limits or any(limit.amount < 1 for limit in limits):
        raise ValueError(f"must look like 30/hour or like 1/minute, 10/15 minutes, or be none, not {raw!r}")
    return limits


def _usernames(raw: str) -> list[str]:
    names = [] if raw.lower() == "none" else [part.strip() for part in _text(raw).split(",")]
    for name in names:
        try:
            usernames.normalize(name)
        except usernames.UsernameInvalid:
            raise ValueError(f"must be usernames, as in admin, support, or none, and {name!r} is none") from None
    return names


# The manual of these settings is .env.example; a test keeps the two together.
SETTINGS: dict[str, tuple[Parser, Any]] = {
    "APP_ENV": (_choice("production", "development"), "production"),
    "SECRET_KEY": (_secret, None),
    "SECRET_KEY_FALLBACKS": (_secrets, []),
    "DATABASE_URL": (_database_url, f"sqlite:///{INSTANCE / 'app.db'}"),
    "DATABASE_POOL_SIZE": (_number(1, 200), 10),
    "DATABASE_TIMEOUT": (_number(1, 60), 2),
    "REDIS_URL": (_redis_url, None),
    "PUBLIC_URL": (_public_url, None),
    "HSTS_INCLUDE_SUBDOMAINS": (_boolean, False),
    "SESSION_COOKIE_NAME": (_cookie_name, "session"),
    "SECURITY_CONTACT": (_contact, None),
    "APP_NAME": (_text, "Signup"),
    "APP_VERSION": (_text, None),
    "APP_LOGO": (_logo, None),
    "APP_ACCENT": (theme.accent, "#3b4cca"),
    "MAIL_SERVER": (_host, None),
    "MAIL_PORT": (_number(1, 65535), 25),
    "MAIL_USERNAME": (_text, None),
    "MAIL_PASSWORD": (_text, None),
    "MAIL_USE_TLS": (_boolean, False),
    "MAIL_USE_SSL": (_boolean, False),
    "MAIL_TIMEOUT": (_number(1, 300), 20),
    "MAIL_ANSWER_TIMEOUT": (_number(1, 600), 60),
    "MAIL_CONNECTIONS": (_number(1, 100), 2),
    "MAIL_EHLO_NAME": (_ehlo_name, None),
    "MAIL_DEFAULT_SENDER": (_mailbox, None),
    "MAIL_REPLY_TO": (_mailbox, None),
    "MAIL_MAX_ATTEMPTS": (_number(1, 100), 10),
    "MAIL_LIMIT_PER_ADDRESS": (_limits, parse_many("1/minute, 5/hour, 10/day")),
    "MAIL_LIMIT_TOTAL": (_limits, parse_many("10000/hour")),
    "VERIFY_EMAIL_DELAY": (_number(0, 3600), 10),
    "VERIFY_EMAIL_TTL": (_number(60, 30 * 86400), 86400),
    "VERIFY_CODE_TTL": (_number(60, 86400), 3600),
    "RESET_EMAIL_TTL": (_number(60, 86400), 3600),
    "PASSWORD_MIN_LENGTH": (_number(8, 64), 8),
    "PASSWORD_HASH_MEMORY": (_number(19, 1024), 19),
    "PASSWORD_HASH_PASSES": (_number(2, 20), 2),
    "PASSWORD_HASH_LANES": (_number(1, 16), 1),
    "RATELIMIT_ENABLED": (_boolean, True),
    "RATELIMIT_POST": (_limits, parse_many("1200/minute")),
    "RATELIMIT_SIGNUP": (_limits, parse_many("30/hour")),
    "RATELIMIT_RESEND": (_limits, parse_many("10/hour")),
    "RATELIMIT_RESET": (_limits, parse_many("30/hour")),
    "RATELIMIT_LOGIN_ACCOUNT": (_limits, parse_many("10/15 minutes")),
    "RATELIMIT_LOGIN_IP": (_limits, parse_many("100/hour")),
    "RATELIMIT_LOGIN_KNOWN": (_limits, parse_many("10/15 minutes")),
    "RESERVED_USERNAMES": (_usernames, RESERVED),
    "RETENTION_DAYS": (_number(14, 3650), 90),
    "METRICS_TOKEN": (_secret, None),
    "TRUSTED_PROXIES": (_number(0, 10), 0),
    "WEB_CONCURRENCY": (_number(1, 64), 2),
    "LOG_FORMAT": (_choice("console", "json"), "console"),
    "LOG_LEVEL": (_choice("debug", "info", "warning", "error"), "info"),
    "LOG_ADDRESSES": (_boolean, False),
}


LIMITS = [name for name, (parse, _default) in SETTINGS.items() if parse is _limits]


def _fill_in_for_development(config: dict[str, Any]) -> None:
    """Make a fresh checkout run without a single setting."""
    config["SECRET_KEY"] = config["SECRET_KEY"] or _development_secret()
    config["PUBLIC_URL"] = config["PUBLIC_URL"] or "http://localhost:5000"
    config["MAIL_SERVER"] = config["MAIL_SERVER"] or "127.0.0.1"


def _development_secret() -> str:
    """Return the secret kept under instance/: a restart must not break links in flight."""
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
        f"{name}: is missing (for a trial on your own machine use `make run`, which needs no settings)"
        for name in ("SECRET_KEY", "PUBLIC_URL", "MAIL_SERVER")
        if config[name] is None and name not in told
    ]


def _contradictions(config: dict[str, Any]) -> list[str]:
    problems = []
    if config["MAIL_USE_TLS"] and config["MAIL_USE_SSL"]:
        problems.append("MAIL_USE_TLS and MAIL_USE_SSL: choose one (TLS is STARTTLS, mostly port 587; SSL is port 465)")
    if (config["MAIL_USERNAME"] is None) != (config["MAIL_PASSWORD"] is None):
        problems.append("MAIL_USERNAME and MAIL_PASSWORD: set both or neither")
    host = urlsplit(config["PUBLIC_URL"] or "").hostname or ""
    if config["MAIL_DEFAULT_SENDER"] is None and addresses.literal(host).startswith("["):
        problems.append("MAIL_DEFAULT_SENDER: is missing, and PUBLIC_URL names no domain that mails could come from")
    return problems


def _flask(config: dict[str, Any]) -> dict[str, Any]:
    """What Flask and its extensions call our settings, and what follows from them."""
    public = urlsplit(config["PUBLIC_URL"])
    secure = public.scheme == "https"
    return {
        "MAIL_DEFAULT_SENDER": addresses.mailbox(
            config["MAIL_DEFAULT_SENDER"] or f"no-reply@{public.hostname}", name=config["APP_NAME"]
        ),
        "MAIL_EHLO_NAME": config["MAIL_EHLO_NAME"] or addresses.literal(public.hostname or ""),
        # The driver gets the rest of it as it is.
        "SQLALCHEMY_DATABASE_URI": config["DATABASE_URL"] if _is_sqlite(config) else "postgresql+psycopg://",
        # One switch for all limits.
        **({} if config["RATELIMIT_ENABLED"] else {name: [] for name in LIMITS}),
        "SQLALCHEMY_ENGINE_OPTIONS": _engine_options(config),
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
    """Return what all our cookies are called: by the session's, so that two apps on one host share none."""
    others = ("link", "language", "known")
    link, language, known = (other if name == "session" else f"{name}-{other}" for other in others)
    if not secure:
        return {
            "SESSION_COOKIE_NAME": name,
            "LANGUAGE_COOKIE_NAME": language,
            "KNOWN_COOKIE_NAME": known,
            "LINK_COOKIE_NAME": link,
        }
    return {
        # These must be Secure, so the names follow the scheme.
        "SESSION_COOKIE_NAME": f"__Host-{name}",
        "LANGUAGE_COOKIE_NAME": f"__Host-{language}",
        "KNOWN_COOKIE_NAME": f"__Host-{known}",
        # "__Host-" would be sent to every page.
        "LINK_COOKIE_NAME": f"__Secure-{link}",
    }


def _engine_options(config: dict[str, Any]) -> dict[str, Any]:
    # An error's text must not carry addresses into the log.
    options: dict[str, Any] = {"hide_parameters": True}
    if _is_sqlite(config):
        return options
    timeout = config["DATABASE_TIMEOUT"]
    return options | {
        "pool_size": config["DATABASE_POOL_SIZE"],
        "max_overflow": 0,
        "pool_timeout": timeout,
        # The others may rest: one that was used lately need not be asked whether it lives.
        "pool_use_lifo": True,
        "connect_args": {
            "connect_timeout": timeout,
            # A connection into a black hole ends, instead of holding a request for minutes.
            "tcp_user_timeout": timeout * 1000,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "application_name": config["APP_NAME"],
            # Of several hosts the primary; and one that may only be read is as good as away.
            "target_session_attrs": "read-write",
            **conninfo_to_dict(config["DATABASE_URL"]),
        },
    }


def _is_sqlite(config: Mapping[str, Any]) -> bool:
    return str(config["DATABASE_URL"]).startswith("sqlite")
