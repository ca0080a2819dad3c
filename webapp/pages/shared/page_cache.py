"""Pages that are the same for everybody but for a few words: rendered once, as mails are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flask import current_app, g, request, session
from flask_babel import get_locale
from flask_login import current_user

# The first of the characters that stand for the words: no text of ours has them, which are for private use.
FIRST_MARK = 0xE000

# What a query may say that `varies` and the language tell already; and what is the same in all requests for a page.
KNOWN = {"language", "next"}
SAME = {"blueprint", "endpoint", "method", "path"}


class Watched:
    """Stands for an object in a template, and notes whether it was asked for what is of this request alone."""

    def __init__(self, watched: object, asked: list[str]) -> None:
        self._watched, self._asked = watched, asked

    def __getattr__(self, name: str) -> Any:
        if name not in SAME:
            self._asked.append(name)
        return getattr(self._watched, name)

    def __getitem__(self, name: str) -> Any:
        self._asked.append(name)
        return self._watched[name]  # type: ignore[index]

    def __contains__(self, name: str) -> bool:
        self._asked.append(name)
        return name in self._watched  # type: ignore[operator]


def fill(render: Callable[..., str], own: Sequence[str], *varies: object) -> str:
    """Return what `render` does, or did once, with the words that are this answer's alone in their places.

    But for `own` it follows from the page's endpoint and language, and from `varies`, for all who are not signed in.
    Templates may be anybody's: one that asks the request, the session or `g` for more is rendered for each visitor.
    Rendering takes three quarters of a page's time.
    """
    # With another root its links are others.
    is_own = request.script_root or not KNOWN.issuperset(request.args)
    if current_user.is_authenticated or is_own or current_app.debug:
        return render()
    marks = [chr(FIRST_MARK + number) for number in range(len(own))]
    frames: dict[tuple[object, ...], str] = current_app.extensions.setdefault("page_frames", {})
    key = (request.endpoint, str(get_locale()), *varies)
    if key not in frames:
        asked: list[str] = []
        page = render(request=Watched(request, asked), session=Watched(session, asked), g=Watched(g, asked))
        if asked:
            return page
        frames[key] = _replaced(page, own, marks)
    return _replaced(frames[key], marks, own)


def _replaced(text: str, former: Sequence[str], new: Sequence[str]) -> str:
    for was, becomes in zip(former, new, strict=True):
        text = text.replace(was, becomes)
    return text
