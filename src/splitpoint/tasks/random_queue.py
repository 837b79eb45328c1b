"""A queue drawn at random: what a mix of models asks for."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from splitpoint.errors import UsageError
from splitpoint.tasks.task import Task

MOST_TASKS = 100_000


def mix(models: Sequence[str], count: int, seed: int = 0) -> list[Task]:
    """`count` tasks, all there at once, each of a model drawn from `models`: the same ones for the same seed.

    >>> [t.name for t in mix(["alexnet", "lenet"], 4, seed=1)]
    ['alexnet-1', 'lenet-1', 'alexnet-2', 'lenet-2']

    UsageError for no models and for a count that makes no sense.
    """
    if not models or not all(models):
        raise UsageError("a mix is a list of models with commas between: --mix alexnet,lenet")
    if not 1 <= count <= MOST_TASKS:
        raise UsageError(f"a mix has from 1 to {MOST_TASKS} tasks, not {count}")
    # A string as seed is hashed by its own rule, the same in every version of Python.
    random = Random(f"mix {seed}")
    drawn = [models[int(random.random() * len(models))] for _ in range(count)]
    met = dict.fromkeys(models, 0)
    tasks = []
    for model in drawn:
        met[model] += 1
        tasks.append(Task(name=f"{model}-{met[model]}", model=model))
    return tasks
