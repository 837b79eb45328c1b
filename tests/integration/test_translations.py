"""Translated pages of the documentation say what the English ones say: the same blocks, commands, links and tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
TRANSLATED = sorted(path for language in ("ko", "zh") for path in DOCS.rglob(f"*.{language}.md"))


def blocks(text: str) -> list[str]:
    """What stands between fences, and why it is not run."""
    return re.findall(r"(?ms)^(?:<!-- .*? -->|```.*?^```)$", text)


def code(text: str) -> list[str]:
    """What stands in backticks, row by row of all tables; columns and lists may be put in another order."""
    rows = re.sub(r"(?ms)^```.*?^```$", "", text).splitlines()
    return [" ".join(sorted(re.findall(r"`[^`]+`", row))) for row in rows if row.startswith("|")]


def links(text: str) -> list[str]:
    return sorted(re.findall(r"\]\((\.\./[^)]*)\)", text))


def headings(text: str) -> list[int]:
    return [len(marks) for marks in re.findall(r"(?m)^(#+) ", re.sub(r"(?ms)^```.*?^```$", "", text))]


@pytest.mark.parametrize("page", TRANSLATED, ids=lambda page: page.name)
def test_a_translation_has_what_the_english_page_has(page: Path) -> None:
    english = page.with_name(page.name.split(".")[0] + ".md").read_text()
    text = page.read_text()
    assert blocks(text) == blocks(english)
    assert code(text) == code(english)
    assert links(text) == links(english)
    assert headings(text) == headings(english)
    assert len(re.findall(r"(?m)^\* ", text)) == len(re.findall(r"(?m)^\* ", english))


def test_there_are_translations() -> None:
    assert len(TRANSLATED) >= 4
