"""The development mailbox: mails that never left this machine, shown as a mail client would."""

from __future__ import annotations

import re
from pathlib import Path

from flask import Blueprint, Response, abort, current_app, render_template
from markupsafe import Markup

from webapp.mailbox import Mailbox, ReceivedMail

blueprint = Blueprint("mailbox", __name__, url_prefix="/dev/mailbox")

# The mail's own document: it may style itself and hold a picture, and it neither runs nor fetches anything.
# Its links may leave the frame when a person clicks them.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; "
    "sandbox allow-popups allow-popups-to-escape-sandbox allow-top-navigation-by-user-activation"
)

HEAD = re.compile(r"<head(\s[^>]*)?>", re.IGNORECASE)
# A full stop after an address ends the sentence, not the address.
ADDRESS = re.compile(r"""(https?://[^\s<>"']*[^\s<>"'.,;:!?)\]])""")


@blueprint.get("")
def show_all() -> str:
    return render_template("mailbox/list.html", mails=_mailbox().list())


@blueprint.get("/<mail_id>")
def show(mail_id: str) -> str:
    mail = _get_or_404(mail_id)
    return render_template("mailbox/detail.html", mail=mail, text=linked(mail.text))


@blueprint.get("/<mail_id>/html")
def show_html(mail_id: str) -> Response:
    response = Response(opening_on_top(_get_or_404(mail_id).html), mimetype="text/html")
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    return response


@blueprint.get("/<mail_id>/source")
def show_source(mail_id: str) -> Response:
    return Response(_get_or_404(mail_id).raw, mimetype="text/plain")


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
