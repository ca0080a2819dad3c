"""Stops a process in the middle of a transaction, between two statements, as if its machine were paused."""

from __future__ import annotations

import os
import re
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

# The file holds the wish: after how many statements from now to freeze, and a regular expression that they match.
# The process that freezes removes it, and leaves the statement beside it.
WISH = Path(os.environ["CHAOS_FREEZE"])

lock = threading.Lock()
passed: dict[str, int] = {}


def count_down(_connection: Any, cursor: Any, statement: str, *_others: Any) -> None:
    with suppress(FileNotFoundError), lock:
        wish = WISH.read_text()
        number, _space, like = wish.partition(" ")
        if not is_amid_transaction(cursor.connection) or not re.search(like, statement):
            return
        passed[wish] = passed.get(wish, 0) + 1
        if passed[wish] < int(number):
            return
        del passed[wish]
        draft = WISH.with_suffix(".draft")
        draft.write_text(statement)
        draft.rename(WISH.with_suffix(".frozen"))
        WISH.unlink()
        os.kill(os.getpid(), signal.SIGSTOP)


def is_amid_transaction(connection: Any) -> bool:
    if hasattr(connection, "in_transaction"):
        return bool(connection.in_transaction)
    return bool(connection.info.transaction_status.name == "INTRANS")


event.listen(Engine, "after_cursor_execute", count_down)
