"""Every code block of the documentation runs as it is printed, or says why not."""

from __future__ import annotations

import doctest
from pathlib import Path

import pages
import pytest

DOCS = pages.ROOT / "docs"
#: Pages whose readers type along, whichever of them follow.
GUIDES = [DOCS / "tutorial.md", *sorted((DOCS / "how-to").glob("*.md"))]
#: All pages that say by their first comment that they are followed.
FOLLOWED = [p for p in [pages.ROOT / "README.md", *sorted(DOCS.rglob("*.md"))] if pages.is_followed(p)]


def test_every_guide_is_followed() -> None:
    assert set(GUIDES) <= set(FOLLOWED)


@pytest.mark.parametrize("page", pages.parameters(FOLLOWED))
def test_a_page_can_be_followed_from_an_empty_folder(page: Path, tmp_path: Path) -> None:
    pages.follow(page, tmp_path)


@pytest.mark.parametrize("page", FOLLOWED, ids=lambda p: p.stem)
def test_each_block_says_what_it_is(page: Path) -> None:
    assert not pages.unexplained(page)


def test_the_reader_of_pages_does_as_its_examples_say() -> None:
    assert doctest.testmod(pages).attempted > 4
    assert not doctest.testmod(pages).failed


def test_a_page_that_is_wrong_is_not_followed(tmp_path: Path) -> None:
    for k, (block, says) in enumerate([
        ("```console\n$ echo one two 3 ms\none … 7 ms\n```", ""),
        ("```console\n$ echo one; echo two; echo three\n…\nthree\n```", ""),
        ("```console\nserver$ echo x > f\ndevice$ scp SERVER:f . && cat f\nx\n```", ""),
        ("```console\n$ export A=b; mkdir c; cd c\n$ echo $A $(basename $PWD)\nb c\n```", ""),
        ("```python\nprint('x', 5)\n```\n\n<!-- output -->\n```text\nx 6\n```", ""),
        ("<!-- exit: 3 -->\n```sh\nexit 3\n```", ""),
        ("```console\n$ echo serving on 5; sleep 100\nserving on 3\n^C\n```", ""),
        ("```console\n$ echo one\ntwo\n```", "'two' is not printed"),
        ("```console\n$ echo one; echo two\none\n```", "'two' is not in the page"),
        ("```console\n$ false\n```", "exit status 1"),
        ("```sh\nfalse\ntrue\n```", "exit status 1"),
        ("```python\nraise SystemExit(2)\n```", "exit status 2"),
        ("```python\nprint('x')\n```\n\n<!-- output -->\n```text\ny\n```", "'y' is not printed"),
        ("```console\n$ echo serving; exit 4\nserving on 3\n^C\n```", "'serving on 3' is not printed"),
    ]):  # fmt: skip
        page, folder = tmp_path / f"{k}.md", tmp_path / str(k)
        page.write_text(f"# A page\n\n{block}\n")
        folder.mkdir()
        if says:
            with pytest.raises(AssertionError, match=says):
                pages.follow(page, folder)
        else:
            pages.follow(page, folder)
