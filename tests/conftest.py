"""What every test stands on.

splitpoint comes before anything a test imports: it turns off the telemetry of what it builds on. And the environment
counts as activated, so that what is printed to be typed next is the same wherever the tests run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import splitpoint  # noqa: F401
from splitpoint import callbacks

#: Fixtures that several rooms ask for by name.
pytest_plugins = ["serving", "host_names", "profile_asking", "token_files"]

# The same examples every time, however slow the machine is. (ONNX Runtime 1.32 aborts on about one of a thousand of the
# random graphs, by an assertion in its own optimiser: a test must not end by that luck.)
settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")

os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


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
