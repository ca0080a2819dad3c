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
    """Yield the headers that the last server on a mail's way adds: whom it was really from and for."""
    yield f"Return-Path: <{envelope.mail_from or ''}>\r\n".encode("utf-8", "replace")
    for recipient in envelope.rcpt_tos:
        yield f"Delivered-To: {recipient}\r\n".encode("utf-8", "replace")


async def serve(port: int, folder: Path) -> None:
    """Serve until SIGTERM or SIGINT. Raises OSError when the port is taken."""
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    for ending in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(ending, told.set)
    keep = Keep(Mailbox(folder))
    await loop.create_server(lambda: SMTP(keep, enable_SMTPUTF8=True), "127.0.0.1", port)
    # Connections that are still open end with the loop: what was answered is kept, the rest is sent again.
    await told.wait()


def main(arguments: list[str]) -> None:
    """`arguments`: the port and, if it is not ours, the folder."""
    port, folder = int(arguments[0]), Path(arguments[1]) if len(arguments) > 1 else FOLDER
    try:
        asyncio.run(serve(port, folder))
    except OSError as error:
        sys.exit(f"The mailbox cannot listen on port {port}: {os.strerror(error.errno or 0)}")


if __name__ == "__main__":
    main(sys.argv[1:])
