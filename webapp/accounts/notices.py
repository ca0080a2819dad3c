"""Notices: short emails that tell owners what was done to their accounts, when and from where."""

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
    by_owner: bool = False,
    **facts: str,
) -> uuid.UUID:
    """Queue a notice to the owner in the caller's transaction.

    `to_address`: if it is no longer the user's own; `verify_email_id`: the link in it; `by_owner`: the owner acts, even
    under /ops; `facts`: more values for its templates. It is sent even after its user is gone. If several that say the
    same wait for one address, only the newest is sent.
    """
    # An operator's location stays private, but not from that operator.
    shows_where = by_owner or audit.actor.get() is None
    where = where_from() | {"network_address": audit.client_ip.get()} if shows_where else {}
    address = to_address or user.email
    return posting.add(
        to_address=address,
        user_id=user.id,
        verify_email_id=verify_email_id,
        dedupe_key=f"{template}:{uuid.uuid4()}",
        budget=outgoing_email.budget(template, address),
        template=template,
        locale=user.locale,
        facts={name: fact for name, fact in (where | facts).items() if fact},
    )


def where_from() -> dict[str, str | None]:
    """Return what an email may say of where somebody acted, without the IP address."""
    return {**user_agents.device(), "country": audit.client_country.get()}
