"""Third-party mail servers, as packaged by Debian, started on loopback; no email leaves it."""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import smtplib
import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import trustme

from harness.processes import Process, free_port, wait_until

CONFIGURATIONS = Path(__file__).with_name("mta")

# Where packages were unpacked with `dpkg -x`, since the three conflict, and where they are if installed.
UNPACKED = Path(os.environ.get("MAIL_SERVERS", "/nowhere"))
PROGRAMS = f"{UNPACKED}/usr/sbin:{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"


def program(name: str) -> str | None:
    """Return its path, or None if it is not there or we may not start it: each of them needs root."""
    return shutil.which(name, path=PROGRAMS) if os.geteuid() == 0 else None


class Mta:
    """A running server. `log`: everything that it wrote since it was ready."""

    def __init__(self, process: Process, folder: Path, port: int) -> None:
        self.process = process
        self.folder = folder
        self.port = port
        # Skip what it logged about its start and about our readiness checks.
        self.before = len(self._all())

    @property
    def log(self) -> str:
        return self._all()[self.before :]

    def _all(self) -> str:
        return "\n".join(
            [file.read_text("utf-8", "replace") for file in sorted(self.folder.glob("*log"))] + [self.process.log]
        )

    @property
    def connections(self) -> int:
        return len(re.findall(r"\]: connect from |SMTP connection from .*\(TCP|smtp connected address=127", self.log))

    @property
    def complaints(self) -> list[str]:
        """The log lines that a postmaster would look into; a refused recipient is not one."""
        return [line for line in self.log.splitlines() if re.search(COMPLAINTS, line)]


COMPLAINTS = (
    r"(?i)^(?!debug).*(warning|error:|fatal|panic|\blost\b|improper|pipelining|synchronization|unexpected|timeout)"
)


def greets(port: int) -> bool:
    try:
        with smtplib.SMTP("127.0.0.1", port):
            return True
    except OSError:
        return False


def configured(name: str, folder: Path, **values: object) -> Path:
    """Write a configuration from harness/mta, with its placeholders filled in."""
    text = (CONFIGURATIONS / name).read_text("utf-8")
    for key, value in {"folder": folder, **values}.items():
        text = text.replace(f"@{key}@", str(value))
    written = folder / name
    written.write_text(text, "utf-8")
    return written


@contextmanager
def running(process: Process, folder: Path, port: int) -> Iterator[Mta]:
    with process:
        wait_until(lambda: greets(port), "it does not greet")
        yield Mta(process, folder, port)
        process.stop()


@contextmanager
def postfix(folder: Path, environ: Mapping[str, str], **settings: object) -> Iterator[Mta]:
    """`settings` are lines of main.cf."""
    port = free_port()
    for name in ("main.cf", "master.cf", "people"):
        configured(f"postfix-{name}", folder, port=port).rename(folder / name)
    with (folder / "main.cf").open("a", encoding="utf-8") as main:
        main.writelines(f"{name} = {value}\n" for name, value in settings.items())
    (folder / "queue").mkdir()
    (folder / "data").mkdir()
    shutil.chown(folder / "data", "postfix")
    command = [program("postfix") or "", "-c", str(folder), "start-fg"]
    with running(Process(*command, environ=environ), folder, port) as mta:
        try:
            yield mta
        finally:
            # Stopping the process that we started does not end it.
            os.kill(int((folder / "queue" / "pid" / "master.pid").read_text()), signal.SIGTERM)


@contextmanager
def exim(folder: Path, environ: Mapping[str, str], **settings: object) -> Iterator[Mta]:
    """`settings` are lines of the main part."""
    # It writes there as its own user.
    folder.chmod(0o777)
    port = free_port()
    more = "\n".join(f"{name} = {value}" for name, value in {"tls_advertise_hosts": "", **settings}.items())
    written = configured("exim.conf", folder, port=port, more=more)
    libraries = {"LD_LIBRARY_PATH": f"{UNPACKED}/usr/lib/x86_64-linux-gnu"}
    command = [program("exim4") or "", "-C", str(written), "-bdf"]
    with running(Process(*command, environ={**environ, **libraries}), folder, port) as mta:
        yield mta


@contextmanager
def opensmtpd(folder: Path, environ: Mapping[str, str]) -> Iterator[Mta]:
    port = free_port()
    written = configured("smtpd.conf", folder, port=port)
    people = "".join(f"ann{n}@example.com: nobody\n" for n in range(100))
    (folder / "people").write_text(people, "utf-8")
    Path("/var/lib/opensmtpd/empty").mkdir(parents=True, exist_ok=True)
    with running(Process(program("smtpd") or "", "-dv", "-f", str(written), environ=environ), folder, port) as mta:
        yield mta


def certificate(folder: Path, host: str) -> trustme.CA:
    """Put a certificate and its key there, and return the CA that signed it."""
    authority = trustme.CA()
    issued = authority.issue_cert(host)
    issued.private_key_and_cert_chain_pem.write_to_path(folder / "both.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    return authority


class DovecotAuth(socketserver.StreamRequestHandler):
    """The part of Dovecot's authentication that Postfix uses: only one name and password are right."""

    right = b"\0m\xc3\xbccke\0P\xc3\xa4ssw\xc3\xb6rd\xe2\x82\xac1"

    def handle(self) -> None:
        self.wfile.write(
            b"VERSION\t1\t1\nMECH\tPLAIN\tplaintext\nSPID\t1\nCUID\t1\nCOOKIE\t00000000000000000000000000000000\nDONE\n"
        )
        for line in self.rfile:
            if found := re.match(rb"AUTH\t(\d+)\t.*resp=([^\t\n]+)", line):
                is_right = base64.b64decode(found[2]) == self.right
                self.wfile.write(b"OK\t%b\tuser=mick\n" % found[1] if is_right else b"FAIL\t%b\n" % found[1])


@contextmanager
def dovecot_auth() -> Iterator[int]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), DovecotAuth) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()
