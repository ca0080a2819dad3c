"""Gunicorn's settings for wsgi:app. It reads this file by default; its command line overrides it."""

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
from prometheus_client.multiprocess import mark_process_dead
from sqlalchemy.exc import SQLAlchemyError

from webapp import cli, logs, pages  # noqa: F401 - loaded here, so that workers share the memory
from webapp.config import load
from webapp.db import engines, outages, schema
from webapp.monitoring import http_requests
from webapp.pages.shared import heads, turns
from webapp.setting_types import ConfigError

try:
    settings = load()
    engines.refuse_unsuitable(settings)
except ConfigError as error:
    # Here rather than in every worker, so that the message appears once.
    sys.exit(str(error))
logs.configure(settings)

# Each process counts its requests in a file there; the one that serves /metrics adds them up.
counts = os.environ.get("PROMETHEUS_MULTIPROC_DIR") or tempfile.mkdtemp(prefix="signup-metrics-")
http_requests.share(counts)

# How often a process retries a database that was down when it started.
LOOK_SECONDS = 2

# How long a client has to hang up after its last response.
PARTING_SECONDS = 2.0


class Logger(glogging.Logger):
    """Writes gunicorn's own lines in the app's format."""

    def setup(self, cfg: Config) -> None:
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True


class Worker(ThreadWorker):
    """Gunicorn's threaded worker, except that a form takes no thread while it waits for its turn."""

    def handle_request(self, request: Request, conn: TConn) -> bool:
        ticket = turns.Ticket(lambda: self.serve_again(request, conn, ticket))
        with turns.held(ticket):
            return super().handle_request(request, conn)

    def serve_again(self, request: Request, conn: TConn, ticket: turns.Ticket) -> None:
        # After its grace period, a process that stops accepts no more work.
        with suppress(RuntimeError):
            done = self.tpool.submit(self.handle_again, request, conn, ticket)
            done.add_done_callback(partial(self.method_queue.defer, self.finish_request, conn))

    def handle_again(self, request: Request, conn: TConn, ticket: turns.Ticket) -> bool:
        """Do what handle() does after it has read a request's head."""
        try:
            with turns.held(ticket):
                if has_hung_up(conn.sock):
                    # Nobody would read the response, and clients that don't wait for theirs would use up others' turns.
                    return False
                keeps = super().handle_request(request, conn)
            return self._keepalive_after(conn, keeps)
        except (OSError, StopIteration):
            # The client went away in the meantime.
            return False
        except Exception as error:  # noqa: BLE001 - as gunicorn does it
            self.handle_error(request, conn.sock, conn.client, error)
            return False

    def finish_request(self, conn: TConn, done: Future[Any]) -> None:
        if done.cancelled() or not (done.exception() or done.result()):
            self.part(conn)
        elif not isinstance(done.exception(), turns.ComeAgain):
            super().finish_request(conn, done)

    def part(self, conn: TConn) -> None:
        """Close once the client has, or after its time is up: gunicorn itself would block all others while it waits."""
        try:
            conn.sock.shutdown(socket.SHUT_WR)
            conn.sock.settimeout(0)
        except OSError:
            self.nr_conns -= 1
            conn.close()
            return
        conn.timeout = time.monotonic() + PARTING_SECONDS
        # Sorted by deadline: the first to expire is closed first.
        bisect.insort(self.pending_conns, conn, key=attrgetter("timeout"))
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.drain, conn))

    def drain(self, conn: TConn, sock: socket.socket) -> None:
        """Discard what still arrives: unread data would reset the connection, and the response would be lost."""
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
    """Return whether the client is gone; some systems can't tell while there is data left to read."""
    ended = select.poll()
    ended.register(sock, getattr(select, "POLLRDHUP", 0))
    return bool(ended.poll(0))


logger_class = Logger
# The app logs its requests itself, because a path may contain a token.
accesslog = None

workers = settings["WEB_CONCURRENCY"]
# Requests mostly wait for the database or for a password's hash, both of which release the interpreter.
worker_class = Worker
# As long as the rest of a head may be, so that our own pages answer when something is appended to a link. Gunicorn's
# maximum is half of that.
limit_request_line = message.MAX_REQUEST_LINE = heads.LONGEST
# None: by default, a proxy on this machine passes on SCRIPT_NAME, with which anybody changes what path is asked for.
forwarder_headers = ""
# A few more than forms ever take, for pages and health checks.
threads = turns.PLACES + 4
graceful_timeout = 10

# It would be in the home directory, where two apps would conflict.
control_socket_disable = True


def on_exit(_server: Any) -> None:
    shutil.rmtree(counts, ignore_errors=True)


def child_exit(_server: Any, worker: ThreadWorker) -> None:
    """Drop the gauges of a process that exited."""
    mark_process_dead(worker.pid)


def post_worker_init(worker: ThreadWorker) -> None:
    """Connect before anybody waits for it, and exempt the loaded code from garbage collection, since it stays.

    Scanning it takes a tenth of a second, during which everyone waits.
    """
    # In the background: a database that is down must not delay the start.
    threading.Thread(target=connect, args=[worker.wsgi], daemon=True).start()
    gc.collect()
    gc.freeze()


def connect(app: Flask) -> None:
    """Load the driver's code from disk, and leave a connection in the pool; wait for a database that is down.

    So the log reports an outage and its end even if nobody requests a page.
    """
    while True:
        # As a request, since a request's wait for the database is bounded.
        with app.test_request_context(), suppress(SQLAlchemyError):
            schema.check()
            if outages.of(app).is_over:
                return
        time.sleep(LOOK_SECONDS)
