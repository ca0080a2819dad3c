"""Rendering emails: subject, text and HTML from one folder of templates, in its reader's language.

A folder of one's own stands in instance/templates/mail/, and knows the `facts` that its email was posted with.
"""

from __future__ import annotations

import re
from copy import copy
from datetime import datetime, timedelta
from typing import Any

from flask import Flask, current_app, render_template
from flask_babel import force_locale, format_datetime, format_timedelta, gettext
from markupsafe import escape

from webapp import i18n, theme
from webapp.accounts import links
from webapp.accounts.links import VerifyEmail
from webapp.db import clock
from webapp.emails.inlined_styles import InlinedStyles
from webapp.outbox import kinds
from webapp.outbox.kinds import LINK_TEMPLATES, VERIFY_TEMPLATE
from webapp.outbox.outgoing_email import OutgoingEmail
from webapp.smtp.message import Message

# What a notice may say of where it was done, beside the facts of its own.
SAMPLE_FACTS = {"browser": "Firefox", "system": "Android", "network_address": "203.0.113.7"}

# What each mail has of its own, and where it goes; no text of ours has these characters, which are for private use.
OWN = ("address", "code", "link", "sign_in", "when", "where")
MARK_BEGIN, MARK_END = "\ue000", "\ue001"
MARK = re.compile(f"{MARK_BEGIN}(\\w+){MARK_END}")


def init_app(app: Flask) -> None:
    app.jinja_env.add_extension(InlinedStyles)


def compose(email: OutgoingEmail, proof: VerifyEmail | None) -> Message:
    """Build the mail, with what it is a proof for: the same at every call."""
    sign_in = f"{current_app.config['PUBLIC_URL']}/login"
    # By its name: whoever signed up with an address that has an account may be anybody.
    secrets: dict[str, Any] = {"sign_in": f"{sign_in}/{proof.id}" if proof and proof.leads_to else sign_in}
    if proof is not None and link_purpose(email):
        secrets |= {"code": spaced(links.code(proof)), "link": links.link(proof)}
    message = render(
        email.template or VERIFY_TEMPLATE,
        i18n.offered(email.locale),
        email.to_address,
        at=email.created_at,
        facts=email.facts or {},
        **secrets,
    )
    message.msgId = email.message_id
    return message


def link_purpose(email: OutgoingEmail) -> str | None:
    """Return what the mail's link is for, if it has the one that it was promised for, and is no other answer."""
    return next((purpose for purpose, template in LINK_TEMPLATES.items() if template == email.template), None)


def sample(template: str, locale: str = "en") -> Message:
    """Build a mail that was never sent to anybody, to show what such a mail looks like."""
    purpose = next((purpose for purpose, name in LINK_TEMPLATES.items() if name == template), "signup")
    link = f"{current_app.config['PUBLIC_URL']}{links.PATHS[purpose]}/{'sample' * 7}"
    sign_in = f"{current_app.config['PUBLIC_URL']}/login"
    secrets: dict[str, Any] = {"code": spaced("123456"), "link": link, "sign_in": sign_in}
    return render(template, locale, "somebody@example.com", facts=SAMPLE_FACTS, **secrets)


def render(
    template: str,
    locale: str,
    address: str,
    *,
    at: datetime | None = None,
    facts: dict[str, Any] | None = None,
    **secrets: str,
) -> Message:
    """Return the mail of this folder of templates, for this address; `at` is when that happened which it tells."""
    if template not in kinds.TEMPLATES:
        # One's own may loop over its facts and decide by them, which is only so with themselves.
        message = _render(template, locale, address=address, **(facts or {}))
        message.recipients = [address]
        return message
    own = {"address": address, **secrets}
    if template in kinds.NOTICES:
        with force_locale(locale):
            # Translators: a date and a time, in the letters of Unicode's date patterns.
            pattern = gettext("d MMMM y, HH:mm 'UTC'")
            own["when"] = format_datetime(at or clock.now(), pattern, rebase=False)
            own["where"] = where(facts or {})
    frames: dict[tuple[str, str], Message] = current_app.extensions.setdefault("mail_frames", {})
    frame = frames.get((template, locale))
    if frame is None or current_app.debug:
        frame = frames[template, locale] = render_frame(template, locale)
    # Not a new one, which would get an id, and ask for this machine's name for it.
    message = copy(frame)
    message.recipients = [address]
    message.subject = MARK.sub(lambda mark: own[mark[1]], frame.subject or "")
    message.body = MARK.sub(lambda mark: own[mark[1]], frame.body or "")
    message.alts = {"html": MARK.sub(lambda mark: str(escape(own[mark[1]])), frame.html or "")}
    return message


def render_frame(template: str, locale: str) -> Message:
    """Return what is the same in all mails of a template in a language, with a mark for each of their own words.

    Made once: rendering it takes longer than all else that a mail costs.
    """
    return _render(template, locale, **{name: f"{MARK_BEGIN}{name}{MARK_END}" for name in OWN})


def _render(template: str, locale: str, **own: Any) -> Message:
    """Return the mail with these words of its own, of which none may be called as one that every mail has."""
    with force_locale(locale):
        context: dict[str, Any] = {
            "lang": locale,
            "colours": theme.of_mails(current_app.config["APP_ACCENT"]),
            "public_url": current_app.config["PUBLIC_URL"],
            "link_lives": lifetime(current_app.config["VERIFY_EMAIL_TTL"]),
            "reset_lives": lifetime(links.lives("reset")),
            "undo_lives": lifetime(links.REVOKE_SECONDS),
            "code_lives": lifetime(current_app.config["VERIFY_CODE_TTL"]),
        }
        subject = " ".join(render_template(f"mail/{template}/subject.txt", **context, **own).split())
        return Message(
            subject=subject,
            body=render_template(f"mail/{template}/body.txt", **context, **own),
            html=render_template(f"mail/{template}/body.html", subject=subject, **context, **own),
            reply_to=current_app.config["MAIL_REPLY_TO"],
            extra_headers={"Auto-Submitted": "auto-generated"},
        )


def where(facts: dict[str, str]) -> str:
    """Return in words from where a person acted, as far as it is known."""
    browser, system, network = (facts.get(name) for name in ("browser", "system", "network_address"))
    if browser and system:
        device = gettext("%(browser)s on %(system)s", browser=browser, system=system)
    else:
        device = browser or system or gettext("an unknown browser")
    return str(gettext("%(device)s at %(address)s", device=device, address=network) if network else device)


def spaced(code: str) -> str:
    return f"{code[:3]} {code[3:]}"


def lifetime(seconds: int) -> str:
    """Return for how long, in words that promise no more: "90 minutes" where others round to two hours."""
    return str(format_timedelta(timedelta(seconds=seconds), threshold=2))
