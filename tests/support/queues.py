"""Queues in virtual time: jobs drawn at random, and what a timeline comes to. And the models of a real queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

import nets
from splitpoint.link import Link
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.tasks.schedule import QueuedJob, Slot, StageTimes

#: As fast as this, a slow device sends everything.
FAST = Link(1e5, 1e5, 0.0)


def two_models(folder: Path) -> Mapping[str, Model]:
    nets.saved(nets.residual(), folder / "residual.onnx")
    return {"lenet5": load("zoo:lenet5"), "residual": load(folder / "residual.onnx")}


def whole(model: Model, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = nets.ENGINE.compile(model.whole())
    try:
        return session.run(inputs)
    finally:
        session.close()


class QueueScore(NamedTuple):
    """What a queue comes to; `joint` minimises it in this order: missed deadlines, the last answer, the mean wait."""

    missed: int
    makespan: float
    mean: float


def score(jobs: Sequence[QueuedJob], slots: Sequence[Slot]) -> QueueScore:
    """`slots` measured: the makespan from the start on, the mean from each arrival on."""
    missed = sum(s.ended > jobs[s.turn.job].due for s in slots)
    spent = [s.ended - jobs[s.turn.job].release for s in slots]
    return QueueScore(missed, max((s.ended for s in slots), default=0.0), sum(spent) / max(1, len(spent)))


def random_jobs(random: Random, count: int, ways: int = 3, share: float = 1.0, **more: float) -> list[QueuedJob]:
    kinds = []
    for _ in range(3):
        here = random.uniform(5, 100)
        split = [
            batched(
                StageTimes(
                    random.uniform(0, here), random.uniform(1, 80), random.uniform(1, 40), random.uniform(0, 3), 4.0
                ),
                share,
            )
            for _ in range(random.randint(0, ways - 1))
        ]
        kinds.append((StageTimes(here), *split))
    return [individual(random.choice(kinds), **more) for _ in range(count)]


def individual(ways: tuple[StageTimes, ...], **more: float) -> QueuedJob:
    return QueuedJob(tuple(sorted(ways, key=lambda way: way.total)), **more)  # type: ignore[arg-type]


def batched(one: StageTimes, share: float) -> StageTimes:
    """`one`, of which the server can run several as one: each further one takes that share. 1: alone."""
    return one._replace(more=share * one.server, tail=str(one)) if share < 1 else one


remote = st.builds(
    StageTimes, *(st.floats(0, 100) for _ in range(4)), trip=st.floats(0, 20), remote=st.just(True), more=st.just(0.0),
    tail=st.just(""),
)  # fmt: skip


stages = st.builds(batched, remote, st.sampled_from([0.0, 0.3, 1.0]))


ways = st.tuples(st.floats(0.1, 100).map(lambda ms: StageTimes(ms)), st.lists(stages, max_size=3)).map(
    lambda found: (found[0], *found[1])
)


jobs_of = st.lists(
    st.builds(
        lambda w, due, priority: individual(w, due=due, priority=priority),
        ways, st.sampled_from([float("inf"), 50.0, 150.0]), st.sampled_from([0, 0, 1]),
    ),
    min_size=1, max_size=9,
)  # fmt: skip
