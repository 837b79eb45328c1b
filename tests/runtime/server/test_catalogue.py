"""The models of a server: by fingerprint, under all their names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from serving import affine

from splitpoint.errors import ChangedError, ModelError, RefusedError
from splitpoint.runtime.events import Event
from splitpoint.runtime.server.catalogue import Catalogue


def test_a_model_given_twice_is_one_under_each_of_its_names(tmp_path: Path) -> None:
    model = affine(tmp_path)
    catalogue = Catalogue([model, replace(model, name="twin"), model], print)
    assert list(catalogue.models) == [model.fingerprint]
    assert [info.name for info in catalogue.infos] == ["affine", "twin"]
    assert catalogue.names == {model.fingerprint: ["affine", "twin"]}
    assert catalogue[model.fingerprint].name == "affine"


def test_what_it_does_not_have_is_said_with_what_it_has(tmp_path: Path) -> None:
    model = affine(tmp_path)
    catalogue = Catalogue([model], print)
    with pytest.raises(ModelError, match=f"it has affine {model.fingerprint[:12]}"):
        catalogue["0" * 64]


def test_a_weight_whose_file_has_changed_is_refused_and_its_file_told_of_once(tmp_path: Path) -> None:
    class Changed:
        def open(self, hash: str) -> memoryview:
            raise ChangedError("it has changed", tmp_path / "net.data")

    told: list[Event] = []
    model = replace(affine(tmp_path), weights=Changed())
    served = Catalogue([model], told.append)[model.fingerprint]
    for _ in range(2):
        with pytest.raises(RefusedError, match=r"net\.data, the server's file of affine, has changed"):
            served.blob(next(iter(model.blobs)))
    (event,) = told
    assert event.kind == "failed"
    assert event.fields == {"model": "affine", "path": str(tmp_path / "net.data")}
