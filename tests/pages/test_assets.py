"""Assets of pages: compressed, cached by their content, and in the configured colors."""

from __future__ import annotations

import hashlib
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from harness.visitor import Visitor
from webapp import create_app, theme
from webapp.paths import ROOT

GZIP = {"Accept-Encoding": "gzip"}
PLAIN = {"Accept-Encoding": "identity"}


def addresses(visitor: Visitor, path: str = "/signup") -> list[str]:
    """Return the URLs that the page loads."""
    page = visitor.open(path).text
    return re.findall(r'<(?:link|script|img)[^>]*(?:href|src)="([^"]+)"', page)


def test_what_pages_load_is_compressed_and_cached_for_a_year(visitor: Visitor) -> None:
    found = addresses(visitor)
    assert len(found) >= 5
    for address in found:
        answer = visitor.http.get(address, headers=GZIP)
        assert answer.status_code == 200, address
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable", address
        # A PNG is compressed already.
        if answer.headers["content-type"] != "image/png":
            assert answer.headers["content-encoding"] == "gzip", address
            assert answer.headers["vary"] == "Accept-Encoding", address


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 4000, "=@" + "a" * 8000])
def test_no_file_has_so_long_a_name(visitor: Visitor, name: str) -> None:
    assert visitor.open(f"/static/{name}").status_code == 404


def test_who_cannot_decompress_gets_the_same_plain(visitor: Visitor) -> None:
    for address in addresses(visitor):
        plain = visitor.http.get(address, headers=PLAIN)
        assert "content-encoding" not in plain.headers
        assert plain.content == visitor.http.get(address, headers=GZIP).content


def test_under_an_address_of_another_content_nothing_is_kept(visitor: Visitor) -> None:
    for address in ("/static/app.css", "/static/app.css?v=old", "/theme.css", "/icon", "/apple-touch-icon.png"):
        answer = visitor.http.get(address)
        assert answer.headers["cache-control"] == "public, no-cache", address
        again = visitor.http.get(address, headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304, address


def test_pages_are_never_compressed_and_never_kept(visitor: Visitor) -> None:
    for path in ("/", "/signup", "/login", "/nowhere"):
        answer = visitor.http.get(path, headers=GZIP)
        assert "content-encoding" not in answer.headers, path
        assert answer.headers["cache-control"] == "no-store", path


@pytest.mark.parametrize(
    "path", ["/static/../config.py", "/static/%2e%2e/config.py", "/static/nothing.css", "/static/"]
)
def test_nothing_else_is_served(visitor: Visitor, path: str) -> None:
    assert visitor.open(path).status_code == 404


def test_the_accent_colours_pages_by_day_and_by_night(environ: dict[str, str]) -> None:
    visitor = Visitor("http://signup.example", create_app({**environ, "APP_ACCENT": "#0B6E4F"}))
    css = visitor.open("/theme.css").text
    assert "--accent:#0b6e4f" in css
    day, night = (theme.parse(colour) for colour in re.findall(r"--accent:(#\w{6})", css))
    assert theme.contrast(day, theme.PAPER) >= theme.READABLE
    assert theme.contrast(night, theme.NIGHT) >= theme.READABLE
    assert "#0b6e4f" in visitor.open("/icon").text


def test_another_accent_has_another_address(environ: dict[str, str]) -> None:
    first, second = (
        [address for address in addresses(Visitor("http://signup.example", create_app(settings))) if "theme" in address]
        for settings in (environ, {**environ, "APP_ACCENT": "#0b6e4f"})
    )
    assert first != second


@pytest.mark.parametrize("accent", ["#000000", "#3b4cca", "#7a0000", "#00417a", "#5a2d82"])
def test_whatever_the_accent_is_it_can_be_read(accent: str) -> None:
    night = theme.at_night(theme.parse(theme.accent(accent)))
    assert theme.contrast(night, theme.NIGHT) >= theme.READABLE
    assert theme.contrast(night, theme.BLACK) >= theme.READABLE


def test_contrast_is_what_wcag_says() -> None:
    assert theme.contrast(theme.WHITE, theme.BLACK) == pytest.approx(21)
    assert theme.contrast(theme.parse("#777777"), theme.WHITE) == pytest.approx(4.48, abs=0.01)


def test_the_logo_takes_the_place_of_the_icon(environ: dict[str, str], tmp_path: Path) -> None:
    logo = tmp_path / "logo.png"
    logo.write_bytes(b"\x89PNG not really")
    visitor = Visitor("http://signup.example", create_app({**environ, "APP_LOGO": str(logo)}))
    icons = [address for address in addresses(visitor) if "icon" in address]
    assert len(set(icons)) == 2
    for address in icons:
        answer = visitor.open(address)
        assert answer.content == logo.read_bytes()
        assert answer.headers["content-type"] == "image/png"
        assert "content-encoding" not in answer.headers


def test_a_home_screen_shows_the_icon_in_the_accents_color(environ: dict[str, str]) -> None:
    pictures = []
    for accent in ("#0b6e4f", "#7a0000"):
        visitor = Visitor("http://signup.example", create_app({**environ, "APP_ACCENT": accent}))
        (address,) = (address for address in addresses(visitor) if "touch" in address)
        picture = Image.open(io.BytesIO(visitor.open(address).content))
        # It reads each chunk's checksum.
        picture.verify()
        pictures.append(Image.open(io.BytesIO(visitor.page.content)).convert("RGB"))
        assert pictures[-1].size == (180, 180)
        assert pictures[-1].getpixel((0, 0)) == theme.parse(accent)
        assert theme.WHITE in {color for _count, color in pictures[-1].getcolors(256) or ()}
    assert pictures[0] != pictures[1]


def test_a_logo_that_phones_cannot_show_is_no_icon_of_a_home_screen(environ: dict[str, str], tmp_path: Path) -> None:
    logo = tmp_path / "logo.svg"
    logo.write_text(theme.icon("#000000"), encoding="utf-8")
    visitor = Visitor("http://signup.example", create_app({**environ, "APP_LOGO": str(logo)}))
    assert not [address for address in addresses(visitor) if "touch" in address]
    assert visitor.open("/apple-touch-icon.png").status_code == 404


def test_the_files_of_others_are_as_they_left_them() -> None:
    for package in json.loads((ROOT / "vendor.json").read_text("utf-8")):
        for path, file in package["files"].items():
            assert hashlib.sha256((ROOT / path).read_bytes()).hexdigest() == file["sha256"], path
        third_party = (ROOT / "THIRD_PARTY.md").read_text("utf-8")
        assert all(path in third_party for path in package["files"])
        assert package["version"] in third_party
