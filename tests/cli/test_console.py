"""Tables and progress on terminals of any width."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from io import StringIO

import pytest
from rich.progress import Progress

from splitpoint.cli import console
from splitpoint.cli.console import out as console_out
from splitpoint.cli.console import table
from splitpoint.report.table import fields_of

PYTHON = [sys.executable, "-m", "splitpoint"]


def on_terminal(words: Sequence[str], **env: str) -> tuple[int, str]:
    """Exit status, and what a terminal of 80 columns is sent."""
    there, here = pty.openpty()
    fcntl.ioctl(here, 0x5414, b"\x18\x00\x50\x00\x00\x00\x00\x00")  # TIOCSWINSZ: 24 rows, 80 columns
    process = subprocess.Popen([*PYTHON, *words], stdin=here, stdout=here, stderr=here, env={**os.environ, **env})
    os.close(here)
    sent = b""
    with suppress(OSError):  # EIO: it has ended
        while data := os.read(there, 65536):
            sent += data
    os.close(there)
    return process.wait(30), sent.decode()


@pytest.mark.parametrize("columns", ["0", "abc", "-5", "", "²", "1", "30", "99999999999"])
def test_any_number_of_columns(columns: str) -> None:
    status, text = on_terminal(["inspect", "zoo:lenet5"], COLUMNS=columns, NO_COLOR="1", TERM="xterm")
    assert status == 0
    assert "Traceback" not in text
    row = next(line for line in text.splitlines() if "pool1" in line)
    assert "1×6×14×14" in row, "numbers are not cut off"
    if columns in ("0", "abc", "-5", "", "²"):
        assert max(len(re.sub("\x1b\\[[0-9]*m", "", line)) for line in text.splitlines()) <= 80


@pytest.mark.parametrize("term", ["dumb", "", "unknown"])
def test_a_terminal_that_cannot_move_gets_plain_lines(term: str) -> None:
    status, text = on_terminal(["verify", "zoo:lenet5"], TERM=term)
    assert status == 0
    assert "\x1b" not in text


def test_a_narrow_table_keeps_its_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    narrow = console_out()
    narrow.width = 5
    columns = fields_of(("layer", "bytes", "spare"), left=("layer",), keep=("layer", "bytes"))
    table(columns, [["a layer", "123456789", "x"], ["\x1b[31m[/b]", "1", "y"]], console=narrow)
    text = capsys.readouterr().out
    assert "123456789" in text
    assert "spare" not in text
    assert "[31m[/b]" in text
    assert "\x1b" not in text


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines as often as can be, so that no test waits for seconds."""
    monkeypatch.setattr(console, "_EVERY_S", 0.001)
    monkeypatch.setattr(console, "_SOON_S", 0.001)


@pytest.mark.usefixtures("soon")
def test_where_nothing_can_move_lines_say_how_far(capsys: pytest.CaptureFixture[str]) -> None:
    second, said = threading.Event(), iter(range(10**9))

    def text() -> str:
        number = next(said)
        if number == 1:  # by now the first one is written
            second.set()
        return f"line {number}"

    with console.telling(text):
        assert second.wait(60)
    assert capsys.readouterr().err.startswith("line 0\n")


@pytest.mark.usefixtures("soon")
def test_the_lines_come_also_while_standard_error_is_taken_away(capsys: pytest.CaptureFixture[str]) -> None:
    """As PyTorch's exporter does."""
    second, said = threading.Event(), iter(range(10**9))

    def text() -> str:
        if next(said):
            second.set()
            return ""
        return "first"

    with console.telling(text), redirect_stderr(StringIO()):
        assert second.wait(60)
    assert capsys.readouterr().err == "first\n"


def test_quick_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with console.waiting("exporting"), console.steps("calibrating") as on_progress:
        on_progress(1, 2)
    with console.progress() as bar:
        bar.add_task("sweeping", total=3)
    assert capsys.readouterr().err == ""


def test_each_kind_of_bar_has_its_line() -> None:
    with console.progress() as bar:
        task = bar.add_task("sweeping", total=40)
        bar.update(task, completed=10)
        bar.tasks[0].start_time = bar.get_time() - 10
        assert lines_of(bar) == "sweeping: 10 of 40, 10 s, about 30 s left"
        bar.update(task, completed=40)
        assert lines_of(bar) == "", "what is done needs no words"
    with console.progress() as bar:
        bar.add_task("sweeping", total=40, completed=30)
        bar.tasks[0].start_time = bar.get_time() - 10
        assert lines_of(bar) == "sweeping: 30 of 40, 10 s", "an earlier run's took no time of this one"
        bar.advance(bar.tasks[0].id, 5)
        assert lines_of(bar) == "sweeping: 35 of 40, 10 s, about 10 s left"
    with console.countdown() as bar:
        bar.add_task("measuring lenet5", total=60.0, left="50 s left")
        assert lines_of(bar) == "measuring lenet5: 0 s, 50 s left"
    with console.progress() as bar:
        bar.add_task("measuring", total=None)
        assert lines_of(bar) == "measuring: 0 s"


def lines_of(bar: Progress) -> str:
    assert isinstance(bar, console._Bar)
    return bar._told()


def test_a_download_says_how_far_it_is_and_begins_anew_with_the_next(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now_s = [0.0]
    monkeypatch.setattr(console, "monotonic", lambda: now_s[0])
    on_progress = console.fetching("fetching weights")
    for at_s, done in ((0.0, 0), (5.0, 5), (10.0, 10), (12.0, 12), (20.0, 40), (21.0, 1), (31.0, 2)):
        now_s[0] = at_s
        on_progress(done * 10**6, 40 * 10**6)
    assert capsys.readouterr().err.splitlines() == [
        "fetching weights: 10.0 MB of 40.0 MB, 10 s, about 30 s left",
        "fetching weights: 2.0 MB of 40.0 MB, 10 s, about 190 s left",
    ]
