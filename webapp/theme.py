"""The accent color: whether text on it is readable, and its shades for light and dark."""

from __future__ import annotations

import re
import zlib

Colour = tuple[int, int, int]

# The page backgrounds in static/app.css.
PAPER: Colour = (0xF6, 0xF5, 0xF2)
NIGHT: Colour = (0x1D, 0x1F, 0x22)
WHITE: Colour = (255, 255, 255)
BLACK: Colour = (0, 0, 0)

# WCAG 2, AA: text of ordinary size.
READABLE = 4.5
# Light text on a dark background needs more contrast to be as easy to read.
READABLE_AT_NIGHT = 6.5


def parse(text: str) -> Colour:
    """Raises ValueError unless it is #rrggbb."""
    if not re.fullmatch("#[0-9A-Fa-f]{6}", text):
        raise ValueError(f"must look like #3b4cca, not {text!r}")
    return (int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16))


def contrast(one: Colour, other: Colour) -> float:
    """Return WCAG's ratio, from 1 to 21."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def accent(text: str) -> str:
    """Return the color if links in it are readable on our light background, and white text on it. Raises ValueError."""
    ratio = contrast(parse(text), PAPER)
    if ratio < READABLE:
        raise ValueError(
            f"must be darker, so that links can be read: {text} on a light page has a contrast of {ratio:.1f}, "
            f"and {READABLE} is needed"
        )
    return text.lower()


def stylesheet(accent: str) -> str:
    """Return the CSS custom properties derived from the accent, for light and dark."""
    light = parse(accent)
    night = at_night(light)
    by_day = _properties(light, ink=WHITE, hover=_mix(light, BLACK, 0.18))
    by_night = _properties(night, ink=BLACK, hover=_mix(night, WHITE, 0.25))
    return f":root{{{by_day}}}@media (prefers-color-scheme:dark){{:root{{{by_night}}}}}\n"


def of_mails(accent: str) -> dict[str, str]:
    """Return the accent, the color of text on it, and the background of a code, each for light and dark."""
    light = parse(accent)
    night = at_night(light)
    colours = {
        "accent": light,
        "on_accent": WHITE,
        "soft": _mix(light, WHITE, 0.9),
        "night_accent": night,
        "on_night_accent": BLACK,
        "night_soft": _mix(night, NIGHT, 0.85),
    }
    return {name: _hex(colour) for name, colour in colours.items()}


def at_night(colour: Colour) -> Colour:
    """Return the color, mixed with as much white as it needs to be readable on a dark background."""
    steps = (_mix(colour, WHITE, step / 20) for step in range(21))
    return next(step for step in steps if contrast(step, NIGHT) >= READABLE_AT_NIGHT)


def icon(accent: str) -> str:
    """Return the envelope that is shown where there is no logo, as SVG."""
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">'
        f'<rect width="32" height="32" rx="9" fill="{accent}"/>'
        '<g fill="none" stroke="#fff" stroke-width="2.2" stroke-linecap="round" stroke-linejoin="round">'
        '<path d="M24.5 13.5V21a2.5 2.5 0 0 1-2.5 2.5H10A2.5 2.5 0 0 1 7.5 21v-9.5A2.5 2.5 0 0 1 10 9h7.5"/>'
        '<path d="m8.2 11.2 7.8 6 2.600-2"/><path d="m20 10.5 2.300 2.300 4-4.300"/></g></svg>\n'
    )


def touch_icon(accent: str, drawn: bytes) -> bytes:
    """Return the home screen icon: `drawn`, a PNG in 256 shades, with a palette from the accent to white."""
    ground = parse(accent)
    palette = b"".join(bytes(_mix(ground, WHITE, step / 255)) for step in range(256))
    chunk = b"PLTE" + palette
    before, after = drawn.split(b"PLTE", 1)
    return before + chunk + zlib.crc32(chunk).to_bytes(4) + after[len(palette) + 4 :]


def _properties(accent: Colour, *, ink: Colour, hover: Colour) -> str:
    red, green, blue = accent
    return (
        f"--accent:{_hex(accent)};--accent-ink:{_hex(ink)};--accent-hover:{_hex(hover)};"
        f"--accent-soft:rgb({red} {green} {blue}/.1);--accent-ring:rgb({red} {green} {blue}/.35)"
    )


def _luminance(colour: Colour) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _mix(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
