"""Your own words: which ones are not translated, and which translations are of no use."""

from __future__ import annotations

from pathlib import Path

from tools.own_words import problems

FILES = {
    "own/pages.py": 'TITLES = _("Boats"), _("Save"), ngettext("%(num)s berth", "%(num)s berths", 2)',
    "instance/templates/boats.html": '{{ _("At berth") }} {{ _("Ahoy") }}',
    "instance/translations/th.po": """
msgid "Ahoy"
msgstr "สวัสดี"

#, fuzzy
msgid "Boats"
msgstr "เรือ"

msgid "Sign inn"
msgstr "เข้า"

msgid "Sign up"
msgstr "สมัคร"
""",
    "instance/translations/en.po": """
msgid "Sign up"
msgstr "Come aboard"
""",
}


def test_what_nobody_translated_and_what_nobody_says_is_named(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    assert list(problems(tmp_path, "en")) == []
    file, otherwise = "instance/translations/th.po", "or take th out of LANGUAGES in .env"
    assert list(problems(tmp_path, "en,th")) == [
        f"{file}: neither your code nor ours says 'Sign inn'",
        f"{file}: translate 'Boats', {otherwise}",
        f"{file}: translate ('%(num)s berth', '%(num)s berths'), {otherwise}",
        f"{file}: translate 'At berth', {otherwise}",
    ]
