"""Pages that are the same for everybody but for a few words: rendered once, as mails are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flask import current_app, request
from flask_babel import get_locale
from flask_login import current_user

# The first of the characters that stand for the words: no text of ours has them, which are for private use.
FIRST_MARK = 0xE000


def fill(render: Callable[[], str], own: Sequence[str], *varies: object) -> str:
    """Return what `render` does, or did once, with the words that are this answer's alone in their places.

    But for `own` it follows from the page's endpoint and language, and from `varies`, for all who are not signed in.
    Rendering takes three quarters of a page's time.
    """
    # With another root its links are others.
    if current_user.is_authenticated or request.script_root or current_app.debug:
        return render()
    marks = [chr(FIRST_MARK + number) for number in range(len(own))]
    frames: dict[tuple[object, ...], str] = current_app.extensions.setdefault("page_frames", {})
    key = (request.endpoint, str(get_locale()), *varies)
    if key not in frames:
        frames[key] = _replaced(render(), own, marks)
    return _replaced(frames[key], marks, own)


def _replaced(text: str, former: Sequence[str], new: Sequence[str]) -> str:
    for was, becomes in zip(former, new, strict=True):
        text = text.replace(was, becomes)
    return text
