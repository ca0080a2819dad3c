"""Problems of a page, as people with different ways of reading it would notice them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from justhtml import JustHTML
from playwright.sync_api import Page, ViewportSize

AXE = (Path(__file__).parent / "vendor" / "axe.min.js").read_text("utf-8")

# Everything around an email is up to the email client.
OF_MAILS = ("wcag2a", "wcag2aa")
OF_COLOURS = ("color-contrast", "link-in-text-block")

# CSS pixels. A very small phone is also a desktop at 400 %, and the other one a desktop at 200 %.
NARROW: ViewportSize = {"width": 320, "height": 500}
ZOOMED: ViewportSize = {"width": 640, "height": 360}

# What a finger presses and is too small for it. Links within a sentence are as high as its lines.
SMALL = """() => [...document.querySelectorAll("a, button, summary, input:not([type=hidden]), select")]
    .filter((one) => one.checkVisibility() && !one.matches(":disabled, .skip, .unseen"))
    .filter((one) => getComputedStyle(one).display !== "inline")
    .map((one) => [one, (one.closest("label.tick, label.live, .mails li") ?? one).getBoundingClientRect().height])
    .filter(([, height]) => height < 44)
    .map(([one, height]) => `${Math.round(height)} pixels high on a phone: ${one.outerHTML}`)"""

# Moves focus like the tab key, and notes elements without a visible focus and jumps back up the page.
FOCUS = """() => {
    const places = 'a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex="0"]';
    const unreached = ":disabled, .skip, details:not([open]) > :not(summary) *";
    const reached = [...document.querySelectorAll(places)].filter((element) =>
        !element.matches(unreached) && element.checkVisibility());
    const wrong = [];
    let last;
    for (const element of reached) {
        element.focus({preventScroll: true});
        const rings = [null, "::after"].map((part) => getComputedStyle(element, part));
        if (document.activeElement !== element) {
            wrong.push(`takes no focus: ${element.outerHTML}`);
        } else if (!rings.some(({outlineStyle, outlineWidth}) => outlineStyle === "solid" && outlineWidth === "3px")) {
            wrong.push(`focus is not seen: ${element.outerHTML}`);
        }
        const place = element.getBoundingClientRect();
        if (last && place.bottom <= last.top) {
            wrong.push(`comes too late: ${element.outerHTML}`);
        }
        last = place;
    }
    document.activeElement.blur();
    return document.querySelector("main :is(a[href], button)") ? wrong : [...wrong, "a dead end"];
}"""


def axe(page: Page, *only: str) -> Iterator[str]:
    """Yield axe's findings; `only`: the rules or tags to check instead of all."""
    if not page.evaluate("Boolean(window.axe)"):
        page.evaluate(AXE)
    # Our frames hold emails, where scripts can't run.
    options: dict[str, Any] = {"iframes": False, "resultTypes": ["violations"]} | ({"runOnly": only} if only else {})
    for violation in page.evaluate("(options) => axe.run(options).then((found) => found.violations)", options):
        for node in violation["nodes"]:
            yield f"{violation['id']}: {node['html'][:200]} {node['failureSummary']}"


def width(page: Page) -> Iterator[str]:
    """Yield the windows in which you have to scroll sideways."""
    size = page.viewport_size
    assert size
    for window in (NARROW, ZOOMED):
        page.set_viewport_size(window)
        needed = page.evaluate("document.documentElement.scrollWidth")
        if needed > window["width"]:
            yield f"{needed} pixels wide in a window of {window['width']}"
    page.set_viewport_size(size)


def fingers(page: Page) -> Iterator[str]:
    """Yield what is hard to press on a phone."""
    size = page.viewport_size
    assert size
    # As wide as a phone on its side: at 320 pixels many a small target is two lines high.
    page.set_viewport_size(ZOOMED)
    yield from page.evaluate(SMALL)
    page.set_viewport_size(size)


def keyboard(page: Page) -> Iterator[str]:
    """Yield what the tab key can't reach, and whether it gets stuck."""
    # From here on the focus comes from the keyboard, so it is visible.
    page.keyboard.press("Tab")
    yield from page.evaluate(FOCUS)


def markup(source: str) -> Iterator[str]:
    """Yield a validator's findings, values that browsers can't read, and ids that are duplicated or missing."""
    # Sanitizing would remove most of what is checked here.
    document: Any = JustHTML(source, collect_errors=True, sanitize=False)
    yield from (f"invalid: {error}" for error in document.errors)
    times = [element.attrs["datetime"] for element in document.query("time[datetime]")]
    # HTML knows no microseconds.
    yield from (f"no time: {time}" for time in times if re.search(r"\.\d{4}", time))
    numbers = [element.attrs["value"] for element in document.query("input[type=number][value]")]
    yield from (f"no number: {number}" for number in numbers if not re.fullmatch(r"\d*", number))
    ids = [element.attrs["id"] for element in document.query("[id]")]
    yield from (f"twice: {name}" for name in sorted({name for name in ids if ids.count(name) > 1}))
    for attribute in ("for", "aria-describedby", "aria-controls", "aria-labelledby"):
        for element in document.query(f"[{attribute}]"):
            yield from (
                f"{attribute} of nothing: {name}" for name in element.attrs[attribute].split() if name not in ids
            )
