"""splitpoint demo: what it shows, not how fast that is."""

from __future__ import annotations

import re
import subprocess

from commands import PYTHON


def test_demo_shows_labels_the_proof_and_two_emulated_cases() -> None:
    done = subprocess.run([*PYTHON, "demo"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    here, *cases = re.split(r"\nEmulated: an edge ", done.stdout)
    assert "espresso" in here
    assert "The uncut model gives" in here
    assert len(cases) == 2
    for case in cases:
        assert case.count("█") >= 4, "every option has a bar"
        assert len(re.findall(r"^ → ", case, re.MULTILINE)) == 1
        assert "all on the server, JPEG q98" in case
        assert re.search("^Measured: (the plan|planned)", case, re.MULTILINE)
    longest = max(done.stdout.partition("\nNext, in ")[0].splitlines(), key=len)
    assert len(longest) <= 100, longest
