"""Random weights: bytes that are the same everywhere, filters that sum to zero, files that are kept."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from splitpoint.errors import UsageError
from splitpoint.models import load, random_weights
from splitpoint.models.random_weights import kept, pieces, redrawn, seed_of
from splitpoint.models.zoo import zoo_path


def test_seeds() -> None:
    assert [seed_of(text) for text in (None, "random", "random:7", "weights.pt")] == [None, 0, 7, None]
    with pytest.raises(UsageError, match="must be a whole number"):
        seed_of("random:x")


def test_the_bytes_are_these(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(pieces("conv", (6, 3, 5, 5), 1)))
    assert sha256(whole.astype("<f4").tobytes()).hexdigest()[:16] == "55441ad3e9a3a834"
    monkeypatch.setattr(random_weights, "_PIECE", 150)  # in pieces they are the same
    drawn = list(pieces("conv", (6, 3, 5, 5), 1))
    assert len(drawn) == 3
    np.testing.assert_array_equal(np.concatenate(drawn), whole)


def test_filters_sum_to_zero_and_have_the_gain() -> None:
    weight = np.concatenate(list(pieces("fc", (64, 900), 0)))
    assert abs(weight.sum(axis=1)).max() < 900 * 2**-16
    assert weight.var() * 900 == pytest.approx(3.0, rel=0.02)


def test_another_name_or_seed_is_another_weight() -> None:
    drawn = [next(pieces(name, (4, 9), seed)).tobytes() for name, seed in (("a", 0), ("b", 0), ("a", 1))]
    assert len(set(drawn)) == 3


def test_where_the_cache_cannot_be_written_it_is_built_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(random_weights, "default_cache", lambda: tmp_path / "file")
    path = kept("net", 0, lambda path: path.write_text("model") and None)
    assert path.read_text() == "model"
    assert not path.is_relative_to(tmp_path / "file")


def test_the_zoos_networks_with_random_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITPOINT_CACHE", str(tmp_path))
    trained, drawn = load("le_net"), load("le_net@random:3")
    assert drawn.fingerprint != trained.fingerprint
    assert drawn.fingerprint == load("zoo:lenet5", weights="random:3").fingerprint
    assert drawn.nbytes == trained.nbytes
    assert drawn.source.startswith("lenet5 with random weights, seed 3")
    assert redrawn(zoo_path("lenet5"), 3).is_relative_to(tmp_path)
