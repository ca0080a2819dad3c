"""The development mailbox's server: `python -m tools.mailbox_server PORT [FOLDER]`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from aiosmtpd.smtp import SMTP, Envelope, Session

from webapp.devmail import FOLDER, Mailbox


class Keep:
    """The server's handler: it keeps each email in the mailbox."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:
        content = envelope.content if isinstance(envelope.content, bytes) else b""
        try:
            self.mailbox.save(b"".join(trace(envelope)) + content)
        except OSError as error:
            return f"451 4.3.0 The mailbox could not keep it: {error.strerror}"
        return "250 2.0.0 Kept"


def trace(envelope: Envelope) -> Iterator[bytes]:
    """Yield the headers that the final mail server adds: the envelope's sender and recipients."""
    yield f"Return-Path: <{envelope.mail_from or ''}>\r\n".encode("utf-8", "replace")
    for recipient in envelope.rcpt_tos:
        yield f"Delivered-To: {recipient}\r\n".encode("utf-8", "replace")


async def serve(port: int, folder: Path) -> None:
    """Serve until SIGTERM or SIGINT. Raises OSError if the port is taken."""
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    for ending in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(ending, told.set)
    keep = Keep(Mailbox(folder))
    await loop.create_server(lambda: SMTP(keep, enable_SMTPUTF8=True), "127.0.0.1", port)
    # Open connections end with the loop: emails that were acknowledged are kept, the others are sent again.
    await told.wait()


def main(arguments: list[str]) -> None:
    """`arguments`: the port and, if it is not the default, the folder."""
    port, folder = int(arguments[0]), Path(arguments[1]) if len(arguments) > 1 else FOLDER
    try:
        asyncio.run(serve(port, folder))
    except OSError as error:
        sys.exit(f"The mailbox cannot listen on port {port}: {os.strerror(error.errno or 0)}")


if __name__ == "__main__":
    main(sys.argv[1:])
