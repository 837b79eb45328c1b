"""Real values for inputs that must make sense: given, kept, sent along, and asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import ok
from onnx import TensorProto

import nets
from splitpoint.cli import main
from splitpoint.errors import EngineError, InputError, ModelError
from splitpoint.models import load
from splitpoint.models.input_values import remembered, varied, with_values
from splitpoint.models.layer_names import VALUES_KEY
from splitpoint.models.model import from_graph
from splitpoint.models.reading import parse_skeleton
from splitpoint.profile.measure import profile_model
from splitpoint.segments import check_inputs, samples_for, verify
from splitpoint.survey import _place
from splitpoint.tensors import TensorSpec, load_arrays, npz_bytes

INT, DOUBLE = TensorProto.INT64, TensorProto.DOUBLE


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPLITPOINT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def resizing(path: Path, batch: int | str = 1) -> Path:
    """x is scaled to `sizes`: made-up ones are refused."""
    nodes = [
        nets.node("Relu", ["x"], ["r"], name="act"),
        nets.node("Resize", ["r", "", "", "sizes"], ["z"], name="scale", mode="linear"),
        nets.node("Tanh", ["z"], ["y"], name="end"),
    ]
    inputs = [nets.value("x", [batch, 3, 8, 8]), nets.value("sizes", [4], INT)]
    return nets.saved(nets.proto(nodes, inputs, [nets.value("y", [batch, 3, "h", "w"])]), path)


def branching(path: Path, name: str = "mode") -> Path:
    """A scalar chooses the branch: any but 7 ends in a Reshape that cannot be."""

    def branch(shape: list[int]) -> Any:
        nodes = [nets.node("Constant", [], ["s"], value=nets.weight("", np.array(shape))),
                 nets.node("Reshape", ["r", "s"], ["b"])]  # fmt: skip
        return nets.helper.make_graph(nodes, "branch", [], [nets.value("b", None)])

    nodes = [
        nets.node("Relu", ["x"], ["r"], name="act"),
        nets.node("Equal", [name, "seven"], ["is"], name="is"),
        nets.node("If", ["is"], ["z"], name="choose", then_branch=branch([2, 4]), else_branch=branch([3, 3])),
        nets.node("Tanh", ["z"], ["y"], name="end"),
    ]
    inputs = [nets.value("x", [1, 8]), nets.value(name, [], INT)]
    net = nets.proto(nodes, inputs, [nets.value("y", None)], [nets.weight("seven", np.int64(7))])
    return nets.saved(net, path)


def test_a_value_is_given_once(tmp_path: Path, cache: Path) -> None:
    path = resizing(tmp_path / "r.onnx")
    with pytest.raises(
        ModelError, match=r"its inputs were made up: give real ones with --input FILE.npz, or --value sizes=…"
    ):
        load(path)
    # What was given and is refused is named, not the inputs that have nothing to do with it.
    with pytest.raises(ModelError, match=r"with sizes as given, the others made up: .* --value sizes=…"):
        load(path, values={"sizes": [0, 0, 0, 0]})
    model = load(path, values={"sizes": [1, 3, 16, 12]})
    assert model.graph.tensors["z"].shape == (1, 3, 16, 12)
    again = load(path)
    assert again.values["sizes"].tolist() == [1, 3, 16, 12]
    assert again.graph.tensors["z"].shape == (1, 3, 16, 12)
    assert all(c.ok for c in verify(again, nets.ENGINE, again.graph.prefixes()))
    assert profile_model(again, nets.ENGINE, budget_s=2).measured
    # Another value counts more than the one that is kept, and is a measurement of its own.
    other = load(path, values={"sizes": np.array([1, 3, 4, 4], np.int32)})
    assert other.graph.tensors["z"].shape == (1, 3, 4, 4)
    assert other.fingerprint == model.fingerprint
    assert _place(model, nets.ENGINE, cache) != _place(other, nets.ENGINE, cache)
    for kept in (cache / "values").iterdir():
        kept.write_bytes(b"rotten")
    with pytest.raises(ModelError, match="--value sizes="):
        load(path)


def test_small_values_travel_with_the_graph_and_large_ones_do_not(tmp_path: Path) -> None:
    path = resizing(tmp_path / "r.onnx")
    photo = np.random.default_rng(0).random((1, 3, 8, 8), np.float32)
    large = np.random.default_rng(0).random((1, 3, 8, 8), np.float32)
    model = load(path, values={"sizes": [1, 3, 16, 16], "x": np.concatenate([photo, large])})
    assert np.array_equal(samples_for(model, 1)[0]["x"], photo)
    device = from_graph(model.graph_bytes(), model.weights, name="r", expected=model.fingerprint)
    assert {n: v.tolist() for n, v in device.values.items() if n == "sizes"} == {"sizes": [1, 3, 16, 16]}
    assert all(c.ok for c in verify(device, nets.ENGINE, device.graph.prefixes()))
    wide = resizing(tmp_path / "wide.onnx", batch="N")
    model = load(wide, values={"sizes": [1, 3, 16, 16], "x": np.zeros((1, 3, 8, 8))})
    assert "x" in model.values
    big = np.ones((1, 3, 8, 8), np.float64) * 1e3
    assert big.nbytes > 1024
    sent = from_graph(load(wide, values={"x": big}).graph_bytes(), model.weights, name="r")
    assert "x" in sent.values  # 768 bytes as float32


def test_a_photo_stays_here(tmp_path: Path) -> None:
    net = nets.proto(
        [nets.node("Relu", ["x"], ["y"])], [nets.value("x", [1, 3, 16, 16])], [nets.value("y", [1, 3, 16, 16])]
    )
    model = load(nets.saved(net, tmp_path / "p.onnx"), values={"x": np.full((3, 16, 16), 0.25)})
    assert model.values["x"].nbytes > 1024
    assert VALUES_KEY not in {p.key for p in parse_skeleton(model.graph_bytes()).metadata_props}
    first, second = samples_for(model, 2)
    assert (first["x"] == 0.25).all()
    assert not (second["x"] == 0.25).all()
    assert all(c.ok for c in verify(model, nets.ENGINE, model.graph.prefixes()))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 3}, "the model has no input size; did you mean sizes"),
        ({"sizes": [1, 2, 3]}, r"the value for input sizes: int64\[4\] has another shape: 3 numbers came"),
        ({"sizes": [1.5, 3, 4, 4]}, r"input sizes: int64\[4\] does not fit its type: \[1.5, 3.0, 4.0, 4.0\]"),
        ({"sizes": ["a"] * 4}, "no array of numbers"),
        ({"sizes": [[1], [1, 2]]}, "no array of numbers"),
        ({"": 4}, "a value without a name is for a model with one input: its inputs are x, sizes"),
    ],
)
def test_values_that_do_not_fit(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(resizing(tmp_path / "r.onnx"), values=values)


def test_an_input_with_a_default_is_a_weight(tmp_path: Path) -> None:
    net = nets.proto(
        [nets.node("Clip", ["x", "low"], ["y"])], [nets.value("x", [1, 4]), nets.value("low", [])],
        [nets.value("y", [1, 4])], [nets.weight("low", np.float32(0.5))],
    )  # fmt: skip
    with pytest.raises(InputError, match="low has a default value in the model, which always counts"):
        load(nets.saved(net, tmp_path / "d.onnx"), values={"low": 0.1})
    model = load(tmp_path / "d.onnx")
    with pytest.raises(InputError, match=r"low has a default value in the model, .* leave it out"):
        check_inputs(model, {"x": np.zeros((1, 4), np.float32), "low": np.zeros((), np.float32)})


def test_a_run_on_made_up_inputs_says_what_to_do(tmp_path: Path) -> None:
    """Nothing is measured to open it, but nothing can be timed or verified either."""
    model = load(branching(tmp_path / "b.onnx"), values={"mode": 7})
    assert all(c.ok for c in verify(model, nets.ENGINE, model.graph.prefixes()))
    wrong = model.with_values({"mode": 3})
    for run in (lambda: list(verify(wrong, nets.ENGINE, [])), lambda: profile_model(wrong, nets.ENGINE, budget_s=1)):
        with pytest.raises(EngineError, match=r"give real ones with --input FILE.npz, or --value mode=…"):
            run()


def test_likely_values_by_name() -> None:
    specs = [
        TensorSpec("sr", "int64", ()), TensorSpec("iou_threshold", "float32", (1,)), TensorSpec("x", "float32", (2,)),
        TensorSpec("max_output_boxes_per_class", "int64", (1,)), TensorSpec("scale", "float32", ()),
    ]  # fmt: skip
    made = {t.name: np.full(t.shape, -1, t.dtype) for t in specs}
    found = with_values(made, specs, {})
    assert {n: v.reshape(-1)[0] for n, v in found.items()} == {
        "sr": 16000, "iou_threshold": 0.5, "x": -1, "max_output_boxes_per_class": 10, "scale": -1,
    }  # fmt: skip
    assert all(found[t.name].shape == t.shape and found[t.name].dtype == t.dtype for t in specs)
    assert with_values(made, specs, {"sr": np.int64(8000)[None].reshape(())})["sr"] == 8000


def test_where_all_is_given_another_sample_still_differs() -> None:
    specs = [TensorSpec("x", "float32", (2,)), TensorSpec("n", "int64", (1,))]
    values = {"x": np.array([1, 2], np.float32), "n": np.array([4])}
    made = {"x": np.array([0.5, -0.5], np.float32), "n": np.array([1])}
    found = varied(made, specs, values)
    assert found["n"].tolist() == [4]
    assert np.allclose(found["x"], [1.1, 1.9])


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        '{"x": 1}',
        '{"x": ["float32", [2], "AAAA"]}',
        '{"x": ["object", [1], "AAAA"]}',
        '{"sizes": ["int64", [3], "' + "A" * 32 + '"]}',
    ],
)
def test_broken_metadata_is_refused(tmp_path: Path, text: str) -> None:
    model = load(resizing(tmp_path / "r.onnx"), values={"sizes": [1, 3, 4, 4]})
    skeleton = parse_skeleton(model.graph_bytes())
    next(p for p in skeleton.metadata_props if p.key == VALUES_KEY).value = text
    with pytest.raises(ModelError, match=r"splitpoint\.values metadata is broken"):
        from_graph(skeleton.SerializeToString(), model.weights, name="r")


def test_a_disk_that_cannot_be_written_ends_nothing(tmp_path: Path, cache: Path) -> None:
    cache.write_bytes(b"a file where the folder should be")
    model = load(resizing(tmp_path / "r.onnx"), values={"sizes": [1, 3, 4, 4]})
    assert remembered(model.fingerprint, model.inputs) == {}


# --- the command line -------------------------------------------------------------------------------------------------

OPENING = (
    "inspect",
    "split",
    "verify",
    "profile",
    "serve",
    "run",
    "sweep",
    "compare",
    "calibrate-codecs",
    "plan",
    "predict",
)


@pytest.mark.parametrize("verb", OPENING)
def test_every_verb_that_opens_a_model_takes_values(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = ok(capsys, verb, "--help")
    assert "--value NAME=" in text
    assert "--input FILE" in text


def test_values_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = resizing(tmp_path / "r.onnx")
    assert main(["inspect", str(path)]) == 3
    assert "--value sizes=…" in capsys.readouterr().err
    assert "1×3×16×12" in ok(capsys, "inspect", path, "--value", "sizes=1,3,16,12")
    assert main(["verify", str(path)]) == 0
    assert "r: as given before, sizes = 1,3,16,12 (--value gives others)" in capsys.readouterr().err
    ok(capsys, "split", path, "--at", "act", "-o", tmp_path / "parts")
    ok(capsys, "profile", path, "--budget", "2s", "-o", tmp_path / "p.json")
    assert "values" in ok(capsys, "cache", "--clear")
    assert main(["inspect", str(path)]) == 3
    capsys.readouterr()
    file = tmp_path / "given.npz"
    file.write_bytes(npz_bytes({"sizes": np.array([1, 3, 4, 4]), "x": np.zeros((1, 3, 8, 8), np.float32)}))
    assert "1×3×4×4" in ok(capsys, "inspect", path, "--input", file)
    assert "4 cuts equal" in ok(capsys, "verify", path, "--cuts", "all", "--input", file)


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--value", "sizes"], 2, "--value is NAME=NUMBER or NAME=NUMBER,NUMBER,…, not sizes"),
        (["--value", "sizes=a"], 2, "not sizes=a"),
        (["--value", "sizes=1,2"], 4, "2 numbers came"),
        (["--input", "photo.jpg"], 2, "--input takes values from an .npy or .npz file"),
        (["--input", "gone.npz"], 4, "no such file"),
    ],
)
def test_wrong_values_on_the_command_line(
    options: list[str], status: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(resizing(tmp_path / "r.onnx")), *options]) == status
    assert message in capsys.readouterr().err


def test_an_input_may_have_any_name(tmp_path: Path) -> None:
    arrays = {name: np.arange(3) for name in ("file", "a b", "a=b", "a/b")}
    (tmp_path / "n.npz").write_bytes(npz_bytes(arrays))
    assert {n: v.tolist() for n, v in load_arrays(tmp_path / "n.npz").items()} == {name: [0, 1, 2] for name in arrays}
