"""Weights in files beside the model: where they may lie, and what is wrong with broken ones. And stand-ins."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper
from onnx_files import W, all_equal, linear, outside, run
from profile_cases import quantised

import nets
from nets import ENGINE, node, value
from splitpoint.errors import (
    ModelError,
    StorageError,
)
from splitpoint.models import load
from splitpoint.segments import samples_for

# --- external data ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "location", ["../weights.bin", "/etc/hostname", "sub/../../weights.bin", "link.bin", "a\0b", ""]
)
def test_external_data_stays_in_the_model_s_folder(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    tensor = outside(folder, location=location)
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    os.symlink(tmp_path / "weights.bin", folder / "link.bin")
    path = nets.saved(linear(tensor), folder / "net.onnx")
    with pytest.raises(ModelError) as caught:
        load(path)
    if "weights.bin" in location or location == "link.bin":
        assert "outside its folder" in str(caught.value)


def hub(folder: Path, data: str = "blobs/bbb") -> Path:
    """The cache of a hub: model and data are links into one folder of blobs."""
    for name in ("blobs", "snapshots/r1/onnx", "secret"):
        (folder / name).mkdir(parents=True)
    path = nets.saved(linear(outside(folder, location="model.onnx_data")), folder / "blobs/aaa")
    (folder / "weights.bin").rename(folder / data)
    os.symlink("../../../blobs/aaa", folder / "snapshots/r1/onnx/model.onnx")
    os.symlink(f"../../../{data}", folder / "snapshots/r1/onnx/model.onnx_data")
    assert path.is_file()
    return folder / "snapshots/r1/onnx/model.onnx"


def test_a_hub_s_cache_of_links_opens(tmp_path: Path) -> None:
    path = hub(tmp_path)
    assert load(path).nbytes == W.nbytes
    assert load(path).name == "model"
    (tmp_path / "latest").symlink_to("snapshots/r1")
    assert load(tmp_path / "latest/onnx/model.onnx").nbytes == W.nbytes


def test_data_beside_the_file_that_a_link_leads_to(tmp_path: Path) -> None:
    """``ln -s models/net.onnx .``, and the same into a hub's cache, where the file is a link again."""
    (tmp_path / "models").mkdir()
    nets.saved(linear(outside(tmp_path / "models", location="weights.bin")), tmp_path / "models/net.onnx")
    (tmp_path / "net.onnx").symlink_to("models/net.onnx")
    assert load(tmp_path / "net.onnx").nbytes == W.nbytes
    (tmp_path / "hub.onnx").symlink_to(hub(tmp_path))
    assert load(tmp_path / "hub.onnx").nbytes == W.nbytes
    (tmp_path / "models/weights.bin").rename(tmp_path / "secret/weights.bin")
    (tmp_path / "models/weights.bin").symlink_to("../secret/weights.bin")
    with pytest.raises(ModelError, match="is a link that leads outside its folder"):
        load(tmp_path / "net.onnx")


def test_a_stranger_s_links_read_nothing_else(tmp_path: Path) -> None:
    # The data is a link to another folder than the model's.
    with pytest.raises(ModelError, match="is a link that leads outside its folder"):
        load(hub(tmp_path / "a", "secret/bbb"))
    # Only what is side by side with the model's blob counts.
    deeper = hub(tmp_path / "b")
    (tmp_path / "b/blobs/deeper").mkdir()
    (tmp_path / "b/blobs/bbb").rename(tmp_path / "b/blobs/deeper/bbb")
    deeper.with_name("model.onnx_data").unlink()
    os.symlink("../../../blobs/deeper/bbb", deeper.with_name("model.onnx_data"))
    with pytest.raises(ModelError, match="is a link that leads outside its folder"):
        load(deeper)
    # A model that is no link itself, in a folder with a link that leads out of it.
    plain = hub(tmp_path / "c")
    data = plain.read_bytes()
    plain.unlink()
    plain.write_bytes(data)
    with pytest.raises(ModelError, match="is a link that leads outside its folder"):
        load(plain)


def test_a_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    tensor = outside(tmp_path, location="link.bin")
    os.symlink("weights.bin", tmp_path / "link.bin")
    assert load(nets.saved(linear(tensor), tmp_path / "net.onnx")).nbytes == W.nbytes


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "gone.bin"}, "cannot be read"),
        ({"location": "empty.bin"}, "too short: 0 bytes, 8192 needed"),
        ({"location": "weights.bin", "offset": "4"}, "too short: 8192 bytes, 8196 needed"),
        ({"location": "weights.bin", "offset": "-4", "length": "8192"}, "too short|offset"),
        ({"location": "weights.bin", "offset": "9" * 30}, "too short"),
        ({"location": "weights.bin", "length": "100"}, "has 100 bytes, its dimensions"),
        ({"location": "weights.bin", "length": "-8"}, "too short|length"),
        ({"location": "weights.bin", "offset": "many"}, "external data entry of weight w is broken"),
        ({"offset": "0"}, "external data entry of weight w is broken"),
        ({"location": "."}, "cannot be read"),
    ],
)
def test_broken_external_data(tmp_path: Path, entries: dict[str, str], message: str) -> None:
    tensor = outside(tmp_path)
    (tmp_path / "empty.bin").touch()
    del tensor.external_data[:]
    for key, text in entries.items():
        tensor.external_data.add(key=key, value=text)
    with pytest.raises(ModelError, match=message):
        load(nets.saved(linear(tensor), tmp_path / "net.onnx"))


def test_a_truncated_data_file(tmp_path: Path) -> None:
    path = nets.saved(linear(outside(tmp_path)), tmp_path / "net.onnx")
    with (tmp_path / "weights.bin").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(ModelError, match=r"weights.bin is too short: 5000 bytes, 8192 needed"):
        load(path)


def test_external_data_as_onnx_writes_it(tmp_path: Path) -> None:
    proto = nets.flattening()
    external_data_helper.convert_model_to_external_data(proto, location="net.data", size_threshold=16)
    onnx.save_model(proto, tmp_path / "net.onnx")
    model = load(tmp_path / "net.onnx")
    assert model.fingerprint == nets.load(nets.flattening()).fingerprint
    all_equal(model)


def test_external_data_in_a_body(tmp_path: Path) -> None:
    body = helper.make_graph([node("MatMul", ["x", "w"], ["o"])], "b", [], [value("o", None)], [outside(tmp_path)])
    proto = nets.proto(
        [
            node("ReduceSum", ["x"], ["s"], keepdims=0),
            node("Cast", ["s"], ["c"], to=TensorProto.BOOL),
            node("If", ["c"], ["y"], then_branch=body, else_branch=body),
        ],
        [value("x", [1, 64])],
        [value("y", None)],
    )
    model = load(nets.saved(proto, tmp_path / "net.onnx"))
    (tmp_path / "weights.bin").unlink()
    assert run(model)["y"].shape == (1, 32)


# --- stand-ins -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zoo:lenet5", "zoo:efficientnet_lite0", "qdq", "residual"])
def test_stand_ins_run_wherever_the_real_weights_do(name: str) -> None:
    model = load(name) if name.startswith("zoo") else quantised() if name == "qdq" else nets.load(nets.residual())
    made = model.with_stand_ins()
    assert made.fingerprint == model.fingerprint
    for digest, blob in model.blobs.items():
        assert made.blob(digest).nbytes == blob.nbytes
    for segment in (made.whole(), made.head(made.graph.middle()), made.tail(made.graph.middle())):
        session = ENGINE.compile(segment)
        feed = samples_for(made, 1)[0] if segment.inputs[0].name == model.inputs[0].name else None
        if feed is not None:
            for value in session.run(feed).values():
                numbers = np.abs(value[np.nonzero(value)]) if value.dtype.kind == "f" else np.zeros(0)
                assert np.isfinite(value).all()
                assert (numbers > 1e-20).all(), "denormals would take ten times as long"
        session.close()


def test_stand_ins_of_integers_are_zero_and_scales_positive() -> None:
    table = np.arange(2000, dtype=np.int64)
    model = nets.load(nets.proto(
        [nets.node("Gather", ["x", "table"], ["g"], name="g", axis=1),
         nets.node("QuantizeLinear", ["g", "scale", "zero"], ["q"], name="q", axis=1),
         nets.node("DequantizeLinear", ["q", "scale", "zero"], ["y"], name="d", axis=1)],
        [nets.value("x", [1, 2000])], [nets.value("y", [1, 2000])],
        [nets.weight("table", table), nets.weight("scale", np.full(2000, 0.1, np.float32)),
         nets.weight("zero", np.full(2000, 3, np.int8))],
    ))  # fmt: skip
    made = model.with_stand_ins()
    blobs = nets.blob_hashes(made.whole())
    assert not np.frombuffer(made.blob(blobs["table"]), np.int64).any()
    assert (np.frombuffer(made.blob(blobs["scale"]), np.float32) > 0).all()
    assert not np.frombuffer(made.blob(blobs["zero"]), np.int8).any()
    session = ENGINE.compile(made.whole())
    assert np.isfinite(session.run({"x": np.ones((1, 2000), np.float32)})["y"]).all()
    session.close()
    with pytest.raises(StorageError, match="is not here"):
        made.blob("0" * 64)
