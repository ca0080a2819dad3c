"""How gunicorn serves wsgi:app. It reads this file by itself, and its command line wins over it."""

import gc
import sys

from gunicorn import glogging
from gunicorn.config import Config
from gunicorn.workers.base import Worker

from webapp import cli, logs, pages  # noqa: F401 - loaded once, so that workers share it
from webapp.config import ConfigError, load

try:
    settings = load()
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


def post_worker_init(_worker: Worker) -> None:
    """Spare the collector what was loaded, which stays: going through it takes a tenth of a second, while all wait."""
    gc.collect()
    gc.freeze()
