"""Inline styles, for email clients that ignore stylesheets."""

from __future__ import annotations

import re

from jinja2 import TemplateSyntaxError
from jinja2.ext import Extension

CLASSES = re.compile(r'class="([^"]+)"')

# In the stylesheets: the colors derived from the accent.
COLOURS = re.compile(r"var\(--(\w+)\)")
RULES = re.compile(r"\.([\w-]+)\s*\{([^}]*)\}")


class InlinedStyles(Extension):
    """Gives each class in an email's templates its style from mail/inlined.css.

    This happens when Jinja reads a template, once per process; only the accent is filled in at rendering.
    """

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        if name is None or not name.removeprefix("webapp/").startswith("mail/"):
            return source
        if name.endswith(".css"):
            return _filled_in(source)
        if not name.endswith(".html"):
            return source
        stylesheet = self.environment.loader.get_source(self.environment, "mail/inlined.css")[0]  # type: ignore[union-attr]
        rules = {name: _filled_in(" ".join(style.split())) for name, style in RULES.findall(stylesheet)}

        def add_style(classes: re.Match[str]) -> str:
            if unknown := [name for name in classes[1].split() if name not in rules]:
                raise TemplateSyntaxError(f"mail/inlined.css has no style for {', '.join(unknown)}", 1, name, filename)
            return f'{classes[0]} style="{" ".join(rules[name] for name in classes[1].split())}"'

        return CLASSES.sub(add_style, source)


def _filled_in(stylesheet: str) -> str:
    return COLOURS.sub(r"{{ colours.\1 }}", stylesheet)
