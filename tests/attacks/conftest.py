"""The server that is attacked; an honest client of it is served afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from attacking import Target, under_attack


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    with under_attack(tmp_path) as made:
        yield made
