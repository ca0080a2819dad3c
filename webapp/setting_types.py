"""Parsers for the values of settings: each returns the value, or raises ValueError saying what would be right."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import psycopg
from limits import RateLimitItem, parse_many
from psycopg.conninfo import conninfo_to_dict

from webapp.paths import INSTANCE, ROOT

LOGOS = (".svg", ".png", ".webp", ".jpg", ".jpeg", ".gif")
# The beginning of every PNG file, up to and including its dimensions.
PNG = re.compile(rb"\x89PNG\r\n\x1a\n.{4}IHDR.{8}", re.DOTALL)

# Our emails stay under 30 kB; the longest leaves this much for a logo.
MAIL_LOGO_MAX = 12_000
MAIL_LOGO_HEIGHT = 32
MAIL_LOGO_WIDEST = 7
EXAMPLE_SECRETS = (
    *("change", "default", "development", "django-insecure", "example", "insecure", "password", "please", "secret"),
    "your-",
)
Parser = Callable[[str], Any]


class ConfigError(SystemExit):
    """Invalid settings; its text names every problem, one per line.

    Uncaught, it ends the process with that text and no traceback: there is nothing to debug.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(["These settings need your attention:", *(f"  {problem}" for problem in problems)]))


def parse_text(raw: str) -> str:
    if not raw.isprintable():
        raise ValueError("must be one line of printable text")
    return raw


def parse_boolean(raw: str) -> bool:
    try:
        return {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}[raw.lower()]
    except KeyError:
        raise ValueError(f"must be true or false, not {raw!r}") from None


def parse_host(raw: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*", raw):
        raise ValueError(f"must be a host's name or address, and its port in MAIL_PORT, not {raw!r}")
    return raw


def parse_number(minimum: int, maximum: int) -> Parser:
    def parse(raw: str) -> int:
        if not raw.isascii() or not raw.isdigit() or not minimum <= int(raw) <= maximum:
            raise ValueError(f"must be a whole number from {minimum} to {maximum}, not {raw!r}")
        return int(raw)

    return parse


def parse_choice(*choices: str) -> Parser:
    def parse(raw: str) -> str:
        if raw.lower() not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}, not {raw!r}")
        return raw.lower()

    return parse


def parse_secret(raw: str) -> str:
    if len(raw) < 16 or raw.lower().startswith(EXAMPLE_SECRETS) or repeats(raw):
        raise ValueError(
            "must be at least 16 random characters, "
            "such as this prints: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return raw


def repeats(raw: str) -> bool:
    """Return whether a secret has few different characters, or repeats a short sequence."""
    # Only its beginning: the longer a secret, the more triples repeat by chance.
    triples = [raw[start : start + 3] for start in range(min(len(raw), 100) - 2)]
    return len(set(triples)) < 0.75 * len(triples)


def parse_secrets(raw: str) -> list[str]:
    return [parse_secret(part.strip()) for part in raw.split(",") if part.strip()]


def parse_database_url(raw: str) -> str:
    scheme, _, rest = raw.partition("://")
    if scheme == "sqlite" and rest.startswith("/") and rest not in {"/", "/:memory:"}:
        return f"sqlite:///{INSTANCE / rest[1:].partition('?')[0]}"
    if scheme not in {"postgresql", "postgres", "postgresql+psycopg"}:
        raise ValueError("must begin with postgresql:// or sqlite:/// and name a database")
    # Everything that libpq understands (several hosts, options, certificates), in a form that psql takes too.
    url = f"postgresql://{rest}"
    try:
        parts = conninfo_to_dict(url)
    except psycopg.Error as error:
        # Other messages may quote the password.
        if unknown := re.search(r'invalid URI query parameter: "\w+"', str(error)):
            raise ValueError(f"must have only parameters that PostgreSQL knows: {unknown[0]}") from None
        parts = {}
    ports = str(parts.get("port", "")).split(",")
    if not parts.get("dbname") or "@" in str(parts.get("host", "")) or not all(p.isdigit() or not p for p in ports):
        raise ValueError(
            "must look like postgresql://user:password@host:5432/name, with %40 for an @ in the password,"
            " %2F for a /, %25 for a %"
        )
    return url


def parse_header_name(raw: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", raw):
        raise ValueError(f"must be a header's name, such as CF-IPCountry, not {raw!r}")
    return raw


def parse_public_url(raw: str) -> str:
    # No path: every route would have to be below it. Only ASCII: emails spell names in other scripts in punycode.
    found = re.fullmatch(r"https?://(?:[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?/?", raw)
    if not found or int(found[1] or 443) > 65535:
        raise ValueError(f"must look like https://www.example.com, in ASCII and without a path, not {raw!r}")
    return raw.rstrip("/")


def parse_app_url(raw: str) -> str:
    """Return the app's URL with a path, and its host in lower case, as browsers write it."""
    found = re.fullmatch(r"(https?://[^/]+)(/[!-~]*)?", raw, re.IGNORECASE)
    if not found or re.search(r"[\\?#]|//|/\.", found[2] or ""):
        raise ValueError(f"must look like https://app.example.com or https://www.example.com/app, not {raw!r}")
    return parse_public_url(found[1].lower()) + (found[2] or "/")


def parse_origins(raw: str) -> list[str]:
    return [parse_public_url(part.strip().lower()) for part in raw.split(",") if part.strip()]


def parse_cookie_name(raw: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", raw):
        raise ValueError(f"must be letters, digits, - and _ (a prefix for https is added to it), not {raw!r}")
    return raw


def parse_key_prefix(raw: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,39}", raw):
        raise ValueError(f"must be letters, digits, and _ . : - between them, not {raw!r}")
    return raw


def parse_contact(raw: str) -> str:
    """Return the contact as a URI, as security.txt requires."""
    if re.fullmatch(r"(https://|mailto:|tel:)[!-~]+", raw):
        return raw
    if re.fullmatch(r"[!-~]+@[A-Za-z0-9.-]+", raw):
        return f"mailto:{raw}"
    raise ValueError(f"must be an address such as security@example.com, or https://…, not {raw!r}")


def parse_logo(raw: str) -> str:
    path = ROOT / parse_text(raw)
    if path.suffix.lower() not in LOGOS or not path.is_file():
        raise ValueError(f"must be the path of a picture ({', '.join(LOGOS)}), not {raw!r}")
    return str(path)


class MailLogo(NamedTuple):
    """A PNG picture, and its displayed size in pixels."""

    content: bytes
    width: int
    height: int


def parse_mail_logo(raw: str) -> MailLogo:
    path = ROOT / parse_text(raw)
    content = path.read_bytes() if path.is_file() and path.stat().st_size <= MAIL_LOGO_MAX else b""
    width, height = struct.unpack(">II", content[16:24]) if PNG.match(content) else (0, 0)
    if not 0 < width <= MAIL_LOGO_WIDEST * height:
        raise ValueError(
            f"must be the path of a PNG picture of at most {MAIL_LOGO_MAX} bytes, and at most {MAIL_LOGO_WIDEST} times "
            f"as wide as it is high, not {raw!r}"
        )
    return MailLogo(content, round(width * MAIL_LOGO_HEIGHT / height), MAIL_LOGO_HEIGHT)


def parse_limits(raw: str) -> list[RateLimitItem]:
    if raw.lower() == "none":
        return []
    try:
        limits = parse_many(raw)
    except ValueError:
        limits = []
    if not limits or any(limit.amount < 1 for limit in limits):
        raise ValueError(f"must look like 30/hour or like 1/minute, 10/15 minutes, or be none, not {raw!r}")
    return limits
