"""Everything that the documents name exists."""

from __future__ import annotations

import ast
import re
import tomllib

import pytest
import yaml  # type: ignore[import-untyped]

from tests.defences import DEFENCES
from webapp.paths import ROOT

NAMED = re.compile(r"`(webapp/[\w/]+\.py): ([\w.]+)`")
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([\w-]+))?\)")


def names_in(path: str) -> set[str]:
    """Return the functions, classes and methods of a module."""
    names = set()
    for node in ast.parse((ROOT / path).read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return names


def test_each_function_on_a_mails_way_is_there() -> None:
    named = NAMED.findall((ROOT / "docs" / "one-mail.md").read_text("utf-8"))
    assert len(named) > 30
    assert [(path, name) for path, name in named if name not in names_in(path)] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_link_of_a_document_leads_somewhere(document: str) -> None:
    page = ROOT / document
    for path, anchor in LINK.findall(page.read_text("utf-8")):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        if anchor and target.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, anchor


def test_the_readme_is_read_in_a_few_minutes() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120


def test_the_pictures_of_a_document_are_there() -> None:
    for document in DOCUMENTS:
        for path in re.findall(r'src(?:set)?="([^"]+)"', (ROOT / document).read_text("utf-8")):
            assert ((ROOT / document).parent / path).is_file(), path


def test_the_table_has_each_module_or_its_folder() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    told = set(re.findall(r"`(webapp/[\w/]*(?:\.py|/))`", page))
    assert [path for path in told if not (ROOT / path).exists()] == []
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "webapp").rglob("*.py")}
    untold = {path for path in modules - told if not any(path.startswith(one) for one in told if one.endswith("/"))}
    missing = sorted(path for path in untold if not path.endswith("__init__.py"))
    assert missing == [], "name it in the table of docs/architecture.md; what is your own belongs into own/"


def test_each_test_that_keeps_a_promise_of_safety_is_there() -> None:
    named = set(re.findall(r"`(test_\w+\.py)`", (ROOT / "docs" / "security.md").read_text("utf-8")))
    assert sorted(named - {path.name for path in (ROOT / "tests").rglob("test_*.py")}) == []


def test_a_promise_marks_the_requirements_that_deviate_and_no_others() -> None:
    page = (ROOT / "docs" / "security.md").read_text("utf-8")
    promises, deviations = page.split("## What deviates, and why")
    deviating = {name for row in rows_of(deviations) for name in REQUIREMENT.findall(row[0])}
    marked = {(row[0], *found) for row in rows_of(promises) for found in MARKED.findall(row[-1])}
    assert len(marked) > 60
    assert len(deviating) > 40
    right = {(number, name, "†" if name in deviating else "") for number, name, _mark in marked}
    assert sorted(marked - right) == [], "† where the table below has the requirement, and nowhere else"


REQUIREMENT = re.compile(r"V\d+\.\d+\.\d+")
MARKED = re.compile(rf"({REQUIREMENT.pattern})(†?)")


def rows_of(text: str) -> list[list[str]]:
    """Return the cells of each row of the tables in it."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_no_docstring_begins_with_what() -> None:
    for path in (ROOT / "webapp").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                assert not (ast.get_docstring(node) or "").startswith("What"), f"{path}: {ast.get_docstring(node)}"


def test_each_defence_that_can_be_taken_out_is_there() -> None:
    gone = [one.what for one in DEFENCES if (ROOT / one.file).read_text("utf-8").count(one.present) != 1]
    assert gone == []


def test_the_guide_for_contributors_lists_the_layers_that_are_enforced() -> None:
    guide = " ".join((ROOT / "CONTRIBUTING.md").read_text("utf-8").split())
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    layers = {folder: " → ".join(one["layers"]) for one in contracts for folder in one["containers"]}
    assert {"webapp", "webapp.accounts", "webapp.outbox", "webapp.delivery"} <= set(layers)
    assert [folder for folder, listed in layers.items() if f" {listed} " not in guide] == []


def test_docker_compose_builds_our_image_whichever_service_comes_first() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
    ours = {name: service for name, service in services.items() if service["image"] == "${IMAGE:-signup}"}
    assert {"migrate", "web", "worker"} <= set(ours)
    assert [name for name, service in ours.items() if "build" not in service] == []


def test_docker_compose_lets_only_its_proxy_be_reached_and_only_from_this_machine() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
    published = {name: port for name, service in services.items() for port in service.get("ports", [])}
    assert set(published) == {"proxy", "mailpit"}
    assert published["proxy"].startswith("${HTTP_BIND:-127.0.0.1}:")
    assert published["mailpit"].startswith("127.0.0.1:")
    # The proxy's word about who is asking counts.
    assert services["web"]["environment"]["TRUSTED_PROXIES"] == "${TRUSTED_PROXIES:-1}"
    assert "listen 8080" in (ROOT / "docker" / "nginx.conf").read_text("utf-8")
