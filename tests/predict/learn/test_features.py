"""The features and terms of each kind."""

from __future__ import annotations

import numpy as np
import pytest

from splitpoint.errors import InputError
from splitpoint.predict.kernels.kernel_kinds import KINDS
from splitpoint.predict.learn.features import cells_of, columns_of, feature_names, features_of, term_names, terms_of

# --- features and bases -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_has_features_and_terms(kind: str) -> None:
    columns = columns_of(kind, {name: np.array([4.0, 8.0]) for name in KINDS[kind].required})
    features = features_of(kind, columns)
    assert features.shape == (2, len(feature_names(kind)))
    assert np.isfinite(features).all()
    terms = terms_of(kind, columns)
    assert tuple(terms) == term_names(kind)
    assert (np.stack(list(terms.values())) >= 0).all()
    assert len(cells_of(kind, columns)) == 2


def test_groups_of_whole_blocks_are_priced_apart_from_others() -> None:
    sizes = {"HW": 28.0, "kernel": 3.0, "stride": 1.0, "FLOPs": 1.0}
    groups = {"Cin": [64, 104, 104, 12], "Cout": [64, 104, 208, 24], "groups": [4, 13, 26, 2]}
    rows = {k: np.full(4, v) for k, v in sizes.items()} | {k: np.array(v, np.float64) for k, v in groups.items()}
    columns = columns_of("group_conv", rows)
    # 16 → 16, 8 → 8, 4 → 8, 6 → 12 channels a group.
    assert cells_of("group_conv", columns).tolist() == ["block=16", "block=8", "block=1", "block=1"]


def test_a_missing_column_is_named() -> None:
    with pytest.raises(InputError, match="a kernel of kind conv needs the column Cin"):
        columns_of("conv", {"HW": np.ones(1), "kernel": np.ones(1), "stride": np.ones(1)})
