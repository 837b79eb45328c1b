"""Sessions in processes of their own."""

from __future__ import annotations

import os

import numpy as np
import pytest
from engines_for_tests import Elsewhere, engine
from serving import nothing_leaks

import nets
from splitpoint.engines.apart import Apart, DiedError
from splitpoint.errors import EngineError, InputError
from splitpoint.models import load
from splitpoint.segments import samples_for


@pytest.mark.parametrize("name", ["zoo:lenet5", "looping", "branching"])
def test_a_session_apart_computes_the_same(name: str) -> None:
    model = load(name) if name.startswith("zoo:") else nets.load(getattr(nets, name)())
    (sample,) = samples_for(model, 1)
    here = engine().compile(model.whole())
    with nothing_leaks():
        apart = Apart(engine(), 1 << 28).compile(model.whole())
        assert apart.nbytes > 1 << 20
        for name, array in here.run(sample).items():
            made = apart.run(sample)[name]
            assert (made.dtype, made.shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(made, array)
        with pytest.raises(InputError, match="is missing"):
            apart.run({})
        with pytest.raises(InputError, match="must be"):
            apart.run({n: np.zeros((9, 9, 9), a.dtype) for n, a in sample.items()})
        apart.close()
        with pytest.raises(EngineError, match="closed"):
            apart.run(sample)
    here.close()


def test_the_process_opens_the_engine_that_it_was_given() -> None:
    segment = load("zoo:lenet5").whole()
    with pytest.raises(EngineError, match=r"threads=2\) compiles nothing in process (\d+)") as failed:
        Apart(Elsewhere(threads=2), 1 << 28).compile(segment)
    assert not str(failed.value).endswith(f" {os.getpid()}")


def test_a_process_that_was_killed_is_replaced() -> None:
    model = load("zoo:lenet5")
    (sample,) = samples_for(model, 1)
    session = Apart(engine(), 1 << 28).compile(model.whole())
    before = session.run(sample)
    assert session._child is not None
    session._child.terminate = True
    with pytest.raises(DiedError, match="given up"):
        session.run(sample)
    np.testing.assert_array_equal(session.run(sample)["logits"], before["logits"])
    session.close()
