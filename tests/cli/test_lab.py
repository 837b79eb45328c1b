"""splitpoint lab: mistakes, and what it lists."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from splitpoint.cli import main
from splitpoint.lab import scenario


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ("lab run 5g", 2, "no scenario is called 5g; did you mean"),
        ("lab run nothing", 2, "no scenario is called nothing (there are: cat1"),
        ("lab run gone.toml", 4, "there is no file gone.toml"),
        ("lab slow 1 -- true", 2, "above 1"),
        ("lab slow nan -- true", 2, "above 1"),
        ("lab slow 8 -- true", 2, "true is no command of splitpoint"),
        (
            f"lab slow 8 --method limit -- {sys.executable} -m splitpoint profile zoo:lenet5",
            2,
            "a profile would be wrong",
        ),
        ("lab slow 2 --method stop -- nonsuch", 2, "there is no command nonsuch"),
        ("lab slow 2 --method stop -- sh -c exit\\ 7", 7, "emulated: 2x slower"),
        ("lab link --to 127.0.0.1:1 --link 4g", 6, "nothing answers at 127.0.0.1:1"),
        ("lab link --to 127.0.0.1:1 --link 5g", 2, "no link is called 5g"),
        ("lab link --to 127.0.0.1:99999 --link 4g", 2, "99999 is not a port"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: str, status: int, said: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    words = [w.replace("\\", " ") for w in arguments.replace("\\ ", "\\").split()]
    assert main(words) == status
    _, err = capfd.readouterr()
    assert said in err
    assert "Traceback" not in err


def test_the_list_names_what_ships(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "list"]) == 0
    out = capfd.readouterr().out
    assert all(f" {name} " in out for name in scenario.names())


def test_the_command_says_what_it_found(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["lab", "faults", "zoo:lenet5", "--count", "60", "--rate", "100", "--kind", "cut", "--at", "pool1"]
    assert main(words) == 0
    out, err = capfd.readouterr()
    assert "60 answers to 60 requests through" in out
    assert "0 lost, 0 doubled, 0 wrong, 0 out of order" in out
    assert "Traceback" not in err
    assert main(["lab", "faults", "--kind", "earthquake"]) == 2
    assert main(["lab", "faults", "--rate", "0"]) == 2
    assert main(["lab", "faults", "--at", "nowhere"]) == 2
    assert "Traceback" not in capfd.readouterr().err
