"""The whole model on one engine: what a cut is compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from serving import Gate, affine, evaluate, nothing_leaks

from splitpoint.engines import open_engine
from splitpoint.errors import InputError, UsageError
from splitpoint.runtime.client.whole_model import Local
from splitpoint.runtime.result import Request
from splitpoint.trace import Span


def test_it_answers_as_an_edge_does(tmp_path: Path) -> None:
    model = affine(tmp_path)
    x = np.random.default_rng(0).normal(size=(1, 1024)).astype(np.float32)
    with nothing_leaks(), Local(model, open_engine(threads=1)) as whole:
        result = whole.infer({"x": x})
        np.testing.assert_allclose(result.outputs["y3"], evaluate(model, x), rtol=1e-5)
        assert (result.cut, result.up_nbytes, list(result.trace.stages())) == ("output", 0, ["head"])
        requests = [Request({"x": x}, (Span("prepare", 0.0, 0.001),), k) for k in range(4)]
        results = list(whole.stream(requests))
        assert [r.tag for r in results] == [0, 1, 2, 3]
        assert results[0].trace.ms("prepare") == pytest.approx(1.0)
        with pytest.raises(InputError):
            whole.infer({"x": x[:, :7]})


def test_it_is_closed_once_and_of_no_use_then(tmp_path: Path) -> None:
    engine = Gate()
    whole = Local(affine(tmp_path), engine)
    whole.close()
    whole.close()
    assert len(engine.closed) == 1
    with pytest.raises(UsageError, match="this Local is closed"):
        whole.infer({"x": np.zeros((1, 1024), np.float32)})
