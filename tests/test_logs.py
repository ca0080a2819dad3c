"""What is in the logs, and what must not be."""

from __future__ import annotations

import json
import socket

import pytest

from tests.test_journey import Environ, website_and_log
from webapp.logs import ADDRESSES, TOKENS, leave_out

TOKEN = "-zK3-0xNotAToken_aB9"  # noqa: S105 - a test's own


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (f"Exception on /verify/{TOKEN} [GET]", "Exception on /verify/<token> [GET]"),
        (f"Invalid HTTP request line: 'GET /verify/{TOKEN}'", "Invalid HTTP request line: 'GET /verify/<token>'"),
        ("DETAIL: Key (email)=(dup@example.com) already exists.", "DETAIL: Key (email)=(<address>) already exists."),
        ("to <mick@example.com> and 'ann@example.com'", "to <<address>> and '<address>'"),
        ("nothing to hide", "nothing to hide"),
    ],
)
def test_tokens_and_addresses_are_left_out_of_every_line(line: str, kept: str) -> None:
    assert leave_out(TOKENS, ADDRESSES)(None, "error", {"event": line, "number": 1}) == {"event": kept, "number": 1}


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_link_that_ends_in_an_error_leaves_no_token_in_the_log(process_environ: Environ, log_format: str) -> None:
    environ = process_environ | {"LOG_FORMAT": log_format}
    with website_and_log(environ) as (url, web):
        port = int(url.rpartition(":")[2])
        for path in (f"/verify/{TOKEN}", f"/verify/{TOKEN}\N{LATIN SMALL LETTER E WITH ACUTE}"):
            with socket.create_connection(("localhost", port)) as connection:
                connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode("latin-1"))
                assert connection.recv(100).startswith(b"HTTP/1.1 4")
        assert TOKEN not in web.log
        if log_format == "json":
            for line in web.log.splitlines():
                assert json.loads(line)["timestamp"]
