"""People: a searchable list, and each one with the history of the account."""

from __future__ import annotations

from flask import render_template, request

from webapp.accounts import sessions, users
from webapp.accounts.support import actions, search
from webapp.db.base import row_number
from webapp.monitoring import queries
from webapp.monitoring.queries import Filter
from webapp.pages.ops import lists, user_actions
from webapp.pages.ops.access import blueprint

PAGE = 50
# How many emails and events of one person are shown.
SHOWN = 20


@blueprint.get("/users")
def show_users() -> str:
    typed = request.args.get("q", "").strip()[: search.TYPED_MAX]
    ids = search.find(typed) if typed else None
    found = search.page(
        ids=ids,
        limit=PAGE + 1,
        beyond=row_number(request.args.get("before")),
        oldest_first=lists.is_oldest_first(),
    )
    shown = found[:PAGE]
    page = lists.page(
        PAGE,
        len(shown),
        search.count(lists.COUNTED + 1) if ids is None else len(ids),
        query={"q": typed} if typed else {},
        more=shown[-1].id if len(found) > PAGE else None,
    )
    return render_template(
        "ops/users.html",
        typed=typed,
        people=[(user, users.state(user)) for user in shown],
        is_cut=ids is not None and len(ids) >= search.FOUND_MAX,
        page=page,
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
