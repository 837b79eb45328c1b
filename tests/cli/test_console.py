"""Tables and progress on terminals of any width."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

import pytest

from splitpoint.cli.console import out as console_out
from splitpoint.cli.console import steps, table
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


def test_a_narrow_table_keeps_its_numbers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    console = console_out()
    console.width = 5
    columns = fields_of(("layer", "bytes", "spare"), left=("layer",), keep=("layer", "bytes"))
    table(columns, [["a layer", "123456789", "x"], ["\x1b[31m[/b]", "1", "y"]], console=console)
    text = capsys.readouterr().out
    assert "123456789" in text
    assert "spare" not in text
    assert "[31m[/b]" in text
    assert "\x1b" not in text


def test_where_no_bar_can_move_a_line_every_ten_seconds_says_how_far(capsys: pytest.CaptureFixture[str]) -> None:
    now_s = [0.0]
    with steps("calibrating", clock=lambda: now_s[0]) as on_progress:
        for done in range(31):
            now_s[0] = float(done)
            on_progress(done, 40)
    assert capsys.readouterr().err.splitlines() == [
        "calibrating: 10 of 40, 10 s, about 30 s left",
        "calibrating: 20 of 40, 20 s, about 20 s left",
        "calibrating: 30 of 40, 30 s, about 10 s left",
    ]


def test_what_begins_anew_is_not_told_as_slower(capsys: pytest.CaptureFixture[str]) -> None:
    now_s = [0.0]
    with steps("measuring", clock=lambda: now_s[0]) as on_progress:
        for now, done in ((9.0, 28), (11.0, 1), (21.0, 11)):
            now_s[0] = now
            on_progress(done, 31)
    assert capsys.readouterr().err.splitlines()[-1] == "measuring: 11 of 31, 10 s, about 18 s left"
