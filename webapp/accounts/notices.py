"""Notices: short mails that tell owners what was done to their accounts, when and from where."""

from __future__ import annotations

import uuid

from webapp import audit
from webapp.accounts import user_agents
from webapp.accounts.users import User
from webapp.outbox import outgoing_email, posting


def post(
    user: User,
    template: str,
    *,
    to_address: str | None = None,
    verify_email_id: uuid.UUID | None = None,
    **facts: str,
) -> uuid.UUID | None:
    """Promise the owner a notice of what is done now, as part of the caller's transaction.

    `to_address`: when it is not the user's own any more; `verify_email_id`: the link that it carries; `facts`: what its
    templates say besides. It is sent even when its user is gone. Of several that wait for one address only the newest
    is kept, if they say the same.
    """
    where = {
        "browser": user_agents.browser(audit.client_agent.get()),
        "system": user_agents.system(audit.client_agent.get()),
        "network_address": audit.client_ip.get(),
    }
    if audit.actor.get():
        # Where operators sit is nobody's business.
        where = {}
    address = to_address or user.email
    return posting.post(
        to_address=address,
        user_id=user.id,
        verify_email_id=verify_email_id,
        dedupe_key=f"{template}:{uuid.uuid4()}",
        budget=outgoing_email.budget(template, address),
        template=template,
        locale=user.locale,
        facts={name: fact for name, fact in (where | facts).items() if fact},
    )
