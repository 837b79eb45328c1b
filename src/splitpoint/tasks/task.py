"""Requests that wait together, and what became of them: values alone. A queue of them drawn at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from random import Random

import msgspec
import numpy as np

from splitpoint.errors import UsageError
from splitpoint.link import Link
from splitpoint.models.names import with_weights

#: A day: what is later is a slip of the pen.
MOST_S = 86_400.0
MOST_PRIORITY = 1_000_000
MOST_TASKS = 100_000


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a queue. `model` is what the server calls it, or a MODEL that is here; `weights` as --weights
    takes them. `input` is a file; without one, an input of the right kind is made up.

    `arrival_s` counts from the start. The answer is due `deadline_s` after the arrival (0: whenever it comes).
    Those with a higher `priority` go first, whatever the policy.
    """

    name: str
    model: str
    weights: str = ""
    input: str = ""
    priority: int = 0
    arrival_s: float = 0.0
    deadline_s: float = 0.0

    def __post_init__(self) -> None:
        for field, seconds in (("arrival_s", self.arrival_s), ("deadline_s", self.deadline_s)):
            if not (isfinite(seconds) and 0 <= seconds <= MOST_S):
                raise UsageError(f"{self.name}: {field} must be from 0 to a day in seconds, not {seconds}")
        if abs(self.priority) > MOST_PRIORITY:
            raise UsageError(f"{self.name}: a priority is within ±{MOST_PRIORITY}, not {self.priority}")

    @property
    def source(self) -> tuple[str, str]:
        """What tells its model from those of other tasks: (model, weights)."""
        return self.model, self.weights


def mix(models: Sequence[str], count: int, seed: int = 0) -> list[Task]:
    """`count` tasks, all there at once, each of a model drawn from `models`: the same ones for the same seed. A model
    may name its weights: ``alexnet@random:0``.

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
    met, tasks = dict.fromkeys(models, 0), []
    called = [with_weights(text)[0] for text in met]
    for text in drawn:
        met[text] += 1
        model, weights = with_weights(text)
        name = model if called.count(model) == 1 else text
        tasks.append(Task(name=f"{name}-{met[text]}", model=model, weights=weights or ""))
    return tasks


class TaskPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is predicted for a task: how it is served, and when (ms after the start)."""

    task: Task
    option: str
    up_mbps: float
    edge_ms: float
    transfer_ms: float
    server_ms: float
    waiting_ms: float
    started_ms: float
    ended_ms: float

    @property
    def total_ms(self) -> float:
        """From its arrival to its answer."""
        return self.ended_ms - self.task.arrival_s * 1e3

    @property
    def met(self) -> bool | None:
        """Whether its deadline is kept; None if it has none."""
        return self.total_ms <= self.task.deadline_s * 1e3 if self.task.deadline_s else None


class TaskResult(TaskPlan, frozen=True, kw_only=True):
    """What was measured of it, and what had been predicted when it was planned for the last time.

    `edge_ms` computing and encoding on the device, `transfer_ms` on the network both ways, `server_ms` decoding,
    computing and answering there; `waiting_ms` is the rest: for the device, behind others on the link, in the server's
    queue. docs/stages.md has the exact meanings.
    """

    predicted_ms: float
    answer: str = ""
    fallback: str = ""
    """Why it was finished on the device, if that was not the plan."""
    numbers: Mapping[str, float] = {}
    """By the names of `splitpoint.trace.OTHERS`."""


class Usage(msgspec.Struct, frozen=True):
    """The share of the time from the first arrival to the last answer in which each was busy: 0…1."""

    device: float
    link: float
    server: float


class QueueSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A queue worked off by one policy. `makespan_ms` is from the first arrival to the last answer.

    `bound_ms`: no choice of cuts and no order is predicted to need less (0 where the policy does not say).
    """

    policy: str
    tasks: int
    link: Link
    makespan_ms: float
    mean_ms: float
    p95_ms: float
    usage: Usage
    met: int
    missed: int
    predicted_ms: float
    """The makespan as it was predicted before the start."""
    bound_ms: float = 0.0
    planning_ms: float = 0.0
    compile_s: float = 0.0
    """Planning, compiling and running heads and tails before the start."""
    replans: int = 0
    local: int = 0
    """Answers that were finished on the device because the server was late or gone."""
    shared: float = 1.0
    """How many times as long device and server take while both compute, measured before the start."""
    slower: float = 1.0
    """How many times as long as the profiles say requests computed; 1 where that is within noise, or explained by
    `shared`."""


def summarise(
    rows: list[TaskPlan] | list[TaskResult], policy: str, link: Link, usage: Usage, predicted_ms: float,
    *, bound_ms: float, planning_ms: float,
) -> QueueSummary:  # fmt: skip
    """What a queue came to, by its rows and what they do not tell; of a plan that was not run."""
    first = min(r.task.arrival_s for r in rows) * 1e3
    totals = [r.total_ms for r in rows]
    return QueueSummary(
        policy=policy,
        tasks=len(rows),
        link=link,
        makespan_ms=max(r.ended_ms for r in rows) - first,
        mean_ms=sum(totals) / len(totals),
        p95_ms=float(np.percentile(totals, 95)),
        usage=usage,
        met=sum(r.met is True for r in rows),
        missed=sum(r.met is False for r in rows),
        predicted_ms=predicted_ms,
        bound_ms=bound_ms,
        planning_ms=planning_ms,
    )
