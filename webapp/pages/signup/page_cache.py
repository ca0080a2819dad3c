"""Pages that are the same for everybody but for what makes their form this visitor's: rendered once, for nobody."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextvars import Context

from flask import current_app, request
from flask_babel import get_locale
from flask_login import current_user
from flask_wtf.csrf import generate_csrf


def fill(render: Callable[[str], str], nonce: str) -> str:
    """Return what `render` does with this nonce, or what it did for nobody: that takes most of a page's time.

    What is kept was asked for without cookies, headers and query, so it can hold no visitor's words. Whoever is signed
    in or brings a query gets a page that is rendered anew.
    """
    if current_user.is_authenticated or request.query_string or request.script_root or current_app.debug:
        return render(nonce)
    pages: dict[tuple[str, str], tuple[str, str, str]] = current_app.extensions.setdefault("pages_for_nobody", {})
    key = request.path, str(get_locale())
    if key not in pages:
        asking = current_app.test_request_context(request.path, headers={"Accept-Language": key[1]})
        blank = secrets.token_urlsafe(16)

        def rendered() -> tuple[str, str, str]:
            with asking:
                return render(blank), generate_csrf(), blank

        # In a context that knows nothing of this request.
        pages[key] = Context().run(rendered)
    page, token, blank = pages[key]
    return page.replace(token, generate_csrf()).replace(blank, nonce)
