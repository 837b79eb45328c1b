"""The shipped networks see what they should see, carry their metadata and nothing of the build machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from pictures import heldout_digits
from PIL import Image

from splitpoint.calibration.files import load_calibration
from splitpoint.calibration.tables import tables_of
from splitpoint.errors import ModelError
from splitpoint.images import InputSpec, classify, read_image
from splitpoint.models import load
from splitpoint.models.zoo import NAMES, ZOO, digits, photos, zoo_path
from splitpoint.tensors import Array


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {p.key: p.value for p in model.metadata_props}


def open_zoo(name: str) -> tuple[InputSpec, Any]:
    path = zoo_path(name)
    spec = InputSpec.from_metadata(metadata(onnx.load(path)))
    assert spec is not None
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return spec, ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def answer(session: Any, image: Array) -> Array:
    (logits,) = session.run(None, {"image": image})
    return np.asarray(logits)


@pytest.fixture(scope="module")
def lite0() -> tuple[InputSpec, Any]:
    return open_zoo("efficientnet_lite0")


def test_names_and_aliases() -> None:
    assert {zoo_path(name).name for name in NAMES} == {f"{name}.onnx" for name in ZOO}
    assert zoo_path("LeNet-5") == zoo_path("lenet5")
    with pytest.raises(ModelError, match="no model efficientnet_lite1 in the zoo; did you mean efficientnet"):
        zoo_path("efficientnet_lite1")
    with pytest.raises(ModelError, match="the zoo has efficientnet_lite0 and lenet5"):
        zoo_path("../../secret")


def test_package_data_stays_small_and_licensed() -> None:
    folder = zoo_path("lenet5").parent
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 11_500_000
    text = (folder / "LICENSES.md").read_text()
    for path in (p for p in files if p.name != "LICENSES.md"):
        named = path.name in text or f"{path.parent.name}/" in text
        assert named, f"{path} is not in LICENSES.md"
    assert [p.stem for p in photos()] == ["astronaut", "cat", "coffee", "rocket"]
    for path in photos():
        with Image.open(path) as image:
            assert max(image.size) <= 512


def test_lite0_sees_the_cat_and_the_coffee(lite0: tuple[InputSpec, Any]) -> None:
    spec, session = lite0
    assert len(spec.labels) == 1000
    seen = {p.stem: classify(answer(session, read_image(p, spec)), spec) for p in photos()}
    assert {name for name, _ in seen["cat"][:3]} == {"Egyptian cat", "tiger cat", "tabby"}
    assert sum(p for _, p in seen["cat"][:3]) > 0.85
    assert seen["coffee"][0][0] == "espresso"
    assert seen["coffee"][0][1] > 0.9
    assert {"missile", "projectile", "space shuttle"} & {name for name, _ in seen["rocket"][:4]}


def test_lite0_takes_any_batch(lite0: tuple[InputSpec, Any]) -> None:
    spec, session = lite0
    batch = np.concatenate([read_image(p, spec) for p in photos()])
    single = np.concatenate([answer(session, image[None]) for image in batch])
    swing = np.abs(single[0] - single[1]).max()
    assert swing > 1  # the answer depends on the picture
    for size in (2, 3):
        assert np.abs(answer(session, batch[:size]) - single[:size]).max() < 1e-4 * swing


def test_lenet_reads_digits_it_has_not_seen() -> None:
    spec, session = open_zoo("lenet5")
    assert len(digits()) == 3
    for path in digits():
        assert classify(answer(session, read_image(path, spec)), spec)[0][0] == path.stem
    pictures, labels = heldout_digits()
    assert pictures.shape == (364, 8, 8)
    assert np.bincount(labels).min() >= 34  # all ten, evenly
    batch = np.concatenate([read_image(p, spec) for p in pictures])
    right = answer(session, batch).argmax(1) == labels
    assert right.mean() >= 0.97
    stored = metadata(onnx.load(zoo_path("lenet5")))["splitpoint.accuracy"]
    assert right.mean() == pytest.approx(float(stored), abs=1.5 / len(labels))
    text = (zoo_path("lenet5").parent / "LICENSES.md").read_text()
    assert f"{float(stored):.1%}" in text


@pytest.mark.parametrize("name", ZOO)
def test_the_file_holds_its_contract_and_no_traces(name: str) -> None:
    path = zoo_path(name)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    props = metadata(model)
    nodes = {n.name: {p.key: p.value for p in n.metadata_props} for n in model.graph.node}
    assert len(nodes) == len(model.graph.node)  # unique, none empty
    assert all(set(entries) == {"splitpoint.layer"} for entries in nodes.values())
    aliases = json.loads(props["splitpoint.aliases"])
    assert set(aliases.values()) <= set(nodes)
    assert not set(aliases) & {e["splitpoint.layer"] for e in nodes.values()}
    assert props["splitpoint.source"]
    spec = InputSpec.from_metadata(props)
    assert spec is not None
    image = model.graph.input[0]
    assert (image.name, image.type.tensor_type.elem_type) == ("image", onnx.TensorProto.UINT8)
    dims = [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim]
    assert dims == ["batch", *spec.tensor.shape[1:]]
    assert not {n.op_type for n in model.graph.node} & {"Shape", "Reshape", "Gather", "Constant"}
    assert not model.doc_string
    assert not model.graph.value_info
    raw = path.read_bytes()
    for trace in (b"pkg.torch", b"/site-packages", str(Path.home()).encode() + b"/", b"Traceback", b'.py"'):
        assert trace not in raw


def test_lite0_weights_are_half_and_every_module_is_reachable() -> None:
    model = onnx.load(zoo_path("efficientnet_lite0"))
    large = [w for w in model.graph.initializer if np.prod(w.dims) >= 1024 and len(w.dims) > 1]
    assert len(large) > 40
    assert {w.data_type for w in large} == {onnx.TensorProto.FLOAT16}
    layers = {n.metadata_props[0].value for n in model.graph.node}
    aliases = json.loads(metadata(model)["splitpoint.aliases"])
    for block in range(16):
        for part in ("expand", "depthwise", "project") if block else ("depthwise", "project"):
            assert f"blocks.{block}.{part}.norm" in layers
            assert aliases[f"blocks.{block}.{part}.conv"] == f"blocks.{block}.{part}.norm"
    assert {"normalize", "stem.relu6", "head.norm", "pool", "fc"} <= layers
    assert aliases["stem.conv"] == "stem.norm"


def test_the_ready_calibration_is_of_the_network_as_it_is_and_small() -> None:
    path = zoo_path("efficientnet_lite0").with_suffix(".calib.json")
    calibration, model = load_calibration(path), load("zoo:efficientnet_lite0")
    assert path.stat().st_size < 1_700_000
    assert list(tables_of(calibration, model)) == [f"blocks.{k}.project.norm" for k in (3, 5, 11)]
    names = [cut.name for cut in model.graph.prefixes()]
    measured = {names[row.prefix] for row in calibration.rows if row.codec.startswith("klt:")}
    assert measured == {entry.tensor for entry in calibration.tables}
    assert {"jpeg:95", "jpeg444:98", "webp:95", "avif:90"} <= {r.codec for r in calibration.rows if r.prefix == 0}
    assert calibration.inputs >= 75
