"""Several models on one server: what is planned for, what is ready, and whose inputs are whose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from splitpoint.engines import open_engine
from splitpoint.errors import InputError, UsageError
from splitpoint.profile.profiles import Profile
from splitpoint.tasks.fleet import Fleet, inputs_of
from splitpoint.tasks.task import Task

LENET = ("lenet5", "")


def test_a_model_is_reached_once_and_made_ready_when_asked(fleet: Fleet) -> None:
    edge = fleet.edges[LENET]
    assert fleet.add(LENET, "lenet5") is edge
    assert fleet.link is not None
    option = fleet.planners[LENET].local(fleet.link)
    assert not fleet.is_ready(LENET, option)
    fleet.prepare(LENET, option)
    assert fleet.is_ready(LENET, option)
    assert fleet.compile_s[LENET] > 0
    fleet.gains(LENET, option, 0.5)
    fleet.gains(LENET, option, 1.0)  # gains nothing
    assert fleet.shares[LENET] == ((option, 0.5),)


def test_whether_cores_are_shared_is_measured_once_and_kept(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured: list[float] = []

    def slowdown(device: Callable[[], float], server: Callable[[], float]) -> float:
        measured.extend((device(), server()))
        return 1.8

    monkeypatch.setattr("splitpoint.tasks.fleet.slowdown", slowdown)
    fleet.survey(budget_s=0.3)
    assert fleet.shared == 1.8
    assert len(measured) == 2
    assert all(measured), "both have computed"
    link = fleet.link
    assert link is not None
    option = fleet.planners[LENET].local(link)
    fleet.prepare(LENET, option)
    fleet.keep()
    fleet.shared = 1.0
    fleet.compile_s[LENET] = 1e3
    fleet.survey(budget_s=0.3)
    assert fleet.shared == 1.8
    assert len(measured) == 2, "as the last queue has measured it"
    assert fleet.expected_s(LENET, option) < 1e3
    fleet.survey(budget_s=0.3, fresh=True)
    assert len(measured) == 4


def test_a_profile_that_was_wrong_is_corrected(fleet: Fleet, profiles: Mapping[str, Profile]) -> None:
    told = profiles["lenet5"].whole.median
    fleet.correct(LENET, 2.0, 3.0)
    device, server = fleet.planners[LENET].hosts
    assert device.profile.whole.median == pytest.approx(2 * told)
    assert server.profile.whole.median == pytest.approx(3 * told)


def test_each_task_has_the_input_it_names_or_one_that_fits(fleet: Fleet, tmp_path: Path) -> None:
    tasks = [Task(name=f"{model}-{k}", model=model) for model in ("lenet5", "residual") for k in range(5)]
    inputs = inputs_of(fleet, tasks)
    assert sorted(inputs) == sorted(t.name for t in tasks)
    for task in tasks:
        spec = fleet.edges[task.source].model.inputs[0]
        assert inputs[task.name][spec.name].dtype == np.dtype(spec.dtype)
    assert inputs["residual-0"] is inputs["residual-4"], "four different ones in turn"
    with pytest.raises(InputError):
        inputs_of(fleet, [Task(name="a", model="lenet5", input=str(tmp_path / "gone.png"))])


def test_a_queue_without_tasks_has_nothing_to_survey() -> None:
    with (
        Fleet("127.0.0.1:1", engine=open_engine(threads=1)) as fleet,
        pytest.raises(UsageError, match="there are no tasks"),
    ):
        fleet.survey(budget_s=1.0)
