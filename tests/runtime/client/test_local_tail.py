"""Finishing here what a server was to finish: what can be, by which halves, and in which thread."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from serving import affine, evaluate, until

from splitpoint.engines import open_engine
from splitpoint.errors import EngineError, ServerError
from splitpoint.models.model import Model
from splitpoint.runtime.client.held_weights import Holding
from splitpoint.runtime.client.local_tail import LocalTails
from splitpoint.runtime.client.ready_cuts import Placement
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.events import ignore
from splitpoint.runtime.model_choice import info_of

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


class Here:
    """Local tails of `model` for the cuts at `at`."""

    def __init__(self, model: Model, *at: str) -> None:
        self.engine = open_engine(threads=1)
        self.placements = [self._placed(model, name) for name in at]
        holding = Holding(info_of(model), model, lambda: pytest.fail("asked a server"), None, ignore, None)
        self.tails = LocalTails(holding, lambda: self.engine, lambda: self.placements)

    def _placed(self, model: Model, at: str) -> Placement:
        cut = model.graph.cut(at)
        segment = model.head(cut)
        return Placement(model, cut, self.engine.compile(segment) if segment.outputs else None, Patience())


X = np.ones((2, 1024), np.float32)


def test_a_tail_is_compiled_once_and_finishes_what_its_head_made(model: Model) -> None:
    here = Here(model, "add1")
    [placement] = here.placements
    assert here.tails.possible(), "the model is here"
    assert not here.tails.ready(placement)
    here.tails.prepare(placement)
    assert here.tails.ready(placement)
    compiled = placement.tail
    here.tails.prepare(placement)
    assert placement.tail is compiled
    outputs = here.tails.finish(placement, placement.compute({"x": X}))
    np.testing.assert_allclose(outputs["y3"], evaluate(model, X), rtol=1e-5)
    assert placement.times.here_s > 0, "what it takes is known now"
    here.tails.close()


def test_halves_of_another_cut_are_as_good(model: Model) -> None:
    here = Here(model, "add1", "add2")
    first, other = here.placements
    here.tails.prepare(other)
    assert here.tails.ready(first)
    outputs = here.tails.finish(first, first.compute({"x": X}))
    np.testing.assert_allclose(outputs["y3"], evaluate(model, X), rtol=1e-5)
    assert first.tail is None, "nothing was compiled for it"
    here.tails.close()


def test_one_that_cannot_run_is_closed_and_not_taken(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Here(model, "add1")

    def endless(segment: object, session: object) -> float:
        raise EngineError("took longer than 300 s in one run")

    monkeypatch.setattr("splitpoint.runtime.client.local_tail._try", endless)
    with pytest.raises(EngineError, match="took longer"):
        here.tails.prepare(here.placements[0])
    assert here.placements[0].tail is None
    here.tails.close()


def test_jobs_run_in_one_thread_in_order_and_not_after_the_end(model: Model) -> None:
    tails, ran, go = Here(model, "add1").tails, list[tuple[int, int]](), threading.Event()
    tails.submit(lambda: go.wait(10) or None)
    for k in range(3):
        tails.submit(lambda k=k: ran.append((k, threading.get_ident())))  # type: ignore[misc]
    assert ran == []
    go.set()
    assert until(lambda: len(ran) == 3)
    assert [k for k, _ in ran] == [0, 1, 2]
    assert len({thread for _, thread in ran} - {threading.get_ident()}) == 1
    tails.close()
    with pytest.raises(ServerError, match="closed"):
        tails.submit(lambda: None)
