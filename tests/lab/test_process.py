"""A process that says lines: what is heard of it, and how it ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

from splitpoint.errors import ServerError, UsageError
from splitpoint.lab.process import PIPES, Process


def started(code: str) -> Process:
    return Process(subprocess.Popen([sys.executable, "-u", "-c", code], **PIPES), "talker")


def test_lines_are_heard_in_order_and_it_goes_on_when_told_to() -> None:
    talker = started("print('a word'); print('ready 3'); print(input() + ' said'); input()")
    try:
        assert talker.expect("ready") == "ready 3"
        talker.say()
        assert talker.line(60.0) == "go said"
        assert talker.said() == []
    finally:
        talker.close()
    assert talker.process.returncode is not None


@pytest.mark.parametrize(("status", "kind"), [(2, UsageError), (1, ServerError)])
def test_what_it_ended_with_is_raised_as_what_it_was(status: int, kind: type[Exception]) -> None:
    talker = started(f"import sys; print('splitpoint: no such thing', file=sys.stderr); sys.exit({status})")
    with pytest.raises(kind, match=r"^the talker ended: no such thing$"):
        talker.line(60.0)
    assert talker.complaints() == ["splitpoint: no such thing"]
    talker.say()  # nobody is there, and that is no error here
    talker.close()


def test_one_that_says_nothing_is_not_waited_for_longer_than_asked() -> None:
    talker = started("input()")
    with pytest.raises(ServerError, match="said nothing for 0 s"):
        talker.line(0.01)
    talker.close()
