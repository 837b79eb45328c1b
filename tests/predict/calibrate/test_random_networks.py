"""Random networks run, carry signal, and are the same for the same arguments."""

from __future__ import annotations

import numpy as np
import pytest

import nets
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
