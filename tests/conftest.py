"""What holds for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from splitpoint import callbacks


@pytest.fixture
def reported() -> set[tuple[str, type[BaseException]]]:
    """The callbacks that raised, with what: a test that asks for this expects some."""
    return callbacks._reported


@pytest.fixture(autouse=True)
def _nothing_told_raises(request: pytest.FixtureRequest) -> Iterator[None]:
    """A mistake in a watcher or a callback costs no request, so no answer tells of it: the test must."""
    callbacks._reported.clear()
    yield
    assert "reported" in request.fixturenames or not callbacks._reported
