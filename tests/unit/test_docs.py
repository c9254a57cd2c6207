"""What people read first is held against what there is."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]


def read(name: str) -> str:
    return (ROOT / name).read_text()


def blocks(text: str) -> list[str]:
    """The lines of indented code, without what follows a #."""
    return [
        line.partition("#")[0].strip()
        for line in text.splitlines()
        if line.startswith("    ") and line.strip()
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link.partition("#")[0]).exists(), link


def commands() -> list[str]:
    found = [line for line in blocks(read("README.md")) if line.startswith("vswitchctl ")]
    assert len(found) > 10
    return found


@pytest.mark.parametrize("line", commands())
def test_vswitchctl_takes_the_words_of_the_readme(line: str) -> None:
    from vswitchd.cli.app import app

    command, words = typer.main.get_command(app), shlex.split(line)[1:]
    context = command.make_context("vswitchctl", list(words))
    while isinstance(command, TyperGroup):
        name, command, words = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        assert command is not None
        context = command.make_context(name, list(words), parent=context)
    assert not context.args


def test_layouts_of_the_readme_parse() -> None:
    from vswitchd.model.layout import parse_layout

    found = re.findall(r"(?<![\w(])((?:mirror|stripe|concat)\([^`']*\))[`']", read("README.md"))
    assert len(found) > 4
    for layout in found:
        parse_layout(layout)


def test_make_targets_of_the_pages_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    for page in PAGES:
        text = page.read_text()
        said = set(re.findall(r"`make ([a-z-]+)", text)) | {
            line.split()[1] for line in blocks(text) if line.startswith("make ")
        }
        assert said <= targets, page.name


def test_metrics_of_the_readme_exist() -> None:
    where = ("obs/engine_metrics.py", "controller/metrics.py", "host/metrics.py")
    sources = "".join(read(f"vswitchd/{path}") for path in where)
    said = set(re.findall(r"`vswitchd_([a-z_]+?)(?:_total)?(?:\{[^}]*\})?`", read("README.md")))
    assert said
    for name in said:
        assert re.search(rf'"(vswitchd_)?{name}"', sources), name


def names(rows: str) -> set[str]:
    """The first cells of a table."""
    return set(re.findall(r"^\| ([a-z0-9_-]+) \|", rows, re.MULTILINE)) - {"package", "crate"}


def python(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!\[ ]", need)[0] for need in requirements}


def test_each_dependency_has_its_reason() -> None:
    parts = re.split(r"^## ", read("docs/dependencies.md"), flags=re.MULTILINE)
    runtime, dev, rust = (names(part) for part in parts[1:4])
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert runtime == python(project["dependencies"])
    assert dev == python(project["optional-dependencies"]["dev"])
    crates = {
        name
        for manifest in ROOT.glob("engine/*/Cargo.toml")
        for section in ("dependencies", "dev-dependencies", "build-dependencies")
        for name in tomllib.loads(manifest.read_text()).get(section, {})
    }
    assert rust == {name for name in crates if not name.startswith("vs-")}


def test_the_tour_names_the_tests_of_all_claims() -> None:
    tree = ast.parse(read("tests/e2e/test_claims.py"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    there = {node.name for node in tree.body if isinstance(node, functions)}
    there = {name for name in there if name.startswith("test_claim_")}
    assert set(re.findall(r"test_claim_\w+", read("docs/ARCHITECTURE.md"))) == there


def test_the_tour_names_modules_that_exist() -> None:
    rooms = "model|restructure|election|controller|processor|store|api|cli|obs"
    said = set(re.findall(rf"`((?:{rooms})\.(?!json)[a-z_]+)", read("docs/ARCHITECTURE.md")))
    assert len(said) > 10
    for name in said:
        assert (ROOT / "vswitchd" / f"{name.replace('.', '/')}.py").exists(), name
