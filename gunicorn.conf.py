"""How gunicorn serves wsgi:app. It reads this file by itself, and its command line wins over it."""

import gc
import sys
import threading
from contextlib import suppress

from flask import Flask
from gunicorn import glogging
from gunicorn.config import Config
from gunicorn.workers.base import Worker
from sqlalchemy.exc import SQLAlchemyError

from webapp import cli, engines, logs, pages  # noqa: F401 - loaded once, so that workers share it
from webapp.config import ConfigError, load
from webapp.extensions import db

try:
    settings = load()
    engines.refuse_unsuitable(settings)
except ConfigError as error:
    # Here rather than in every worker, so that it is said once.
    sys.exit(str(error))
logs.configure(settings)


class Logger(glogging.Logger):
    """Gunicorn's own lines, in the app's format."""

    def setup(self, cfg: Config) -> None:
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True


logger_class = Logger
# The app logs its requests itself, because a path may hold a token.
accesslog = None

workers = settings["WEB_CONCURRENCY"]
# Requests mostly wait for the database or for a password's hash, which frees the interpreter.
worker_class = "gthread"
threads = 8
graceful_timeout = 10

# It would lie in the home directory, where a second app's would be in its way.
control_socket_disable = True


def post_worker_init(worker: Worker) -> None:
    """Connect before anybody waits for that, and spare the collector what was loaded, which stays.

    Going through that takes a tenth of a second, while all wait.
    """
    # Beside all else: a database that is away holds no start up.
    threading.Thread(target=connect, args=[worker.wsgi], daemon=True).start()
    gc.collect()
    gc.freeze()


def connect(app: Flask) -> None:
    """Read the driver's code from the disk, and leave a connection in the pool."""
    # As a request, since these wait for no database without end.
    with app.test_request_context(), suppress(SQLAlchemyError):
        db.engine.connect().close()
