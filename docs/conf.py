"""The site that `make docs` builds with Sphinx (why Sphinx: docs/design/documentation.md).

The source folder is the repository's root, so that a link in any page means the same here and in the repository.
Pages that are not there yet are no error: `nav` lists what there is.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

#: The navigation: headings, and the pages under each in this order (patterns, from the repository's root). What several
#: of them match stands under the first one.
NAV: Sequence[tuple[str, Sequence[str]]] = (
    ("Tutorial", ("docs/tutorial.md", "docs/tutorial/*.md")),
    ("How-to", ("docs/how-to/*.md", "docs/choosing-a-codec.md", "docs/tasks.md", "docs/lab.md")),
    ("Coming from …", ("docs/coming-from/*.md",)),
    (
        "Reference",
        (
            "docs/reference/cli.md", "docs/reference/api.md", "docs/reference/errors.md",
            "docs/reference/environment.md", "docs/reference/files.md", "docs/input-spec.md", "docs/stages.md",
            "docs/codecs.md", "docs/wire-format.md", "docs/reference/*.md",
        ),
    ),
    ("Explanation", ("docs/explanation/*.md", "docs/security.md")),
    ("FAQ and glossary", ("docs/faq.md", "docs/glossary.md")),
    ("Benchmarks", ("docs/benchmarks.md",)),
    ("Design", ("docs/design.md", "CONTRIBUTING.md", "CHANGELOG.md", "README.md")),
)  # fmt: skip
#: Pages below another one: their list is at its end.
BELOW = {"docs/design.md": "docs/design/*.md"}
#: What a page is called in the navigation, where its own heading does not say what it is.
TITLES = {"README.md": "README", "docs/design.md": "The design"}


def nav() -> Iterator[tuple[str, list[str]]]:
    """The headings that have pages, each with them: paths from the root. An index comes first in its folder."""
    seen: set[str] = set()
    for heading, patterns in NAV:
        pages = []
        for pattern in patterns:
            there = sorted(ROOT.glob(pattern), key=lambda path: (path.stem not in ("index", "README"), path))
            pages += [name for path in there if (name := path.relative_to(ROOT).as_posix()) not in seen | {*pages}]
        seen |= {*pages}
        if pages:
            yield heading, pages


def below(page: str) -> list[str]:
    """The pages below `page`."""
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(BELOW[page])) if page in BELOW else []


def toctrees(page: str) -> str:
    """The navigation as Sphinx wants it, to be added to `page`: docs/index.md has the headings."""
    trees = list(nav()) if page == "docs/index.md" else [("", below(page))] if page in BELOW else []
    return "".join(_toctree(heading, pages, posixpath.dirname(page)) for heading, pages in trees)


def _toctree(heading: str, pages: Sequence[str], folder: str) -> str:
    lines = []
    for page in pages:
        name = posixpath.relpath(page, folder).removesuffix(".md")
        lines.append(f"{TITLES[page]} <{name}>" if page in TITLES else name)
    caption = f":caption: {heading}\n" if heading else ""
    return "\n\n```{toctree}\n:hidden:\n" + caption + "\n" + "\n".join(lines) + "\n```\n"


def pages() -> set[str]:
    """Everything that is on the site, paths from the root."""
    files = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.md")}
    return files | {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"}


def kept_right(text: str, page: str) -> str:
    """`text` of `page`, in which links to what the site does not have (folders, Markdown of elsewhere) only name it.

    Links to other files of the repository stay: Sphinx puts a copy of each onto the site.
    """
    there = pages()

    def right(found: re.Match[str]) -> str:
        target = (ROOT / page).parent / found[2].partition("#")[0]
        if re.match(r"[a-z]+:|#", found[2]) or not target.exists():
            return found[0]
        name = target.resolve().relative_to(ROOT).as_posix()
        if name in there or (target.is_file() and target.suffix != ".md"):
            return found[0]
        return f"{found[1]} (`{name}` in the repository)"

    return re.sub(r"(?<!!)\[([^\[\]]*)\]\(([^()\s]+)\)", right, text)


# --- what Sphinx reads ------------------------------------------------------------------------------------------------

project = "splitpoint"
author = "the splitpoint authors"
copyright = author
html_title = "splitpoint"

root_doc = "docs/index"
include_patterns = ["docs/*.md", "docs/**/*.md", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = [".*", "out", "src", "tests", "bench", "scripts", "dist", "build"]
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}

# What GitHub reads is read alike, the anchors of headings among it.
myst_enable_extensions = ["colon_fence", "html_image"]
myst_heading_anchors = 4
# A page may begin below its first heading's rank, and show a language that Pygments does not know.
suppress_warnings = ["myst.header", "misc.highlighting_failure"]

# A reference to something of ours that is not there is an error; types of others and private ones are only words.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!splitpoint\.).*")]
python_maximum_signature_line_length = 88
toc_object_entries = False
highlight_language = "text"
pygments_style = "friendly"
pygments_dark_style = "github-dark"

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_extra"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}


def _read(app: Any, docname: str, source: list[str]) -> None:
    """Generated parts and the navigation are put into a page before it is parsed."""
    import reference

    page = f"{docname}.md"
    source[0] = kept_right(reference.filled(source[0]), page) + toctrees(page)


def setup(app: Any) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
