"""A server's log: lines in their order, from any thread, and how many were lost where nobody reads."""

from __future__ import annotations

import threading

import pytest

from splitpoint.cli import log
from splitpoint.cli.log import Log


def test_all_lines_are_written_before_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with Log() as lines:
        for k in range(100):
            lines.say(f"line {k}", err=k % 2 == 1)
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [f"line {k}" for k in range(0, 100, 2)]
    assert printed.err.splitlines() == [f"line {k}" for k in range(1, 100, 2)]


def test_the_oldest_lines_are_lost_where_nobody_reads_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    reads, begun, written = threading.Event(), threading.Event(), list[str]()

    def echo(text: str, err: bool) -> None:
        begun.set()
        reads.wait()
        written.append(text)

    monkeypatch.setattr(log, "_HELD", 3)
    monkeypatch.setattr(log.click, "echo", echo)
    with Log() as lines:
        lines.say("first")
        assert begun.wait(30)
        for k in range(5):
            lines.say(f"line {k}")
        reads.set()
    assert written == ["first", "2 lines of this log were lost: it was not read", "line 2", "line 3", "line 4"]
