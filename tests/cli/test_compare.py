"""splitpoint compare."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import nothing_leaks

from splitpoint.cli import main
from splitpoint.engines import open_engine
from splitpoint.models import load
from splitpoint.models.zoo import digits
from splitpoint.runtime.server.server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    with nothing_leaks(), Server([load("zoo:lenet5")], engine=open_engine(threads=1), port=0) as made:
        yield made


def test_compare_prints_predicted_beside_measured(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "compared.json"
    words = ["compare", "lenet", "--cloud", server.address, "--cache", str(tmp_path), "--threads", "1"]
    assert main([*words, "--budget", "500ms", "--repeat", "2", "--images", str(digits()[0]), "-o", str(out)]) == 0
    said = capsys.readouterr()
    assert "predicted" in said.out
    assert "measured" in said.out
    kept = json.loads(out.read_text())
    assert len(kept["compared"]) == len({json.dumps(c["option"]) for c in kept["compared"]}) >= 3
    assert kept["plan"]["model"] == "lenet5"
    assert main([*words, "--images", str(tmp_path / "none.png")]) == 4
