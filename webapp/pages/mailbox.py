"""The development mailbox: emails that never left this machine, shown as in an email client."""

from __future__ import annotations

import math
import re
from pathlib import Path

from flask import Blueprint, Response, abort, current_app, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_babel import lazy_gettext as _
from markupsafe import Markup

from webapp.devmail import Mailbox, ReceivedMail
from webapp.pages.shared.forms import Form

blueprint = Blueprint("mailbox", __name__, url_prefix="/dev/mailbox")

# The email's own document: it may have styles and embedded pictures, but cannot run or fetch anything.
# A link may leave the frame when a person clicks it.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; "
    "sandbox allow-popups allow-popups-to-escape-sandbox allow-top-navigation-by-user-activation"
)

PAGE = 50

VIEWS = {
    "html": _("HTML"),
    "phone": _("On a phone"),
    "text": _("Text"),
    "headers": _("Headers"),
    "source": _("Source"),
}

HEAD = re.compile(r"<head(\s[^>]*)?>", re.IGNORECASE)
# A period after a URL ends the sentence, not the URL.
ADDRESS = re.compile(r"""(https?://[^\s<>"']*[^\s<>"'.,;:!?)\]])""")


@blueprint.get("")
def show() -> str:
    words = request.args.get("q", "")
    found = _mailbox().list(words)
    pages = max(1, math.ceil(len(found) / PAGE))
    page = min(max(request.args.get("page", 1, type=int), 1), pages)
    shown = found[(page - 1) * PAGE : page * PAGE]
    return render_template("mailbox/list.html", found=found, mails=shown, page=page, pages=pages, words=words)


@blueprint.get("/delete")
def confirm_delete_all() -> str:
    return _question(len(_mailbox().list()), Form())


@blueprint.get("/<mail_id>")
def show_mail(mail_id: str) -> str:
    return _detail(_get_or_404(mail_id))


@blueprint.get("/<mail_id>/html")
def show_html(mail_id: str) -> Response:
    response = Response(opening_on_top(_get_or_404(mail_id).html_with_pictures), mimetype="text/html")
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    return response


@blueprint.get("/<mail_id>/source")
def show_source(mail_id: str) -> Response:
    return Response(_get_or_404(mail_id).raw, mimetype="text/plain")


@blueprint.get("/<mail_id>/delete")
def confirm_delete(mail_id: str) -> str:
    return _question(1, Form(), _get_or_404(mail_id))


@blueprint.post("/<mail_id>/delete")
def delete(mail_id: str) -> ResponseReturnValue:
    mail, form = _get_or_404(mail_id), Form()
    if not form.validate():
        return _question(1, form, mail), form.status
    _mailbox().delete(mail_id)
    return redirect(url_for("mailbox.show"), 303)


@blueprint.post("/delete")
def delete_all() -> ResponseReturnValue:
    form = Form()
    if not form.validate():
        return _question(len(_mailbox().list()), form), form.status
    _mailbox().delete_all()
    return redirect(url_for("mailbox.show"), 303)


def _question(count: int, form: Form, mail: ReceivedMail | None = None) -> str:
    return render_template("mailbox/delete.html", count=count, mail=mail, form=form)


def _detail(mail: ReceivedMail) -> str:
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
    )


def _get_or_404(mail_id: str) -> ReceivedMail:
    return _mailbox().get(mail_id) or abort(404)


def _mailbox() -> Mailbox:
    return Mailbox(Path(current_app.instance_path) / "mailbox")


def linked(text: str) -> Markup:
    """Return the text as HTML, with its URLs as links."""
    link = Markup('<a href="{0}">{0}</a>')
    # split() puts the matches of the pattern's group at the odd places. Markup escapes what it joins and formats.
    return Markup().join(link.format(part) if odd % 2 else part for odd, part in enumerate(ADDRESS.split(text)))


def opening_on_top(html: str) -> str:
    """Return the document with links that open in the whole window instead of the frame."""
    base = '<base target="_top">'
    head = HEAD.search(html)
    return html[: head.end()] + base + html[head.end() :] if head else base + html
