"""Pages that differ between visitors only in a form's token and nonce, and `next`: rendered once, for nobody."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextvars import Context

from flask import current_app, request
from flask_babel import get_locale
from flask_login import current_user
from flask_wtf.csrf import generate_csrf
from markupsafe import escape

from webapp import paths
from webapp.pages.shared import way_on


def fill(render: Callable[[str], str], nonce: str) -> str:
    """Return the page for this nonce, made from one that was rendered for nobody: rendering takes most of the time.

    The stored page was requested with a language and a random `next` only, without cookies, so it contains no visitor's
    data. Our pages read nothing but `next` from a query. For people who are signed in, pages are always rendered.
    """
    if current_user.is_authenticated or request.script_root or current_app.debug or _may_know_more():
        return render(nonce)
    pages: dict[tuple[str, str, bool], tuple[str, str, str, str]]
    pages = current_app.extensions.setdefault("pages_for_nobody", {})
    leads_on = way_on.query()
    key = request.path, str(get_locale()), bool(leads_on)
    if key not in pages:
        blank, nowhere = secrets.token_urlsafe(16), f"/{secrets.token_urlsafe(16)}"
        asking = current_app.test_request_context(
            request.path, query_string={"next": nowhere} if leads_on else None, headers={"Accept-Language": key[1]}
        )

        def rendered() -> tuple[str, str, str, str]:
            with asking:
                return render(blank), generate_csrf(), blank, way_on.query()

        # In a context without anything from this request.
        pages[key] = Context().run(rendered)
    page, token, blank, nowhere = pages[key]
    return page.replace(token, generate_csrf()).replace(blank, nonce).replace(escape(nowhere), escape(leads_on))


def _may_know_more() -> bool:
    """Return whether instance/ has templates: those may use anything that your code did with the request."""
    return any((paths.INSTANCE / "templates").rglob("*.html"))
