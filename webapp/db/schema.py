"""Which migration the database is at, and whether this build can work with it."""

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

# The revision and down_revision of a migration's file. Asking Alembic would cost each worker 10 MB.
REVISION = re.compile(r"^(down_)?revision\b[^=]*= *[\"'](\w+)[\"']", re.MULTILINE)


class Migrations(NamedTuple):
    """The migrations that this build knows, and the newest of them."""

    known: frozenset[str]
    newest: str


def check() -> None:
    """Check that the database is writable, and has the tables that this build needs. Raises DatabaseAway."""
    outage = outages.of(current_app)
    # Tables may have disappeared since the last check.
    outage.was_migrated = False
    # Changes nothing, but a read-only database refuses it.
    db.session.execute(text("UPDATE alembic_version SET version_num = version_num WHERE 1 = 0"))
    current = db.session.scalar(text("SELECT version_num FROM alembic_version"))
    db.session.rollback()
    known, newest = migrations()
    # A migration unknown to this build belongs to a newer one, which keeps everything that this one needs.
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
