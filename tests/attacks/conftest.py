"""The server that is attacked; an honest client of it is served afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from attacking import Target, under_attack


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    with under_attack(tmp_path) as made:
        yield made
