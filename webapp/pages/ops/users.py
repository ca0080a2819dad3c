"""People: found by what is known of them, each with what happened to the account."""

from __future__ import annotations

from flask import render_template, request

from webapp.accounts import sessions, users
from webapp.accounts.support import actions, search
from webapp.db.base import row_number
from webapp.monitoring import queries
from webapp.monitoring.queries import Filter
from webapp.pages.ops import user_actions
from webapp.pages.ops.access import blueprint

PAGE = 50
# As many emails and events are shown of one person.
SHOWN = 20


@blueprint.get("/users")
def show_users() -> str:
    typed = request.args.get("q", "").strip()[: search.TYPED_MAX]
    ids = search.find(typed) if typed else None
    found = search.page(ids=ids, limit=PAGE + 1, before=row_number(request.args.get("before")))
    shown = found[:PAGE]
    return render_template(
        "ops/users.html",
        typed=typed,
        people=[(user, users.state(user)) for user in shown],
        is_cut=ids is not None and len(ids) >= search.FOUND_MAX,
        more=shown[-1].id if len(found) > PAGE else None,
    )


@blueprint.get("/users/<int:user_id>")
def show_user(user_id: int) -> str:
    user = user_actions.find(user_id)
    return render_template(
        "ops/user.html",
        user=user,
        state=users.state(user),
        mails=queries.mails(Filter(user_id=user.id), limit=SHOWN),
        sessions=sessions.of(user),
        events=actions.events(user, limit=SHOWN),
        actions=user_actions.possible(user),
    )
