"""The models of a server: by fingerprint, under all their names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from serving import affine
from tabled import TENSOR, calibration, lenet, other_calibration, tables_for

from splitpoint import wire
from splitpoint.errors import ChangedError, InputError, ModelError, RefusedError, UsageError
from splitpoint.models.model import Model
from splitpoint.runtime.events import Event
from splitpoint.runtime.server.catalogue import Catalogue, Sharing


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


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


def sharing(share: str | list[str], *models: Model) -> Sharing:
    return Sharing(share, {m.fingerprint: m for m in models}, {m.fingerprint: [m.name] for m in models})


def test_a_whole_model_is_handed_out_with_every_weight(model: Model) -> None:
    shared = sharing("model", model)
    graph, sizes = shared.graph(model)
    assert graph == model.graph_bytes()
    for hash, blob in model.blobs.items():
        assert sizes[hash] == shared.nbytes_of(model, hash) == blob.nbytes
        assert bytes(shared.open(model, hash)) == bytes(model.blob(hash))
    with pytest.raises(ModelError, match="has no weight 00"):
        shared.nbytes_of(model, "0" * 64)


def test_of_a_head_its_own_weights_may_leave_and_no_others(model: Model) -> None:
    shared = sharing("head:add1", model)
    assert (shared.kind, shared.heads) == ("head", {model.fingerprint: "add1"})
    assert "the head up to add1 may leave" in shared.said[0]
    head = set(model.head(model.graph.cut("add1")).blobs)
    assert 0 < len(head) < len(model.blobs)
    for hash in model.blobs:
        if hash in head:
            assert shared.nbytes_of(model, hash) == model.blobs[hash].nbytes
        else:
            with pytest.raises(RefusedError, match="is not of the head that is shared"):
                shared.nbytes_of(model, hash)
    graph, _ = shared.graph(model)
    assert len(graph) <= len(model.graph_bytes())


def test_tails_begin_in_the_shared_head_and_end_at_the_models_outputs(model: Model) -> None:
    shared = sharing("head:add1", model)
    shared.check_tail(model, wire.OpenRequest(model.fingerprint, ("y1",), ("y3",)))
    with pytest.raises(RefusedError, match="cut there or before it, not deeper"):
        shared.check_tail(model, wire.OpenRequest(model.fingerprint, ("y2",), ("y3",)))
    with pytest.raises(RefusedError, match="end at its own outputs"):
        shared.check_tail(model, wire.OpenRequest(model.fingerprint, ("y1",), ("y2",)))


def test_nothing_is_handed_out_where_nothing_is_shared(model: Model) -> None:
    shared = sharing("none", model)
    with pytest.raises(RefusedError, match="hands out no models"):
        shared.graph(model)
    with pytest.raises(RefusedError, match="hands out no weights"):
        shared.nbytes_of(model, next(iter(model.blobs)))


@pytest.mark.parametrize(
    ("share", "words"),
    [
        ("all", "what is shared is model, head:CUT or none"),
        (["model", "none"], "not model and none"),
        ("head", "needs the deepest cut"),
        ("head:nowhere", "--share head:nowhere"),
        ("head:output", "would hand out all the weights"),
        (["head:add0", "head:add1"], "say whose each is"),
        (["head:affine=add0", "head:affine=add1"], "names two cuts for affine"),
    ],
)
def test_what_makes_no_sense_is_said(model: Model, share: str | list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        sharing(share, model)


# --- tables of codecs ------------------------------------------------------------------------------------------------


def test_tables_are_kept_by_model_and_tensor(tmp_path: Path) -> None:
    catalogue = Catalogue([affine(tmp_path), lenet()], print, [calibration()])
    assert {f: set(tables) for f, tables in catalogue.tables.items()} == {lenet().fingerprint: {TENSOR, "pool2"}}
    with pytest.raises(InputError, match=r"the calibration is of lenet5 .*, not of affine"):
        Catalogue([affine(tmp_path)], print, [calibration()])
    # A second one for the same tensor takes its place, the other tensor's stay.
    both = Catalogue([lenet()], print, [calibration(), other_calibration()]).tables[lenet().fingerprint]
    assert both[TENSOR].hash == tables_for(other_calibration()).hash
    assert both["pool2"].hash == tables_for(calibration(), "pool2").hash


@pytest.mark.parametrize(
    ("share", "told", "leaves"),
    [
        ("model", [TENSOR, "pool2"], [TENSOR, "pool2"]),
        ("head:pool1", [TENSOR], [TENSOR]),
        ("head:conv1", [], []),
        ("none", ["", ""], []),
    ],
)
def test_which_tables_are_told_and_leave(share: str, told: list[str], leaves: list[str]) -> None:
    model = lenet()
    catalogue = Catalogue([model], print, [calibration()])
    shared = Sharing(share, catalogue.models, catalogue.names, catalogue.tables)
    infos = shared.tables(model.fingerprint)
    assert [name for name, _, _ in infos] == told
    for tensor in (TENSOR, "pool2"):
        tables = tables_for(calibration(), tensor)
        if tensor in leaves:
            assert (tensor, tables.hash, len(tables.to_bytes())) in infos
            assert shared.nbytes_of(model, tables.hash) == len(tables.to_bytes())
            assert bytes(shared.open(model, tables.hash)) == tables.to_bytes()
        else:
            with pytest.raises(RefusedError):
                shared.nbytes_of(model, tables.hash)
    assert Sharing(share, catalogue.models, catalogue.names).tables(model.fingerprint) == ()
