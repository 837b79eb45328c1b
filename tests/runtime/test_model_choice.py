"""Which of a server's models is meant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from serving import affine, evaluate

from splitpoint.engines import open_engine
from splitpoint.errors import (
    ModelError,
    UsageError,
)
from splitpoint.models.model import Model
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.edge_settings import ModelPolicy
from splitpoint.runtime.server.server import Server
from splitpoint.tensors import Array

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def inputs(count: int = 1, size: int = 1024, seed: int = 0) -> list[Array]:
    return list(np.random.default_rng(seed).normal(size=(count, 1, size)).astype(np.float32))


def ort() -> object:
    return open_engine(threads=1)


def test_several_models_and_versions_are_told_apart(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "v2").mkdir()
    one, two = affine(tmp_path, name="net"), affine(tmp_path / "v2", name="net", seed=1)
    other = affine(tmp_path, name="other", seed=2)
    x = inputs()[0]
    with Server([one, two, other], engine=ort(), port=0) as server:
        address = server.address
        with pytest.raises(UsageError, match=r"several models.*net.*other"):
            Edge(address, cache=cache)
        for given, pinned, want in (
            ("net", one.fingerprint[:10], one),
            ("net", two.fingerprint[:10], two),
            (two.fingerprint, None, two),
            ("other", None, other),
            (two.fingerprint[:8], None, two),
            (None, other.fingerprint, other),
            (two, None, two),
        ):
            with Edge(address, given, cache=cache, at="add1", models=ModelPolicy(pinned=pinned)) as edge:
                assert edge.info.fingerprint == want.fingerprint
                np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(want, x), rtol=1e-5)
        with pytest.raises(ModelError, match=r"no model nett; did you mean net\?.*it has net"):
            Edge(address, "nett", cache=cache)
        with pytest.raises(ModelError, match="not the pinned one"):
            Edge(address, "net", cache=cache, models=ModelPolicy(pinned=other.fingerprint))


def test_a_name_of_several_versions_is_never_a_guess(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "v2").mkdir()
    one, two = affine(tmp_path, name="br"), affine(tmp_path / "v2", name="br", seed=1)
    with Server([one, two, one], engine=ort(), port=0) as server:
        assert [i.fingerprint for i in server.catalogue.infos] == [one.fingerprint, two.fingerprint]
        for name in ("br", None):
            with pytest.raises(UsageError) as caught:
                Edge(server.address, name, cache=cache)
            assert str(caught.value) == (
                f"the server has 2 models called br: br {one.fingerprint[:12]}, br {two.fingerprint[:12]}; "
                "name one by its fingerprint or pin it with --model-hash"
            )
        for given, pinned in ((two.fingerprint[:12], None), (None, two.fingerprint[:12]), ("br", two.fingerprint)):
            with Edge(server.address, given, cache=cache, at="input", models=ModelPolicy(pinned=pinned)) as edge:
                assert edge.info.fingerprint == two.fingerprint


def test_a_model_served_under_two_names_has_both(model: Model, cache: Path) -> None:
    """Two files of the same network: what was printed when it began to serve can be asked for."""
    twin, x = replace(model, name="twin"), inputs()[0]
    with Server([model, twin, model], engine=ort(), port=0) as server:
        assert [i.name for i in server.catalogue.infos] == [model.name, "twin"]
        for given in (model.name, "twin", None, twin, model.fingerprint):
            with Edge(server.address, given, cache=cache, at="add1") as edge:
                assert edge.info.name == ("twin" if given in ("twin", twin) else model.name)
                np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-5)
