"""What an edge may be told beside the cut."""

from __future__ import annotations

import pytest

from splitpoint.errors import UsageError
from splitpoint.runtime.client.edge_settings import AutoPlan, ModelPolicy


def test_a_pinned_model_cannot_be_followed() -> None:
    assert ModelPolicy(pinned="ab").pinned == "ab"
    assert ModelPolicy(follow=True).follow
    with pytest.raises(UsageError, match="pinned by its fingerprint cannot be followed"):
        ModelPolicy(pinned="ab", follow=True)


def test_they_are_frozen_as_they_are_defaults() -> None:
    for settings, name in ((ModelPolicy(), "follow"), (AutoPlan(), "budget_s")):
        with pytest.raises(AttributeError):
            setattr(settings, name, 1)
