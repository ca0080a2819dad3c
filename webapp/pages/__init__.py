"""The pages: one module each, a blueprint and its form."""

from __future__ import annotations

from flask import Blueprint, Flask, Response, abort, current_app, request

from own import pages as own_pages
from webapp import audit
from webapp.pages import assets, health, home, identity, language_switch, mailbox, metrics, ops, well_known
from webapp.pages.account import (
    confirm_email,
    deletion,
    email,
    export,
    overview,
    password,
    profile,
    restore_email,
    second_factor,
    sessions,
)
from webapp.pages.shared import (
    auth,
    errors,
    heads,
    hosts,
    language,
    link_cookie,
    proxies,
    rate_limits,
    turns,
    way_on,
)
from webapp.pages.shared.forms import csrf
from webapp.pages.sign_in import code, forgot, login, reset
from webapp.pages.signup import form, verify, waiting

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "frame-src 'self'; form-action {targets}; frame-ancestors 'none'; base-uri 'none'"
)

# Our pages use none of these.
PERMISSIONS_POLICY = "camera=(), geolocation=(), microphone=(), payment=(), usb=(), browsing-topics=()"


def init_app(app: Flask) -> None:
    link_cookie.init_app(app)
    of_account = (
        overview,
        password,
        profile,
        email,
        confirm_email,
        restore_email,
        sessions,
        export,
        deletion,
        second_factor,
    )
    for page in (
        health,
        metrics,
        identity,
        home,
        form,
        waiting,
        verify,
        login,
        code,
        forgot,
        reset,
        *of_account,
        ops,
        well_known,
    ):
        _register(app, page.blueprint)
    # Only in development: there anybody can read everybody's links.
    if app.config["APP_ENV"] == "development":
        _register(app, mailbox.blueprint)
    metrics.init_app(app)
    proxies.init_app(app)
    # Wraps everything that reads headers.
    heads.init_app(app)
    assets.init_app(app)
    errors.init_app(app)
    app.before_request(_note_where_from)
    app.before_request(_refuse_other_sites)
    hosts.init_app(app)
    rate_limits.init_app(app)
    turns.init_app(app)
    csrf.init_app(app)
    app.after_request(_add_headers)
    language.init_app(app)
    language_switch.init_app(app)
    auth.init_app(app)
    way_on.init_app(app)
    own_pages.init_app(app)


def _register(app: Flask, blueprint: Blueprint) -> None:
    """Let our own pages check the CSRF token in their forms, which they show again; all other pages' posts need one."""
    app.register_blueprint(csrf.exempt(blueprint))


def _note_where_from() -> None:
    audit.client_ip.set(request.remote_addr or None)
    audit.client_agent.set(request.user_agent.string)
    audit.client_country.set(proxies.country())
    audit.actor.set(None)


def _refuse_other_sites() -> None:
    """Refuse forms that other sites submit, before they touch the session.

    Their request comes without our cookie, so the answer would replace the person's session.
    """
    if request.method == "POST" and request.headers.get("Sec-Fetch-Site") == "cross-site":
        abort(400)


def _add_headers(response: Response) -> Response:
    headers = response.headers
    # Browsers apply form-action also to the page that a form's answer redirects to.
    targets = " ".join(["'self'", *way_on.origins()])
    headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY.format(targets=targets))
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers.setdefault("Referrer-Policy", "no-referrer")
    headers.setdefault("Permissions-Policy", PERMISSIONS_POLICY)
    headers.setdefault("Cross-Origin-Opener-Policy", "same-origin")
    headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
    # Every page shows somebody's state.
    headers.setdefault("Cache-Control", "no-store")
    if current_app.config["SESSION_COOKIE_SECURE"]:
        subdomains = "; includeSubDomains" if current_app.config["HSTS_INCLUDE_SUBDOMAINS"] else ""
        headers.setdefault("Strict-Transport-Security", f"max-age=31536000{subdomains}")
    return response
