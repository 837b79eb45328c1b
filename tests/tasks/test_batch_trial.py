"""Whether requests should run as one batch, found out on a real server before the start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from time import sleep

import numpy as np
import pytest
from queues import FAST, whole

from splitpoint.engines import Session, open_engine
from splitpoint.lab.slow_device import Stretched
from splitpoint.models.model import Model, Segment
from splitpoint.profile.profiles import Profile
from splitpoint.runtime.result import Result
from splitpoint.runtime.server.server import Server
from splitpoint.segments import samples_for
from splitpoint.survey import Survey
from splitpoint.tasks.fleet import Fleet
from splitpoint.tasks.queue_run import QueueRun, predict
from splitpoint.tasks.task import Task


def test_what_gains_by_running_together_is_known_before_the_start(
    models: Mapping[str, Model], profiles: Mapping[str, Profile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitpoint.tasks.batch_trial.BUDGET_S", 0.4)
    engine = open_engine(threads=1)
    compiled, told, answers = engine.compile, list[str](), dict[str, Result]()

    def compile_slow(segment: Segment) -> Session:
        """A run takes 50 ms more, however many requests it has."""
        session = compiled(segment)
        run = session.run
        session.run = lambda given: (sleep(0.05), run(given))[1]  # type: ignore[method-assign]
        return session

    engine.compile = compile_slow  # type: ignore[method-assign]
    tasks = [Task(name=f"t{k}", model="lenet5") for k in range(9)]
    inputs = {t.name: samples_for(models["lenet5"], 1, k)[0] for k, t in enumerate(tasks)}
    with (
        Server([models["lenet5"]], engine=engine, port=0, on_event=lambda e: told.append(e.kind)) as server,
        Fleet(server.address, engine=Stretched(open_engine(threads=1), 1000), cache=tmp_path) as fleet,
    ):
        fleet.add(("lenet5", ""), "lenet5")
        known = profiles["lenet5"]
        fleet.know(("lenet5", ""), Survey(known.slowed(1000), known.slowed(50 / known.whole.median), FAST))
        run = QueueRun(fleet, tasks, "fifo", inputs)
        planned = run.prepare()
        assert "batched" in told, "the server has found out that it may"
        found = fleet.shares["lenet5", ""]
        assert found, "nine requests at once cost what one costs"
        assert all(option.kind != "device" and share < 0.8 for option, share in found)
        run.on_answer = lambda row, result: answers.update({row.task.name: result})
        run.run()
        fleet.shares.clear()
        assert predict(fleet, tasks, "fifo").summary.makespan_ms > planned.summary.makespan_ms, "it counted on that"
    for task in tasks:
        for output, expected in whole(models["lenet5"], inputs[task.name]).items():
            np.testing.assert_allclose(answers[task.name].outputs[output], expected, rtol=1e-4, atol=1e-5)
