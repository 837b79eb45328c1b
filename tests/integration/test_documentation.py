"""The documentation as it stands in the repository, without building the site (`make docs` does): every page is in the
navigation, every link and anchor exists, and what is said to be complete is."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from types import ModuleType

import click
import pytest

import splitpoint
from splitpoint import errors, telemetry
from splitpoint.cli import verbs

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *ROOT.glob("docs/**/*.md"),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    )
)


@cache
def _module(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"documentation_{Path(path).stem}", ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for their module
    spec.loader.exec_module(module)
    return module


@cache
def _text(page: str) -> str:
    """A page as the site has it: with its generated parts."""
    filled: str = _module("scripts/reference.py").filled((ROOT / page).read_text())
    return filled


@cache
def _anchors(page: str) -> frozenset[str]:
    """What can stand behind # in a link to `page`: its headings as GitHub spells them, and names that it gives."""
    text = re.sub(r"^(```+|~~~+)[^\n]*\n.*?^\1[ ]*$", "", _text(page), flags=re.M | re.S)
    seen: Counter[str] = Counter()
    anchors = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text)) | set(re.findall(r"^\(([\w-]+)\)=$", text, re.M))
    for title in re.findall(r"^#{1,4} +(.+?) *#*$", text, re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        anchors.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return frozenset(anchors)


def _links(page: str) -> list[str]:
    """Where the links and pictures of `page` point to, code left out."""
    text = re.sub(r"^(```+|~~~+)[^\n]*\n.*?^\1[ ]*$", "", _text(page), flags=re.M | re.S)
    text = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", text, flags=re.S)
    links = re.findall(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)", text) + re.findall(r"^\[[^\]]+\]: +(\S+)", text, re.M)
    return links + re.findall(r"(?:src|srcset|href)=\"([^\"]+)\"", text)


def test_every_page_is_in_the_navigation_once() -> None:
    conf = _module("docs/conf.py")
    listed = ["docs/index.md", *(page for _, pages in conf.nav() for page in pages)]
    listed += [page for above in list(listed) for page in conf.below(above)]
    assert sorted(listed) == PAGES


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_anchor_exists(page: str) -> None:
    wrong = []
    for link in _links(page):
        name, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        there = (ROOT / page).parent.joinpath(name).resolve() if name else ROOT / page
        if not there.exists():
            wrong.append(f"{link}: no such file")
        elif anchor and there.suffix == ".md" and anchor not in _anchors(there.relative_to(ROOT).as_posix()):
            wrong.append(f"{link}: no such heading")
    assert not wrong


def test_links_to_what_the_site_does_not_have_name_it() -> None:
    kept_right = _module("docs/conf.py").kept_right
    assert kept_right("[licences](../src/splitpoint/zoo/LICENSES.md#x)", "docs/lab.md") == (
        "licences (`src/splitpoint/zoo/LICENSES.md` in the repository)"
    )
    assert kept_right("[tests](../tests)", "docs/lab.md") == "tests (`tests` in the repository)"
    for text in (
        "[a](tasks.md#x)",
        "![a](../src)",
        "[a](../Makefile)",
        "[a](https://x.org)",
        "[a](gone.md)",
        "[a](#b)",
    ):
        assert kept_right(text, "docs/lab.md") == text


def test_the_api_page_has_every_public_name_once() -> None:
    listed = [name for names in _module("scripts/reference.py").grouped().values() for name in names]
    assert sorted(listed) == splitpoint.__all__
    text = _text("docs/reference/api.md")
    assert all(f"### {name}\n" in text for name in splitpoint.__all__)
    mine, theirs = (t.split("```python\n")[1].split("```")[0] for t in (text, splitpoint.__doc__ or ""))
    assert ast.dump(ast.parse(mine)) == ast.dump(ast.parse(theirs))  # which tests/integration/test_examples.py runs


def test_the_contracts_page_has_every_protocol_of_the_doors() -> None:
    text = _text("docs/reference/contracts.md")
    for room in _module("scripts/reference.py").DOORS:
        module = importlib.import_module(f"splitpoint.{room}")
        protocols = {
            name
            for name, value in vars(module).items()
            if getattr(value, "_is_protocol", False) and value.__module__ == module.__name__
        }
        shown = {name for name in protocols if f"### {name}\n" in text}
        assert protocols - set(splitpoint.__all__) == shown


def test_the_command_line_page_has_every_verb_and_option() -> None:
    text = _text("docs/reference/cli.md")

    def walk(command: click.Command, path: str) -> None:
        section = text.partition(f"### {path}\n")[2].partition("\n### ")[0]
        assert section or path == "splitpoint"
        for param in command.params:
            if isinstance(param, click.Option) and not param.hidden and path != "splitpoint":
                assert all(re.search(rf"{{option}} .*{re.escape(o)}\b", section) for o in param.opts), (
                    path,
                    param.opts,
                )
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                below = command.get_command(context, name)
                assert below is not None
                walk(below, f"{path} {name}")

    walk(verbs.group, "splitpoint")


def test_the_errors_page_has_every_error_and_exit_status() -> None:
    text = _text("docs/reference/errors.md")
    kinds = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.SplitpointError)]
    assert len(kinds) > 15
    for cls in kinds:
        assert re.search(rf"^\| .*`{cls.__name__}\b.*` \| {cls.exit_code} \|", text, re.M), cls
        assert re.search(rf"^\| {cls.exit_code} \|", text, re.M)


def test_the_files_page_has_every_kind_of_document() -> None:
    text = _text("docs/reference/files.md")
    documents = _module("scripts/reference.py").documents()
    assert {"a profile", "a plan", "a calibration", "a link", "a manifest", "a latency file"} <= {
        document.what for document in documents
    }
    for document in documents:
        section = text.partition(f"## {document.what.partition(' ')[2].capitalize()}\n")[2].partition("\n## ")[0]
        assert f"`format` is {document.format}." in section
        assert all(f"| `{name}` |" in section for name in document.holds.__struct_fields__)


def test_the_environment_page_has_every_variable_that_is_read() -> None:
    ours, read = set(), set(telemetry.OFF)
    for folder in ("src", "bench", "scripts", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            if path == Path(__file__).resolve():
                continue
            text = path.read_text()
            ours |= set(re.findall(r"\b_?SPLITPOINT_[A-Z]+(?:_[A-Z]+)*\b", text))
            if folder == "src":
                read |= set(re.findall(r"environ(?:\.get\(|\.setdefault\(|\[)\"(\w+)\"", text))
    page = set(re.findall(r"`(_?[A-Z][A-Z_]{3,})`", (ROOT / "docs/reference/environment.md").read_text()))
    assert len(ours) > 10
    assert ours | read <= page
    assert {name for name in page if "SPLITPOINT" in name} <= ours
