"""splitpoint completion: the scripts are there, and what they ask is answered."""

from __future__ import annotations

import os
import subprocess

import pytest
from commands import PYTHON, fails, ok


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell_asks_by_the_variable_that_is_heard(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ok(capsys, "completion", shell)
    assert f"_SPLITPOINT_COMPLETE={shell}_complete" in text
    assert "splitpoint" in text


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "bash" in fails(capsys, 2, "completion", "tcsh")


@pytest.mark.parametrize(
    ("typed", "word", "expected"),
    [
        ("splitpoint calib", "calib", {"calibrate-codecs", "calibrate-kernels"}),
        ("splitpoint plan --max-e", "--max-e", {"--max-edge-memory"}),
        ("splitpoint plan --objective through", "through", {"throughput"}),
    ],
)
def test_verbs_options_and_values_are_completed(typed: str, word: str, expected: set[str]) -> None:
    asked = {"_SPLITPOINT_COMPLETE": "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    done = subprocess.run(PYTHON, env=os.environ | asked, capture_output=True, text=True, check=True, timeout=120)
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == expected, word
