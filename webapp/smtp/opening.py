"""How a conversation begins: greet, encrypt and sign in, as the settings say."""

from __future__ import annotations

from typing import Any

from webapp.smtp import sasl
from webapp.smtp.client import Line, Refused, Reply
from webapp.smtp.protocol import Tell, accept, step


def greet(line: Line, account: Any, tell: Tell) -> dict[str, str]:
    """Exchange greetings, over TLS if the settings ask for it; return the extensions that the server offers.

    Raises SmtpError, like `log_in`.
    """
    if account.use_ssl:
        with step("tls"):
            line.encrypt(account.tls, account.server)
    with step("greeting"):
        tell("greeting", accept(line.read()))
    offers = _say_hello(line, account.ehlo_name, tell)
    if account.use_tls:
        with step("tls"):
            if "STARTTLS" not in offers:
                raise OSError("the server does not offer STARTTLS, which MAIL_USE_TLS asks for")
            tell("tls", ask(line, "starttls"))
            line.encrypt(account.tls, account.server)
        offers = _say_hello(line, account.ehlo_name, tell)
    return offers


def log_in(line: Line, account: Any, offers: dict[str, str], tell: Tell) -> None:
    if account.username and account.password:
        with step("login"):
            is_encrypted = account.use_ssl or account.use_tls
            offered = offers.get("AUTH", "").upper().split()
            said = sasl.log_in(line, offered, account.username, account.password, is_encrypted=is_encrypted)
            tell("login", said)


def _say_hello(line: Line, name: str, tell: Tell) -> dict[str, str]:
    with step("ehlo"):
        try:
            reply = ask(line, f"ehlo {name}")
        except Refused as refused:
            # The server does not know EHLO.
            if refused.reply.code // 10 != 50:
                raise
            reply = ask(line, f"helo {name}")
        tell("ehlo", reply)
    offers: dict[str, str] = {}
    for offer in reply.text.split("\n")[1:]:
        keyword, _, rest = offer.replace("=", " ").partition(" ")
        offers[keyword.upper()] = f"{offers.get(keyword.upper(), '')} {rest}"
    return offers


def ask(line: Line, command: str) -> Reply:
    """Raises Refused, OSError."""
    line.write(f"{command}\r\n".encode("ascii"))
    return accept(line.read())
