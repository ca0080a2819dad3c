"""Rendering emails: subject, text and HTML from one folder of templates, in the reader's language.

A folder of your own goes into instance/templates/mail/, and gets the `facts` that its email was posted with.
"""

from __future__ import annotations

import re
from base64 import b64encode
from copy import copy
from datetime import datetime, timedelta
from typing import Any

from flask import Flask, current_app, render_template
from flask_babel import force_locale, format_datetime, format_timedelta, get_locale, gettext
from markupsafe import escape

from webapp import i18n, theme
from webapp.accounts import links
from webapp.accounts.links import VerifyEmail
from webapp.db import clock
from webapp.emails.inlined_styles import InlinedStyles
from webapp.outbox import kinds, posting
from webapp.outbox.kinds import LINK_TEMPLATES, VERIFY_TEMPLATE
from webapp.outbox.outgoing_email import OutgoingEmail
from webapp.smtp.message import Message

# For samples: where something was asked for; and what notices say besides, such as the IP address.
SAMPLE_CLIENT = {"browser": "Firefox", "system": "Android", "country": "TH"}
SAMPLE_FACTS = {**SAMPLE_CLIENT, "network_address": "203.0.113.7", "left": "9"}

# The values that differ between emails, and their placeholders: characters for private use, which no text of ours has.
OWN = ("address", "code", "left", "link", "sign_in", "when", "where")
MARK_BEGIN, MARK_END = "\ue000", "\ue001"
MARK = re.compile(f"{MARK_BEGIN}(\\w+){MARK_END}")


def init_app(app: Flask) -> None:
    app.jinja_env.add_extension(InlinedStyles)


def compose(email: OutgoingEmail, proof: VerifyEmail | None) -> Message:
    """Build the email, with the link and code of its proof: the same at every call."""
    sign_in = f"{current_app.config['PUBLIC_URL']}/login"
    # The id, not the destination itself: anyone may have signed up with an address that has an account.
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
    """Return the purpose of the email's link, or None if its template has no link."""
    return next((purpose for purpose, template in LINK_TEMPLATES.items() if template == email.template), None)


def sample(template: str, locale: str = "en") -> Message:
    """Build an email that was never sent to anyone, to show what its kind looks like."""
    purpose = next((purpose for purpose, name in LINK_TEMPLATES.items() if name == template), "signup")
    link = f"{current_app.config['PUBLIC_URL']}{links.PATHS[purpose]}/{'sample' * 7}"
    sign_in = f"{current_app.config['PUBLIC_URL']}/login"
    secrets: dict[str, Any] = {"code": spaced("123456"), "link": link, "sign_in": sign_in}
    facts = SAMPLE_FACTS if template in kinds.NOTICES else SAMPLE_CLIENT
    return render(template, locale, "somebody@example.com", facts=facts, **secrets)


def render(
    template: str,
    locale: str,
    address: str,
    *,
    at: datetime | None = None,
    facts: dict[str, Any] | None = None,
    **secrets: str,
) -> Message:
    """Return the email of this folder of templates, for this address; `at`: when the thing it reports happened."""
    if template not in kinds.TEMPLATES:
        # Your own templates may loop over facts or branch on them, which takes the real values, not placeholders.
        message = _render(template, locale, address=address, **(facts or {}))
        message.recipients = [address]
        return message
    own = {**(facts or {}), "address": address, **secrets}
    if template in kinds.TELLS_WHERE:
        with force_locale(locale):
            # Translators: a date and a time, in the letters of Unicode's date patterns.
            pattern = gettext("d MMMM y, HH:mm 'UTC'")
            own["when"] = format_datetime(at or clock.now(), pattern, rebase=False)
            own["where"] = where(facts or {})
    frames: dict[tuple[str, str], Message] = current_app.extensions.setdefault("mail_frames", {})
    frame = frames.get((template, locale))
    if frame is None or current_app.debug:
        frame = frames[template, locale] = render_frame(template, locale)
    # Copied: a new one would make an id, and look up this machine's name for it.
    message = copy(frame)
    message.recipients = [address]
    message.subject = MARK.sub(lambda mark: own[mark[1]], frame.subject or "")
    message.body = MARK.sub(lambda mark: own[mark[1]], frame.body or "")
    message.alts = {"html": MARK.sub(lambda mark: str(escape(own[mark[1]])), frame.html or "")}
    return message


def render_frame(template: str, locale: str) -> Message:
    """Return what all emails of a template in a language have in common, with a placeholder for each other value.

    Made once: rendering it takes longer than everything else about an email.
    """
    return _render(template, locale, **{name: f"{MARK_BEGIN}{name}{MARK_END}" for name in OWN})


def _render(template: str, locale: str, **own: Any) -> Message:
    """Return the email with these values of its own; none may have the name of one that every email gets."""
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
        logo = current_app.config["MAIL_LOGO"]
        logo_name = f"logo@{posting.sender_domain()}"
        context |= {"logo": logo, "logo_name": logo_name}
        subject = " ".join(render_template(f"mail/{template}/subject.txt", **context, **own).split())
        message = Message(
            subject=subject,
            body=render_template(f"mail/{template}/body.txt", **context, **own),
            html=render_template(f"mail/{template}/body.html", subject=subject, **context, **own),
            reply_to=current_app.config["MAIL_REPLY_TO"],
            extra_headers={"Auto-Submitted": "auto-generated"},
        )
        if logo:
            message.pictures = {logo_name: logo.content}
        return message


def document(message: Message) -> str:
    """Return the HTML as a browser shows it, with its pictures embedded."""
    html = str(message.html or "")
    for name, content in message.pictures.items():
        html = html.replace(f"cid:{name}", f"data:image/png;base64,{b64encode(content).decode()}")
    return html


def where(facts: dict[str, str]) -> str:
    """Return in words where a person acted from, as far as it is known."""
    browser, system, network = (facts.get(name) for name in ("browser", "system", "network_address"))
    if browser and system:
        device = gettext("%(browser)s on %(system)s", browser=browser, system=system)
    else:
        device = browser or system or gettext("an unknown browser")
    if country := get_locale().territories.get(facts.get("country")):
        device = f"{device} ({country})"
    return str(gettext("%(device)s, IP %(address)s", device=device, address=network) if network else device)


def spaced(code: str) -> str:
    return f"{code[:3]} {code[3:]}"


def lifetime(seconds: int) -> str:
    """Return a duration in words that do not round it up: "90 minutes", not "2 hours"."""
    return str(format_timedelta(timedelta(seconds=seconds), threshold=2))
