"""The files that pages load: stylesheets, scripts and pictures, compressed, and cached for a year by content hash."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
import os
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from flask import Flask, Response, abort, current_app, request
from flask.sessions import SecureCookieSessionInterface, SessionMixin
from werkzeug.security import safe_join

from webapp import theme

STATIC = Path(__file__).resolve().parent.parent / "static"

# Pages are never compressed: their length could reveal what they contain about a person (BREACH).
COMPRESSED = ("text/", "application/javascript", "image/svg+xml")
YEAR = "public, max-age=31536000, immutable"
# Under a URL without the content's hash, a file may change.
ASK_FIRST = "public, no-cache"


@dataclass(frozen=True)
class Asset:
    """`version` is derived from the content."""

    content: bytes
    mimetype: str

    @cached_property
    def version(self) -> str:
        return hashlib.sha256(self.content).hexdigest()[:12]


class Sessions(SecureCookieSessionInterface):
    """Keeps the session cookie out of responses that caches may store."""

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        if not response.cache_control.public:
            super().save_session(app, session, response)


def init_app(app: Flask) -> None:
    app.session_interface = Sessions()
    # Flask's own name for this endpoint.
    app.add_url_rule("/static/<path:filename>", "static", static)
    app.add_url_rule("/theme.css", "theme", lambda: _serve(_theme()))
    app.add_url_rule("/icon", "icon", lambda: _serve(_icon()))
    # Phones also look for it there without a link.
    app.add_url_rule("/apple-touch-icon.png", "touch_icon", lambda: _serve(_touch_icon() or abort(404)))
    app.jinja_env.globals["has_touch_icon"] = lambda: _touch_icon() is not None
    app.url_defaults(_add_version)


def static(filename: str) -> Response:
    path = safe_join(str(STATIC), filename)
    # Not Path.is_file(), which raises on a name that is too long for any file: the log would contain all of it.
    if path is None or not os.path.isfile(path):  # noqa: PTH113
        abort(404)
    return _serve(_file(Path(path)))


def _add_version(endpoint: str, values: dict[str, Any]) -> None:
    assets = {
        "static": lambda: _file(STATIC / values["filename"]),
        "theme": _theme,
        "icon": _icon,
        "touch_icon": _touch_icon,
    }
    if endpoint in assets and (asset := assets[endpoint]()):
        values["v"] = asset.version


def _theme() -> Asset:
    return _stylesheet(current_app.config["APP_ACCENT"])


@cache
def _stylesheet(accent: str) -> Asset:
    return Asset(theme.stylesheet(accent).encode(), "text/css")


def _icon() -> Asset:
    """Return the logo, or our icon if there is none."""
    if logo := current_app.config["APP_LOGO"]:
        return _file(Path(logo))
    return _drawn_icon(current_app.config["APP_ACCENT"])


def _touch_icon() -> Asset | None:
    """The home screen icon; None if the logo is in a format that phones do not use for it."""
    if logo := current_app.config["APP_LOGO"]:
        return _file(Path(logo)) if logo.lower().endswith(".png") else None
    return _drawn_touch_icon(current_app.config["APP_ACCENT"])


@cache
def _drawn_touch_icon(accent: str) -> Asset:
    return Asset(theme.touch_icon(accent, (STATIC / "touch-icon.png").read_bytes()), "image/png")


@cache
def _drawn_icon(accent: str) -> Asset:
    return Asset(theme.icon(accent).encode(), "image/svg+xml")


def _file(path: Path) -> Asset:
    return _read(path, path.stat().st_mtime_ns)


@cache
def _read(path: Path, _changed: int) -> Asset:
    mimetype = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    # Old systems say application/javascript.
    return Asset(path.read_bytes(), "text/javascript" if path.suffix == ".js" else mimetype)


@cache
def _compress(asset: Asset) -> bytes:
    return gzip.compress(asset.content, mtime=0)


def _serve(asset: Asset) -> Response:
    can_compress = asset.mimetype.startswith(COMPRESSED)
    compresses = can_compress and request.accept_encodings.quality("gzip") > 0
    response = Response(_compress(asset) if compresses else asset.content, mimetype=asset.mimetype)
    response.headers["Cache-Control"] = YEAR if request.args.get("v") == asset.version else ASK_FIRST
    if can_compress:
        response.headers["Vary"] = "Accept-Encoding"
    if compresses:
        response.headers["Content-Encoding"] = "gzip"
    response.set_etag(f"{asset.version}-gzip" if compresses else asset.version)
    response.make_conditional(request)
    return response
