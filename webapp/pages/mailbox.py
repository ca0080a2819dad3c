"""The development mailbox: mails that never left this machine, shown as a mail client would."""

from __future__ import annotations

import re
from pathlib import Path

from flask import Blueprint, Response, abort, current_app, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_babel import lazy_gettext as _
from markupsafe import Markup

from webapp.devmail import Mailbox, ReceivedMail
from webapp.pages.shared.forms import Form

blueprint = Blueprint("mailbox", __name__, url_prefix="/dev/mailbox")

# The mail's own document: it may style itself and hold a picture, and it neither runs nor fetches anything.
# Its links may leave the frame when a person clicks them.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; "
    "sandbox allow-popups allow-popups-to-escape-sandbox allow-top-navigation-by-user-activation"
)

VIEWS = {
    "html": _("HTML"),
    "phone": _("On a phone"),
    "text": _("Text"),
    "headers": _("Headers"),
    "source": _("Source"),
}

HEAD = re.compile(r"<head(\s[^>]*)?>", re.IGNORECASE)
# A full stop after an address ends the sentence, not the address.
ADDRESS = re.compile(r"""(https?://[^\s<>"']*[^\s<>"'.,;:!?)\]])""")


@blueprint.get("")
def show() -> str:
    return _list(Form())


@blueprint.get("/<mail_id>")
def show_mail(mail_id: str) -> str:
    return _detail(_get_or_404(mail_id), Form())


@blueprint.get("/<mail_id>/html")
def show_html(mail_id: str) -> Response:
    response = Response(opening_on_top(_get_or_404(mail_id).html), mimetype="text/html")
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    return response


@blueprint.get("/<mail_id>/source")
def show_source(mail_id: str) -> Response:
    return Response(_get_or_404(mail_id).raw, mimetype="text/plain")


@blueprint.post("/<mail_id>/delete")
def delete(mail_id: str) -> ResponseReturnValue:
    mail, form = _get_or_404(mail_id), Form()
    if not form.validate():
        return _detail(mail, form), form.status
    _mailbox().delete(mail_id)
    return redirect(url_for("mailbox.show"), 303)


@blueprint.post("/delete")
def delete_all() -> ResponseReturnValue:
    form = Form()
    if not form.validate():
        return _list(form), form.status
    _mailbox().delete_all()
    return redirect(url_for("mailbox.show"), 303)


def _list(form: Form) -> str:
    words = request.args.get("q", "")
    return render_template("mailbox/list.html", mails=_mailbox().list(words), words=words, form=form)


def _detail(mail: ReceivedMail, form: Form) -> str:
    views = {name: label for name, label in VIEWS.items() if mail.html or name not in {"html", "phone"}}
    view = request.args.get("view", "")
    ids = [other.id for other in _mailbox().list()]
    place = ids.index(mail.id) if mail.id in ids else 0
    return render_template(
        "mailbox/mail.html",
        mail=mail,
        text=linked(mail.text),
        source=mail.raw.decode("utf-8", "replace"),
        views=views,
        view=view if view in views else next(iter(views)),
        newer=ids[place - 1] if place else None,
        older=ids[place + 1] if place + 1 < len(ids) else None,
        form=form,
    )


def _get_or_404(mail_id: str) -> ReceivedMail:
    return _mailbox().get(mail_id) or abort(404)


def _mailbox() -> Mailbox:
    return Mailbox(Path(current_app.instance_path) / "mailbox")


def linked(text: str) -> Markup:
    """Return the text as HTML in which addresses are links."""
    link = Markup('<a href="{0}">{0}</a>')
    # split() puts what the pattern's group found at the odd places. Markup escapes all that it joins and formats.
    return Markup().join(link.format(part) if odd % 2 else part for odd, part in enumerate(ADDRESS.split(text)))


def opening_on_top(html: str) -> str:
    """Return the document with links that open in the whole window instead of the frame."""
    base = '<base target="_top">'
    head = HEAD.search(html)
    return html[: head.end()] + base + html[head.end() :] if head else base + html
