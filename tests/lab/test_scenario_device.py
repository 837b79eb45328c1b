"""The device of a scenario: its plan and its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from splitpoint.errors import InputError, UsageError
from splitpoint.lab import scenario
from splitpoint.lab import scenario_device as worker
from splitpoint.models import load
from splitpoint.tensors import Array


def test_a_plan_must_be_there_and_be_the_models(tmp_path: Path) -> None:
    it = scenario.Scenario(model="zoo:lenet5", plan="gone.json", link="lan", folder=str(tmp_path))
    with pytest.raises(InputError, match=r"gone\.json"):
        worker.cuts_of(it, load("zoo:lenet5"))


def test_inputs_of_a_scenario(tmp_path: Path) -> None:
    model = load("zoo:lenet5")

    def inputs(which: str | tuple[str, ...], seed: int = 0) -> list[Mapping[str, Array]]:
        it = scenario.Scenario(
            model="zoo:lenet5", at=("input",), link="lan", inputs=which, seed=seed, requests=3, folder=str(tmp_path)
        )
        return [one for _, one in worker.inputs_of(it, model)]

    drawn, again, other = inputs("synthetic"), inputs("synthetic"), inputs("synthetic", 1)
    name = model.inputs[0].name
    assert [np.array_equal(a[name], b[name]) for a, b in zip(drawn, again, strict=True)] == [True] * 3
    assert not np.array_equal(drawn[0][name], other[0][name])
    np.save(tmp_path / "one.npy", drawn[1][name])
    assert np.array_equal(inputs("one.npy")[0][name], drawn[1][name])
    with pytest.raises(UsageError, match="it is empty"):
        inputs(())
