"""Runs the code blocks of a Markdown page as a reader would: from an empty folder, in order, with real processes.

What a block is follows from its language:

* ``console``: lines that begin with a prompt (``$``, ``server$``, ``edge$``) are typed into bash, the others are what
  it prints. Each prompt is a machine: it has a home folder of its own, and `scp` between them copies files. A command
  that serves goes on in the background; a line ``^C`` ends it. Commands must succeed.
* ``sh``: a script, or with prompts commands as above; it shows no output.
* ``python``: a program, run in a process of its own.
* Anything else is something to read.

Output is compared line by line, but for numbers, spaces and the arrow or cross before a row; ``…`` stands for anything
in a line, and on a line of its own for any lines. Comments say what else there is to know:

* ``<!-- page: long SERVER=localhost -->`` first: this page is followed; it takes long (`make docs-test`), and SERVER is
  localhost here.
* ``<!-- given: COMMAND -->``: what a reader has already, such as photos.
* before a block ``<!-- not run: WHY -->``, ``<!-- output differs: WHY -->`` (run, but what it prints is not compared),
  ``<!-- file: NAME -->`` (the reader saves it under this name), ``<!-- output -->`` (what the block before it prints),
  ``<!-- exit: 4 -->`` (its last command ends with this status), ``<!-- repository: PATH -->`` (it is in this file).

Blocks are read by markdown-it-py, which rich brings along. pytest-codeblocks, mktestdocs, sybil and
pytest-markdown-docs were read about: none starts servers in the background, and where output is compared, it must be
the same to the letter. bashtestmd (Rust) has both, in one generated script and one folder.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
#: Verbs that go on until they are stopped.
SERVES = ("serve", "lab link")
#: How what was told to end ends.
ENDED = (0, 128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM)
_PROMPT = re.compile(r"(?P<machine>[a-z]*)\$ (?P<command>.*)")
_COMMENT = re.compile(r"<!--\s*(?P<word>[a-z ]+?)(?::\s*(?P<what>.*?))?\s*-->", re.DOTALL)
_WORDS = ("page", "given", "not run", "output differs", "file", "output", "exit", "repository")
#: Numbers, also with what stands before them in tables, and fingerprints.
_NUMBER = re.compile(r"[~<≈]?\b(?:[0-9a-f]{12}|\d[\d.,]*(?:e[-+]?\d+)?)(?![\w])|(?<=\d)[0-9a-f]{12}\b|[~<]?\d[\d.,]*")


@dataclass
class Block:
    """A code block: its language, its text, its first line in the page, and what the comments before it say."""

    language: str
    text: str
    line: int
    said: dict[str, str] = field(default_factory=dict)


def read_page(text: str) -> tuple[dict[str, str], list[Block]]:
    """What holds for the whole page, and its blocks in order.

    >>> told, blocks = read_page("<!-- page: long HOST=localhost -->\\n\\n<!-- not run: no -->\\n```sh\\nls\\n```\\n")
    >>> told, blocks[0].language, blocks[0].text, blocks[0].said
    ({'long': '', 'HOST': 'localhost'}, 'sh', 'ls\\n', {'not run': 'no'})
    """
    page: dict[str, str] = {}
    said: dict[str, str] = {}
    blocks: list[Block] = []
    for token in MarkdownIt("commonmark").parse(text):
        line = token.map[0] + 1 if token.map else 0
        if token.type == "html_block":
            for comment in _COMMENT.finditer(token.content):
                word, what = comment["word"], comment["what"] or ""
                if word not in _WORDS:
                    assert not page, f"line {line}: what does the comment {word!r} say? {', '.join(_WORDS)}"
                elif word == "page":
                    page |= {name: value for name, _, value in (w.partition("=") for w in what.split())}
                elif word == "given":
                    blocks.append(Block("sh", what + "\n", line))
                else:
                    said[word] = what
        elif token.type in ("fence", "code_block"):
            blocks.append(Block(token.info.strip(), token.content, line, said))
            said = {}
        elif token.type == "inline":
            assert not said, f"line {line}: a code block is expected after the comment {said}"
    return page, blocks


def commands(block: Block) -> list[tuple[str, str, list[str]]]:
    """Machine, command and the lines it prints, for each command of a console block.

    >>> commands(Block("console", "server$ a \\\\\\n    b\\nyes\\n$ c\\n", 1))
    [('server', 'a \\\\\\n    b', ['yes']), ('', 'c', [])]
    """
    typed: list[tuple[str, str, list[str]]] = []
    goes_on = False
    for line in block.text.splitlines():
        prompt = _PROMPT.fullmatch(line)
        if goes_on:
            machine, command, _ = typed.pop()
            typed.append((machine, f"{command}\n{line.removeprefix('> ')}", []))
        elif prompt:
            typed.append((prompt["machine"], prompt["command"], []))
        else:
            assert typed, f"line {block.line}: a console block begins with a prompt"
            typed[-1][2].append(line)
        goes_on = line.endswith("\\")
    return typed


def _pattern(line: str) -> re.Pattern[str]:
    parts = []
    for part in re.split(r"(…|\s+|[─-]{4,})", line.strip()):
        if part == "…":
            parts.append(".*")
        elif part.isspace():
            parts.append(r"\s+")
        elif part.startswith(("────", "----")):
            parts.append("[─-]+")
        else:
            part, last = re.sub(r"^[+-](?=\d)", "", part), 0
            for number in _NUMBER.finditer(part):
                parts += [re.escape(part[last : number.start()]), r"[~<≈+-]?[0-9a-f.,]*\d[0-9a-f.,]*(?:e[-+]?\d+)?"]
                last = number.end()
            parts.append(re.escape(part[last:]))
    return re.compile("".join(parts))


def _unmarked(line: str) -> str:
    """Without the arrow or cross before a row: which one has it, another machine decides otherwise."""
    return re.sub(r"^\s*[→×]?\s*", "", line).rstrip()


def differs(expected: list[str], printed: list[str], whole: bool = True) -> str:
    """The first line of the page that is not printed where it should be, or "" if all are.

    >>> differs(["took 3 ms", "…", "done"], ["took 12.5 ms", "a", "b", "done"])
    ''
    >>> differs(["all on the device  10.1  +8%  blocks.5"], ["→ all on the device 9.3 -12% blocks.7"])
    ''
    >>> differs(["done"], ["failed"])
    "'done' is not printed"
    """
    wanted = [_unmarked(line) for line in expected if line.strip()]
    got = [_unmarked(line) for line in printed if line.strip()]
    ends, gap = {0}, False  # how many printed lines may have been read
    for line in wanted:
        if line == "…":
            gap = True
            continue
        pattern = _pattern(line)
        if gap:
            ends = set(range(min(ends), len(got) + 1))
        ends, gap = {k + 1 for k in ends if k < len(got) and pattern.fullmatch(got[k])}, False
        if not ends:
            return f"{line!r} is not printed"
    return "" if gap or len(got) in ends or not whole else f"{got[max(ends)]!r} is not in the page"


class _Background:
    """A command that goes on; what it prints is read as it comes."""

    def __init__(self, process: subprocess.Popen[str], command: str) -> None:
        self.process, self.command = process, command
        self.printed: list[str] = []
        self._came = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._came:
                self.printed.append(line.rstrip("\n"))
                self._came.notify_all()

    def wait_for(self, expected: list[str], timeout_s: float) -> str:
        """What is missing when all has been printed, the process has ended, or the time is over."""
        until = time.monotonic() + timeout_s
        with self._came:
            while missing := differs([*expected, "…"], self.printed):
                if self.process.poll() is not None or time.monotonic() > until:
                    break
                self._came.wait(0.2)
        return missing

    def end(self, number: int) -> int:
        """Its exit status; all it started ends with it."""
        try:
            for _ in range(12):  # a shell that is just starting a command may miss the first one
                if self.process.poll() is not None:
                    break
                os.killpg(self.process.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(5)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
            status = self.process.wait()
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status


class Reader:
    """Follows a page in `folder`; leaving it ends every process that it started."""

    def __init__(self, folder: Path, names: dict[str, str], timeout_s: float = 300) -> None:
        self.folder, self.names, self.timeout_s = folder, names, timeout_s
        self.running: list[_Background] = []
        self._ports: dict[str, int] = {}
        tools = folder / "tools"
        tools.mkdir()
        (tools / "scp").write_text(f"#!{sys.executable}\n{_SCP.format(folder=str(folder))}")
        (tools / "scp").chmod(0o755)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        ended = [(b.command, b.end(signal.SIGTERM), b.printed) for b in reversed(self.running)]
        self.running.clear()
        if error is None:
            for command, status, printed in ended:
                assert status in ENDED, f"{command} ended with {status}\n" + "\n".join(printed)

    def home(self, machine: str) -> Path:
        home = self.folder / (machine or "here")
        home.mkdir(exist_ok=True)
        return home

    def follow(self, blocks: list[Block]) -> None:
        """Runs all blocks, and raises AssertionError with the line at the first that is not as the page says."""
        before: list[str] = []
        for block in blocks:
            if "not run" in block.said:
                continue
            if name := block.said.get("file"):
                path = self.home("") / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text)
            elif path_in_repository := block.said.get("repository"):
                assert block.text.strip() in (ROOT / path_in_repository).read_text(), f"line {block.line}: differs"
            elif "output" in block.said:
                if missing := differs(block.text.splitlines(), before):
                    raise AssertionError(f"line {block.line}: {missing} by the block before:\n" + "\n".join(before))
            elif block.language == "console" or (block.language in ("sh", "bash") and _PROMPT.match(block.text)):
                typed = commands(block)
                for k, (machine, command, expected) in enumerate(typed):
                    status = int(block.said.get("exit", 0)) if k == len(typed) - 1 else 0
                    before = self._type(block, machine, command, expected, status)
            elif block.language in ("sh", "bash"):
                before = self._type(block, "", f"set -e\n{block.text}set +e", None, int(block.said.get("exit", 0)))
            elif block.language == "python":
                (self.folder / "block.py").write_text(self._here(block.text))
                before = self._type(block, "", f"python {self.folder}/block.py", None, int(block.said.get("exit", 0)))

    def type(self, command: str, expected: list[str]) -> list[str]:
        """Types one command on the first machine, which must print what is expected; what it has printed."""
        return self._type(Block("console", command, 0), "", command, expected, 0)

    def _here(self, text: str) -> str:
        """The text with what this machine is for those of the page, and with free ports."""
        for name, value in self.names.items():
            text = re.sub(rf"\b{re.escape(name)}\b(?!:[^\d\s])", value, text)
        port = self._port("3277")
        hosts = "|".join(["localhost", "127.0.0.1", *map(re.escape, self.names.values())])
        text = re.sub(r"\bsplitpoint serve\b(?!.*(?:--port|-p) )", f"splitpoint serve --port {port}", text)
        text = re.sub(rf"(--cloud (?:\w+://)?(?:{hosts}))(?=\s|$)", rf"\1:{port}", text, flags=re.MULTILINE)
        text = re.sub(rf"(\"(?:{hosts}))\"", rf'\1:{port}"', text)
        return re.sub(rf"((?:--port |-p |(?:{hosts}):))(\d{{4,5}})\b", lambda m: m[1] + str(self._port(m[2])), text)

    def _port(self, named: str) -> int:
        """A free port that stands for the one that the page names."""
        if named not in self._ports and int(named) not in self._ports.values():
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self._ports[named] = free.getsockname()[1]
        return self._ports.get(named, int(named))

    def _type(self, block: Block, machine: str, command: str, expected: list[str] | None, status: int) -> list[str]:
        """Types a command; what it has printed."""
        if "output differs" in block.said or block.language != "console":
            expected = None
        words = " ".join(w for w in shlex.split(command, comments=True) if not w.startswith("-"))
        serves = any(f"splitpoint {verb}" in words for verb in SERVES) and "--help" not in command
        if serves or "^C" in (expected or ()):
            return self._start(block, machine, command, expected or [])
        done = self._bash(machine, command)
        try:
            printed = done.communicate(timeout=self.timeout_s)[0].splitlines()
        except subprocess.TimeoutExpired:
            os.killpg(done.pid, signal.SIGKILL)
            raise AssertionError(f"line {block.line}: after {self.timeout_s} s not done: {command}") from None
        said = "\n".join(["", f"$ {command}", *printed])
        assert done.returncode == status, f"line {block.line}: exit status {done.returncode} {said}"
        if expected is not None and (missing := differs(expected, printed)):
            raise AssertionError(f"line {block.line}: {missing}{said}")
        return printed

    def _start(self, block: Block, machine: str, command: str, expected: list[str]) -> list[str]:
        started = _Background(self._bash(machine, command.removesuffix("&")), command)
        self.running.append(started)
        first, _, after = "\n".join(expected).partition("^C")
        wanted = first.splitlines() or ["…", "…serving on…" if "serve" in command else "…listening…"]
        missing = started.wait_for(wanted, 120)
        said = "\n".join(["", f"$ {command}", *started.printed])
        assert not missing, f"line {block.line}: {missing}{said}"
        if "^C" in expected:
            self.running.remove(started)
            status = started.end(signal.SIGINT)
            said = "\n".join(["", f"$ {command}", *started.printed])
            assert status in ENDED, f"line {block.line}: exit status {status}{said}"
            missing = differs([*wanted, *after.splitlines()], started.printed)
            assert not missing, f"line {block.line}: {missing}{said}"
        return started.printed

    def _bash(self, machine: str, command: str) -> subprocess.Popen[str]:
        home = self.home(machine)
        state = self.folder / f"{home.name}.state"
        environment = {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), str(self.folder / "tools"), os.environ["PATH"]]),
            "HOME": str(home), "LANG": "C.UTF-8", "COLUMNS": "120", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1",
            "ROOT": str(ROOT), "PHOTOS": str(ROOT / "src" / "splitpoint" / "zoo" / "photos"),
        }  # fmt: skip
        remember = f"rc=$?; {{ export -p; echo \"cd '$PWD'\"; }} > {shlex.quote(str(state))}; exit $rc"
        script = f"[ ! -f {state} ] || . {state}\n{self._here(command)}\n{remember}"
        return subprocess.Popen(
            # Whoever runs the tests in a shell's background has SIGINT ignored, and all that it starts.
            ["env", "--default-signal=INT", "bash", "-c", script], cwd=home, env=environment, text=True,
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip


#: `scp` between the machines of a page, which are folders here.
_SCP = """
import pathlib, shutil, sys
def place(word):
    machine, colon, path = word.partition(":")
    if not colon:
        return [pathlib.Path(word)]
    home = pathlib.Path({folder!r}) / machine.lower()
    home.mkdir(exist_ok=True)
    return sorted(home.glob(path)) or [home / path]
*sources, target = [p for word in sys.argv[1:] if not word.startswith("-") for p in place(word)]
for source in sources:
    to = target / source.name if target.is_dir() else target
    (shutil.copytree if source.is_dir() else shutil.copy)(source, to)
"""


#: What comments would say in the README, which is kept to a page.
_README = {
    "# splitpoint\n": "<!-- page: SERVER=localhost -->\n"
    '<!-- given: mkdir -p photos ../edge && cp "$PHOTOS"/* photos && cp "$PHOTOS/cat.jpg" photo.jpg && '
    "cp -r photos ../edge -->\n\n",
    "```sh\ngit clone": "<!-- not run: make test is what runs this, and tests/cli/test_demo.py the demo -->\n",
    "```sh\npython3 -m venv": "<!-- not run: make minimal does it, with the wheel of make wheel -->\n",
}


def text_of(path: Path) -> str:
    """The page's text, with its comments."""
    text = path.read_text()
    for before, comment in _README.items() if path == ROOT / "README.md" else ():
        assert text.count(before) == 1, f"README.md has no longer one {before!r}"
        text = text.replace(before, comment + before)
    return text


def follow(path: Path, folder: Path) -> None:
    """Follows the page at `path` in an empty folder."""
    page, blocks = read_page(text_of(path))
    names = {name: value for name, value in page.items() if value}
    with Reader(folder, names) as reader:
        reader.follow(blocks)


def is_followed(path: Path) -> bool:
    """Whether the page's own comment says so."""
    return text_of(path).lstrip().startswith("<!-- page")


def unexplained(path: Path) -> list[str]:
    """Blocks of which nobody can say whether they are run, by their lines."""
    _, blocks = read_page(text_of(path))
    return [f"{path.name}:{b.line}: a code block without a language" for b in blocks if not b.language and not b.said]


def parameters(paths: list[Path]) -> list[object]:
    """A parameter a page, the long ones marked."""
    marks = {p: [pytest.mark.docs] if "long" in read_page(text_of(p))[0] else [] for p in paths}
    return [pytest.param(p, id=str(p.relative_to(ROOT)), marks=m) for p, m in marks.items()]
