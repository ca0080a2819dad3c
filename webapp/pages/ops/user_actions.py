"""Admins' actions for one person: each first shows what it does, on a page whose button carries it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flask import abort, flash, redirect, render_template, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext, ngettext
from flask_babel import lazy_gettext as _
from flask_login import current_user
from wtforms import HiddenField

from webapp.accounts import users
from webapp.accounts.support import actions
from webapp.accounts.users import User
from webapp.db.base import NUMBER_MAX, db
from webapp.delivery import tasks
from webapp.pages.ops.access import blueprint
from webapp.pages.shared.forms import Form


@dataclass(frozen=True)
class Action:
    """`label` is its button, `effect` what its page says before; `do` acts, and returns what to say afterwards.

    `is_for`: the states of an account in which it makes sense.
    """

    label: Any
    effect: Any
    is_for: tuple[str, ...]
    do: Callable[[User], str]
    is_grave: bool = False
    is_for_oneself: bool = False


class ActionForm(Form):
    """`key`: the user that its page showed; in a database restored in the meantime, the id may be somebody else's."""

    key = HiddenField()


def _resend(user: User) -> str:
    email_id = actions.resend(user)
    if email_id is None:
        return str(
            gettext("An email to this person is already on its way. Open it below to see what it's waiting for.")
        )
    tasks.deliver_later(email_id)
    return str(gettext("Sending the verification email again."))


def _end_sessions(user: User) -> str:
    return str(ngettext("Ended %(num)s session.", "Ended %(num)s sessions.", actions.end_sessions(user)))


def _lock(user: User) -> str:
    actions.lock(user)
    return str(gettext("The account is locked."))


def _unlock(user: User) -> str:
    actions.unlock(user)
    return str(gettext("The account is unlocked."))


def _delete(user: User) -> str:
    email_id = actions.delete(user)
    if email_id is not None:
        tasks.deliver_later(email_id)
    return str(gettext("The account was deleted."))


ACTIONS = {
    "resend": Action(
        _("Resend the verification email"),
        _("We send the same link and code again, right away, to the address above."),
        ("pending", "legacy"),
        _resend,
    ),
    "end-sessions": Action(
        _("End all sessions"),
        _("They are signed out in every browser, and can sign in again."),
        ("verified",),
        _end_sessions,
        is_for_oneself=True,
    ),
    "lock": Action(
        _("Lock the account"),
        _(
            "They are signed out everywhere and can't sign in. Their links and codes stop working. "
            "They aren't told. Signing in looks like a wrong password."
        ),
        ("verified", "pending", "legacy"),
        _lock,
        is_grave=True,
    ),
    "unlock": Action(
        _("Unlock the account"),
        _("They can sign in again. Old links and codes still won't work."),
        ("locked",),
        _unlock,
    ),
    "delete": Action(
        _("Delete the account"),
        _("Permanently, with all its data. If the address was verified, we send a last email. The audit log stays."),
        ("verified", "pending", "legacy", "locked"),
        _delete,
        is_grave=True,
    ),
}
NAMED = f"any({', '.join(map(repr, ACTIONS))})"


def find(user_id: int) -> User:
    """Return the user, or abort with a 404."""
    user = db.session.get(User, user_id) if user_id <= NUMBER_MAX else None
    return user or abort(404)


def possible(user: User) -> dict[str, Action]:
    """Return the actions for the user now; nobody can lock or delete their own account here by mistake."""
    is_own = user.id == current_user.id
    return {
        name: action
        for name, action in ACTIONS.items()
        if users.state(user) in action.is_for and (action.is_for_oneself or not is_own)
    }


@blueprint.get(f"/users/<int:user_id>/<{NAMED}:act>")
def confirm_for_user(user_id: int, act: str) -> str:
    user = find(user_id)
    return _page(user, act, ActionForm(key=user.key))


@blueprint.post(f"/users/<int:user_id>/<{NAMED}:act>")
def do_for_user(user_id: int, act: str) -> ResponseReturnValue:
    user, form = find(user_id), ActionForm()
    if not form.validate():
        form.key.data = user.key
        return _page(user, act, form), form.status
    if form.key.data != user.key:
        abort(404)
    if act not in possible(user):
        return _page(user, act, form), 409
    try:
        flash(ACTIONS[act].do(user))
    except users.UserGone:
        abort(404)
    except actions.NotPending:
        return _page(user, act, form), 409
    there = url_for("ops.show_users") if act == "delete" else url_for("ops.show_user", user_id=user_id)
    return redirect(there, 303)


def _page(user: User, name: str, form: ActionForm) -> str:
    return render_template(
        "ops/user_action.html",
        user=user,
        name=name,
        action=ACTIONS[name],
        form=form,
        is_possible=name in possible(user),
    )
