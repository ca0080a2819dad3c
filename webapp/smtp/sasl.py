"""Signing in to a mail server: AUTH PLAIN, LOGIN and CRAM-MD5, with names and passwords in any script."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable, Iterable

from webapp.smtp.client import Line, Refused, Reply
from webapp.smtp.protocol import accept


def log_in(line: Line, offered: Iterable[str], username: str, password: str, *, is_encrypted: bool) -> Reply:
    """Sign in by what the server offers; return its last reply. Raises Refused, OSError, both without the password."""
    # Without TLS, what an eavesdropper cannot use comes first; with TLS, what works best on most servers.
    ways = ["PLAIN", "LOGIN", "CRAM-MD5"] if is_encrypted else ["CRAM-MD5", "PLAIN", "LOGIN"]
    name, secret = username.encode(), password.encode()
    refusals: list[Refused] = []
    for way in [way for way in ways if way in offered]:
        try:
            return WAYS[way](Exchange(line, name, secret))
        except Refused as refused:
            refusals.append(refused)
            if refused.reply.code < 500:
                break
    if not refusals:
        raise OSError(f"the server offers no way to sign in that we know: {' '.join(offered) or 'none at all'}")
    # An "unknown mechanism" must not hide that the password was wrong.
    raise min(refusals, key=lambda refused: refused.reply.code != 535)


class Exchange:
    """One sign-in. What we send is removed from the server's replies, which may repeat it."""

    def __init__(self, line: Line, name: bytes, secret: bytes) -> None:
        self.line = line
        self.name = name
        self.secret = secret

    def ask(self, way: str, said: bytes = b"") -> Reply:
        return self._say(f"AUTH {way} ".encode() + said, said)

    def answer(self, said: bytes, expected: int = 2) -> Reply:
        return accept(self._say(said, said), expected)

    def _say(self, said: bytes, hidden: bytes) -> Reply:
        self.line.write(said.strip() + b"\r\n")
        code, text = self.line.read()
        for word in filter(None, [hidden.decode(), self.secret.decode()]):
            text = text.replace(word, "…")
        return Reply(code, text)


def plain(exchange: Exchange) -> Reply:
    proof = base64.b64encode(b"\0%b\0%b" % (exchange.name, exchange.secret))
    reply = exchange.ask("PLAIN", proof)
    if reply.code == 334:
        # Some servers ignore what came with the command, and ask for it.
        return exchange.answer(proof)
    return accept(reply)


def login(exchange: Exchange) -> Reply:
    # Not every server takes a name that it has not asked for.
    accept(exchange.ask("LOGIN"), 3)
    exchange.answer(base64.b64encode(exchange.name), 3)
    return exchange.answer(base64.b64encode(exchange.secret))


def cram_md5(exchange: Exchange) -> Reply:
    challenge = accept(exchange.ask("CRAM-MD5"), 3).text
    try:
        proof = hmac.new(exchange.secret, base64.b64decode(challenge), "md5").hexdigest()
    except ValueError as error:
        raise OSError(f"CRAM-MD5: {error}") from error
    return exchange.answer(base64.b64encode(exchange.name + b" " + proof.encode()))


WAYS: dict[str, Callable[[Exchange], Reply]] = {"PLAIN": plain, "LOGIN": login, "CRAM-MD5": cram_md5}
