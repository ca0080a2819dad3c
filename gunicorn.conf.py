"""How gunicorn serves wsgi:app. It reads this file by itself, and its command line wins over it."""

import bisect
import gc
import os
import select
import selectors
import shutil
import socket
import sys
import tempfile
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from operator import attrgetter
from typing import Any

from flask import Flask
from gunicorn import glogging
from gunicorn.config import Config
from gunicorn.http import message
from gunicorn.http.message import Request
from gunicorn.workers.gthread import TConn, ThreadWorker
from sqlalchemy.exc import SQLAlchemyError

from webapp import cli, logs, pages  # noqa: F401 - loaded once, so that workers share it
from webapp.config import load
from webapp.db import engines, outages, schema
from webapp.monitoring import http_requests
from webapp.pages.shared import heads, turns
from webapp.setting_types import ConfigError

try:
    settings = load()
    engines.refuse_unsuitable(settings)
except ConfigError as error:
    # Here rather than in every worker, so that it is said once.
    sys.exit(str(error))
logs.configure(settings)

# Requests are counted there, in a file of each process; whichever is asked adds them up.
counts = os.environ.get("PROMETHEUS_MULTIPROC_DIR") or tempfile.mkdtemp(prefix="signup-metrics-")
http_requests.share(counts)

# So often a process looks for a database that was away when it started.
LOOK_SECONDS = 2

# So long the other side has to hang up after its last answer.
PARTING_SECONDS = 2.0


class Logger(glogging.Logger):
    """Gunicorn's own lines, in the app's format."""

    def setup(self, cfg: Config) -> None:
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True


class Worker(ThreadWorker):
    """Gunicorn's threads, but for forms that wait for their turn: those take none until they are called."""

    def handle_request(self, request: Request, conn: TConn) -> bool:
        ticket = turns.Ticket(lambda: self.serve_again(request, conn, ticket))
        with turns.held(ticket):
            return super().handle_request(request, conn)

    def serve_again(self, request: Request, conn: TConn, ticket: turns.Ticket) -> None:
        # The pool takes nothing more when the process ends and its time is over.
        with suppress(RuntimeError):
            done = self.tpool.submit(self.handle_again, request, conn, ticket)
            done.add_done_callback(partial(self.method_queue.defer, self.finish_request, conn))

    def handle_again(self, request: Request, conn: TConn, ticket: turns.Ticket) -> bool:
        """What handle() does once it has read a request's head."""
        try:
            with turns.held(ticket):
                if has_hung_up(conn.sock):
                    # Nobody would read the answer, and many who do not wait for theirs would take others' turns.
                    return False
                keeps = super().handle_request(request, conn)
            return self._keepalive_after(conn, keeps)
        except (OSError, StopIteration):
            # It went away meanwhile.
            return False
        except Exception as error:  # noqa: BLE001 - gunicorn's own way
            self.handle_error(request, conn.sock, conn.client, error)
            return False

    def finish_request(self, conn: TConn, done: Future[Any]) -> None:
        if done.cancelled() or not (done.exception() or done.result()):
            self.part(conn)
        elif not isinstance(done.exception(), turns.ComeAgain):
            super().finish_request(conn, done)

    def part(self, conn: TConn) -> None:
        """Close once the other side has, or its time is over: gunicorn itself would wait while nobody is served."""
        try:
            conn.sock.shutdown(socket.SHUT_WR)
            conn.sock.settimeout(0)
        except OSError:
            self.nr_conns -= 1
            conn.close()
            return
        conn.timeout = time.monotonic() + PARTING_SECONDS
        # Whose time is over first is closed first.
        bisect.insort(self.pending_conns, conn, key=attrgetter("timeout"))
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.drain, conn))

    def drain(self, conn: TConn, sock: socket.socket) -> None:
        """Throw away what still comes: the answer would be lost with the connection that is reset because of it."""
        try:
            rest = sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            rest = b""
        if rest:
            return
        self.poller.unregister(sock)
        self.pending_conns.remove(conn)
        self.nr_conns -= 1
        conn.close()


def has_hung_up(sock: socket.socket) -> bool:
    """Return whether the other side is gone, as far as this system tells while there is something left to read."""
    ended = select.poll()
    ended.register(sock, getattr(select, "POLLRDHUP", 0))
    return bool(ended.poll(0))


logger_class = Logger
# The app logs its requests itself, because a path may hold a token.
accesslog = None

workers = settings["WEB_CONCURRENCY"]
# Requests mostly wait for the database or for a password's hash, which frees the interpreter.
worker_class = Worker
# As long as the rest of a head may be, so that our pages judge what somebody appends to a link; gunicorn's own most is
# half of it.
limit_request_line = message.MAX_REQUEST_LINE = heads.LONGEST
# Some more than forms ever take, for pages and health checks.
threads = turns.PLACES + 4
graceful_timeout = 10

# It would lie in the home directory, where a second app's would be in its way.
control_socket_disable = True


def on_exit(_server: Any) -> None:
    shutil.rmtree(counts, ignore_errors=True)


def post_worker_init(worker: ThreadWorker) -> None:
    """Connect before anybody waits for that, and spare the collector what was loaded, which stays.

    Going through that takes a tenth of a second, while all wait.
    """
    # Beside all else: a database that is away holds no start up.
    threading.Thread(target=connect, args=[worker.wsgi], daemon=True).start()
    gc.collect()
    gc.freeze()


def connect(app: Flask) -> None:
    """Read the driver's code from the disk, and leave a connection in the pool; wait for a database that is away.

    The log is told of one that is, and of its return, whether or not anybody asks for a page.
    """
    while True:
        # As a request, since these wait for no database without end.
        with app.test_request_context(), suppress(SQLAlchemyError):
            schema.check()
            if outages.of(app).is_over:
                return
        time.sleep(LOOK_SECONDS)
