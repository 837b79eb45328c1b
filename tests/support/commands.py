"""The command line, called as a user's shell would, in this process or in one of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from splitpoint.cli import main
from splitpoint.cli.verbs import group

PYTHON = [sys.executable, "-u", "-m", "splitpoint"]


def commands(command: click.Command = group, name: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command that is none of commands, by its words: ``lab run``."""
    if not isinstance(command, click.Group):
        yield name, command
        return
    context = click.Context(command)
    for word in command.list_commands(context):
        inner = command.get_command(context, word)
        assert inner is not None
        yield from commands(inner, f"{name} {word}".strip())


def ok(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """What a command prints that must succeed."""
    status = main([str(a) for a in args])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out


def fails(capsys: pytest.CaptureFixture[str], status: int, *args: object) -> str:
    """The message of a command that must fail with this status: one sentence, no traceback."""
    assert main([str(a) for a in args]) == status
    message = capsys.readouterr().err
    assert any(line.startswith("splitpoint: ") for line in message.splitlines())
    assert "Traceback" not in message
    return message


class Serving:
    """A `splitpoint serve` process."""

    def __init__(self, *models: str) -> None:
        self.process = subprocess.Popen(
            [*PYTHON, "serve", *models, "--port", "0", "--threads", "1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        self.said: list[str] = []
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith("serving on "):
                self.address = line.split()[2]
                return
        self.process.communicate(timeout=30)
        raise AssertionError("".join(self.said))

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=30)
        self.said.append(out)
        return self.process.returncode
