"""A network to profile."""

from __future__ import annotations

import pytest

from splitpoint.models import load as open_model
from splitpoint.models.model import Model


@pytest.fixture(scope="module")
def lenet() -> Model:
    return open_model("zoo:lenet5")
