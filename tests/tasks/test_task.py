"""What a task may say, and queues that are drawn."""

from __future__ import annotations

import pytest

from splitpoint.errors import UsageError
from splitpoint.tasks.task import Task, mix


@pytest.mark.parametrize("field", ["arrival_s", "deadline_s"])
@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 1e9])
def test_a_task_has_times_that_can_be(field: str, seconds: float) -> None:
    with pytest.raises(UsageError):
        Task(name="a", model="b", **{field: seconds})


def test_a_mix_is_the_same_for_the_same_seed() -> None:
    models = ["alexnet", "vgg16_bn", "lenet", "mobilenet_v2"]
    assert mix(models, 40, 1) == mix(models, 40, 1)
    assert [t.model for t in mix(models, 40, 1)] != [t.model for t in mix(models, 40, 2)]
    assert len({t.name for t in mix(models, 40, 1)}) == 40
    assert {t.model for t in mix(models, 40, 1)} == set(models)
    for bad in (lambda: mix([""], 1), lambda: mix(models, 0), lambda: mix([], 3)):
        with pytest.raises(UsageError):
            bad()


def test_models_of_a_mix_may_name_their_weights() -> None:
    tasks = mix(["alexnet@random:0", "lenet"], 4, seed=1)
    assert [(t.name, t.model, t.weights) for t in tasks] == [
        ("alexnet-1", "alexnet", "random:0"), ("lenet-1", "lenet", ""), ("alexnet-2", "alexnet", "random:0"),
        ("lenet-2", "lenet", ""),
    ]  # fmt: skip
    names = {t.name for t in mix(["lenet@random:0", "lenet@random:1"], 40)}
    assert len(names) == 40
