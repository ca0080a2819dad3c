"""Which migration the database is at, and whether this build can work with that."""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from flask import current_app
from sqlalchemy import text

from webapp.db import outages
from webapp.db.base import db
from webapp.paths import ROOT

VERSIONS = ROOT / "migrations" / "versions"

# Of a file: which migration it is, and which comes before it. To ask Alembic would take 10 MB of each worker.
REVISION = re.compile(r"^(down_)?revision\b[^=]*= *[\"'](\w+)[\"']", re.MULTILINE)


class Migrations(NamedTuple):
    """All that this build knows, and the newest of them."""

    known: frozenset[str]
    newest: str


def check() -> None:
    """See to it that the database may be written, and has the tables that this build needs. Raises DatabaseAway."""
    outage = outages.of(current_app)
    # Tables that were there may be gone.
    outage.was_migrated = False
    # It changes nothing, and is refused all the same by a database that may only be read.
    db.session.execute(text("UPDATE alembic_version SET version_num = version_num WHERE 1 = 0"))
    current = db.session.scalar(text("SELECT version_num FROM alembic_version"))
    db.session.rollback()
    known, newest = migrations()
    # A migration that this build does not know is of a newer one, which keeps to what this one needs.
    if current is None or (current != newest and current in known):
        behind = outages.Unmigrated(f"it is at migration {current}, and this release needs {newest}")
        raise outage.note(behind)
    outage.note_answer(is_migrated=True)


@cache
def migrations() -> Migrations:
    files = [path.read_text("utf-8") for path in VERSIONS.glob("*.py")]
    found = [found for file in files for found in REVISION.findall(file)]
    known, before = ({name for down, name in found if bool(down) == is_down} for is_down in (False, True))
    return Migrations(frozenset(known), max(known - before))
