"""Random networks run, carry signal, and are the same for the same arguments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import nets
from splitpoint import load
from splitpoint.models.model import Model
from splitpoint.models.zoo import ZOO
from splitpoint.predict.calibrate.random_networks import FAMILIES, random_network
from splitpoint.predict.kernels.kernel_kinds import KINDS
from splitpoint.predict.kernels.kernels import kernels_of
from splitpoint.segments import samples_for

# --- strips -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_strips_run_and_carry_signal(family: str) -> None:
    """What comes out depends on what goes in, and is neither infinite nor so small that it slows a processor down."""
    model = random_network(3, family, 1e8)
    kernels = kernels_of(model)
    assert sorted(i for k in kernels for i in k.nodes) == sorted(model.graph.placed)
    assert {k.kind for k in kernels} <= KINDS.keys() - {"other"}
    session = nets.ENGINE.compile(model.whole())
    try:
        outs = [next(iter(session.run(sample).values())) for sample in samples_for(model, 2)]
    finally:
        session.close()
    assert all(np.isfinite(y).all() for y in outs)
    assert not np.allclose(outs[0], outs[1], rtol=1e-4)
    assert not any(((np.abs(y) > 0) & (np.abs(y) < 1e-30)).any() for y in outs)


def test_strips_are_the_same_for_the_same_arguments_and_differ_else() -> None:
    one, same, other = (random_network(seed, "mobile", 5e8) for seed in (1, 1, 2))
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_strips_have_about_the_work_that_is_asked_for() -> None:
    for family in ("bottleneck", "resnet", "inception"):
        made = [
            sum(n.flops for n in random_network(k, family, work).graph.nodes) for k in range(2) for work in (4e8, 4e9)
        ]
        assert 2e8 < made[0] < made[1] < 1e10


def operators(model: Model) -> set[tuple[str, float]]:
    """The kinds of its kernels; of those that do one of several operators, which."""
    return {(k.kind, k.config.get("op", 0.0)) for k in kernels_of(model)}


def test_every_operator_of_real_networks_is_drawn() -> None:
    """Those of the zoo and of the models that come with onnx: what is never drawn is never calibrated."""
    drawn = set().union(*(operators(random_network(seed, family, 2e8)) for seed in range(3) for family in FAMILIES))
    real = [f"zoo:{name}" for name in ZOO]
    real += map(str, sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx")))
    assert len(real) >= 10
    missing = {name: found for name in real if (found := operators(load(name)) - drawn)}
    assert not missing
