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
    sessions,
)
from webapp.pages.shared import (
    auth,
    errors,
    heads,
    hosts,
    language,
    link_cookie,
    password_feedback,
    proxies,
    turns,
    way_on,
)
from webapp.pages.shared.forms import csrf
from webapp.pages.sign_in import forgot, login, reset
from webapp.pages.signup import form, verify, waiting

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "frame-src 'self'; form-action {targets}; frame-ancestors 'none'; base-uri 'none'"
)

# Our pages ask for none of these.
PERMISSIONS_POLICY = "camera=(), geolocation=(), microphone=(), payment=(), usb=(), browsing-topics=()"


def init_app(app: Flask) -> None:
    link_cookie.init_app(app)
    of_account = (overview, password, profile, email, confirm_email, restore_email, sessions, export, deletion)
    for page in (
        health,
        metrics,
        identity,
        home,
        form,
        waiting,
        verify,
        login,
        forgot,
        reset,
        *of_account,
        ops,
        well_known,
    ):
        _register(app, page.blueprint)
    # Anybody could read everybody's links there.
    if app.config["APP_ENV"] == "development":
        _register(app, mailbox.blueprint)
    metrics.init_app(app)
    proxies.init_app(app)
    # Around all that reads headers.
    heads.init_app(app)
    assets.init_app(app)
    errors.init_app(app)
    app.before_request(_note_where_from)
    app.before_request(_refuse_other_sites)
    hosts.init_app(app)
    turns.init_app(app)
    csrf.init_app(app)
    app.after_request(_add_headers)
    language.init_app(app)
    language_switch.init_app(app)
    app.jinja_env.globals["reasons"] = password_feedback.reasons
    auth.init_app(app)
    way_on.init_app(app)
    own_pages.init_app(app)


def _register(app: Flask, blueprint: Blueprint) -> None:
    """Let our own pages judge the token by their forms, which are shown again; all others' posts need a good one."""
    app.register_blueprint(csrf.exempt(blueprint))


def _note_where_from() -> None:
    audit.client_ip.set(request.remote_addr or None)
    audit.client_agent.set(request.user_agent.string)
    audit.actor.set(None)


def _refuse_other_sites() -> None:
    """Refuse forms that other sites submit, before they touch the session.

    Their request comes without our cookie, so that the answer to it would replace the person's session.
    """
    if request.method == "POST" and request.headers.get("Sec-Fetch-Site") == "cross-site":
        abort(400)


def _add_headers(response: Response) -> Response:
    headers = response.headers
    # A browser holds the pages that a form's answer leads to against it, too.
    targets = " ".join(["'self'", *way_on.origins()])
    headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY.format(targets=targets))
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers.setdefault("Referrer-Policy", "no-referrer")
    headers.setdefault("Permissions-Policy", PERMISSIONS_POLICY)
    headers.setdefault("Cross-Origin-Opener-Policy", "same-origin")
    headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
    # Each page shows somebody's state.
    headers.setdefault("Cache-Control", "no-store")
    if current_app.config["SESSION_COOKIE_SECURE"]:
        subdomains = "; includeSubDomains" if current_app.config["HSTS_INCLUDE_SUBDOMAINS"] else ""
        headers.setdefault("Strict-Transport-Security", f"max-age=31536000{subdomains}")
    return response
