"""The files that pages load: stylesheets, scripts and pictures, compressed, and cached for a year by their content."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from flask import Flask, Response, abort, current_app, request
from flask.sessions import SecureCookieSessionInterface, SessionMixin
from werkzeug.security import safe_join

from webapp import theme

STATIC = Path(__file__).resolve().parent.parent / "static"

# Pages are never compressed: what they hold of a person could be guessed from their length (BREACH).
COMPRESSED = ("text/", "application/javascript", "image/svg+xml")
YEAR = "public, max-age=31536000, immutable"
# Under an address that is not its content's, a file may change.
ASK_FIRST = "public, no-cache"


@dataclass(frozen=True)
class Asset:
    """`version` follows from the content."""

    content: bytes
    mimetype: str

    @cached_property
    def version(self) -> str:
        return hashlib.sha256(self.content).hexdigest()[:12]


class Sessions(SecureCookieSessionInterface):
    """Keeps sessions out of answers that caches may keep."""

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        if not response.cache_control.public:
            super().save_session(app, session, response)


def init_app(app: Flask) -> None:
    app.session_interface = Sessions()
    # Flask's own name for it.
    app.add_url_rule("/static/<path:filename>", "static", static)
    app.add_url_rule("/theme.css", "theme", lambda: _serve(_theme()))
    app.add_url_rule("/icon", "icon", lambda: _serve(_icon()))
    app.url_defaults(_add_version)


def static(filename: str) -> Response:
    path = safe_join(str(STATIC), filename)
    if path is None or not Path(path).is_file():
        abort(404)
    return _serve(_file(Path(path)))


def _add_version(endpoint: str, values: dict[str, Any]) -> None:
    assets = {"static": lambda: _file(STATIC / values["filename"]), "theme": _theme, "icon": _icon}
    if endpoint in assets:
        values["v"] = assets[endpoint]().version


def _theme() -> Asset:
    return _stylesheet(current_app.config["APP_ACCENT"])


@cache
def _stylesheet(accent: str) -> Asset:
    return Asset(theme.stylesheet(accent).encode(), "text/css")


def _icon() -> Asset:
    """The logo, or what stands for it."""
    if logo := current_app.config["APP_LOGO"]:
        return _file(Path(logo))
    return _drawn_icon(current_app.config["APP_ACCENT"])


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
