"""splitpoint demo."""

from __future__ import annotations

import subprocess

from commands import PYTHON


def test_demo_shows_labels_and_the_proof() -> None:
    done = subprocess.run([*PYTHON, "demo"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "espresso" in done.stdout
    assert "The uncut model gives" in done.stdout
