"""The command line as a user meets it: real processes where a server or a signal is the point."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from commands import PYTHON, Serving, fails, ok

from splitpoint.cli.verbs import VERBS
from splitpoint.models.zoo import digits, photos

# --- without a server -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Usage: splitpoint" in ok(capsys, verb, "--help")


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    text = ok(capsys, "--help")
    assert all(verb in text for verb in VERBS)


@pytest.mark.parametrize(
    ("args", "status", "hint"),
    [
        (["inspekt"], 2, "inspect"),
        (["inspect", "zoo:efficientnet"], 3, "efficientnet_lite0"),
        (["inspect", "alexnett"], 3, "alexnet"),
        (["inspect", "nowhere.onnx"], 3, "no such file"),
        (["inspect", "lenet", "--shape", "image"], 2, "--shape is NAME="),
        (["inspect", "lenet", "--shape", "img=1,32,32,1"], 3, "image"),
        (["inspect", "lenet", "--weights", "own.pth"], 3, "--weights is for"),
        (["split", "lenet", "--at", "conv3", "-o", "x"], 2, "conv2"),
        (["split", "lenet", "--at", "99", "-o", "x"], 2, "0…"),
        (["verify", "lenet", "--cuts", "some"], 2, "chain, all or a number"),
        (["verify", "lenet", "--device", "cuda9"], 5, "cuda"),
        (["run", "zoo:lenet5"], 2, "say what to run"),
        (["run", "nowhere.jpg"], 4, "no such file"),
        (["run", "--cloud", "127.0.0.1:1", "lenet", str(digits()[0])], 6, "127.0.0.1:1"),
        (["doctor", "--cloud", "127.0.0.1:1"], 6, "127.0.0.1:1"),
        (["run", "lenet", str(digits()[0]), "--at", "conv2"], 2, "add --cloud"),
        (["run", "lenet", str(digits()[0]), "--cloud", "127.0.0.1:1", "--shape", "image=1,2"], 2, "the server's"),
        (["run", "lenet", str(digits()[0]), "--save", "nowhere/x.npz"], 7, "there is no folder"),
        (["run", "lenet", str(digits()[0]), "--save", "x.txt"], 2, "x.npz"),
        (["sweep", "lenet", "--cloud", "127.0.0.1:1", "--csv", "nowhere/x.csv"], 7, "there is no folder"),
        (["serve", "zoo:lenet5", "--port", "0", "--device", "openvino"], 5, "onnxruntime-openvino"),
    ],
)  # fmt: skip
def test_mistakes_get_a_sentence_and_a_status(
    args: list[str], status: int, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert hint in fails(capsys, status, *args)
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_images_or_no_models(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photos()[0].read_bytes()[:3000])
    assert "broken.jpg" in fails(capsys, 4, "run", "zoo:efficientnet_lite0", broken)
    text = tmp_path / "text.onnx"
    text.write_text("not a model")
    assert "not an ONNX file" in fails(capsys, 3, "inspect", text)
    (tmp_path / "empty").mkdir()
    assert "holds no images" in fails(capsys, 4, "run", "zoo:lenet5", tmp_path / "empty")
    wrong = tmp_path / "wrong.npy"
    np.save(wrong, np.zeros((1, 3, 8, 8), np.float32))
    assert "uint8[batch,32,32,1]" in fails(capsys, 4, "run", "zoo:lenet5", wrong)


# --- with a server ----------------------------------------------------------------------------------------------------


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = " ".join([*PYTHON, "inspect", "zoo:efficientnet_lite0"]) + " | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


# --- other people's models --------------------------------------------------------------------------------------------


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A classifier of three classes as others export them: float NCHW, free height and width, no metadata."""
    from onnx import helper

    import nets

    nodes = [
        helper.make_node("Conv", ["images", "w"], ["c"], name="/body/conv/Conv", kernel_shape=[3, 3]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], name="/pool/GlobalAveragePool"),
        helper.make_node("Flatten", ["p"], ["scores"], name="/head/Flatten"),
    ]
    shape = ["batch", 3, "height", "width"]
    inputs, outputs = [nets.value("images", shape)], [nets.value("scores", ["batch", 3])]
    model = nets.proto(nodes, inputs, outputs, [nets.normal("w", 3, 3, 3, 3)])
    return nets.saved(model, tmp_path / "plain.onnx")


def test_a_plain_onnx_file_reads_photos_once_told_how(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--shape images=1,3,N,N" in fails(capsys, 3, "inspect", plain)
    fixed = ["--shape", "images=1,3,64,64"]
    assert "body.conv" in ok(capsys, "inspect", plain, *fixed)
    message = fails(capsys, 4, "run", plain, photos()[0], *fixed)
    assert "--input-spec" in message
    pasted = tmp_path / "spec.json"
    example = json.loads(message[message.index("{") : message.rindex("}") + 1])
    assert example["size"] == [64, 64]
    pasted.write_text(json.dumps(example | {"labels": ["red", "green", "blue"]}))
    text = ok(capsys, "run", plain, photos()[0], *fixed, "--input-spec", pasted)
    assert any(color in text for color in ("red", "green", "blue"))
    ok(capsys, "verify", plain, *fixed, "--input-spec", pasted, "--input", photos()[0], "--input", photos()[1])
    pasted.write_text(json.dumps(example | {"sized": 3}))
    assert "size" in fails(capsys, 4, "run", plain, photos()[0], *fixed, "--input-spec", pasted)


def test_a_model_without_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    import nets

    net = nets.proto([nets.node("Tanh", ["c"], ["y"])], [], [nets.value("y", [4])], [nets.weight("c", np.ones(4, "f"))])
    path = nets.saved(net, tmp_path / "none.onnx")
    text = ok(capsys, "inspect", path)
    assert "in   nothing" in text
    assert "1 cut point, 0 of them" in text
    assert "has no inputs: its one answer is the same at 1 cut" in ok(capsys, "verify", path)
    profile = tmp_path / "p.json"
    ok(capsys, "profile", path, "--budget", "1s", "-o", profile, "--csv", tmp_path / "p.csv")
    assert "nothing to split" in ok(capsys, "plan", "--edge", profile, "--cloud", profile, "--link", "4g")
    np.savez(tmp_path / "empty.npz")
    assert "y float32[4] 0.762" in ok(capsys, "run", path, tmp_path / "empty.npz")
    np.save(tmp_path / "some.npy", np.ones(3))
    for wrong in (tmp_path / "some.npy", photos()[0]):
        assert "has no inputs, so that" in fails(capsys, 4, "run", path, wrong)
    serving = Serving(str(path))
    assert "y float32[4] 0.762" in ok(
        capsys, "run", "none", tmp_path / "empty.npz", "--cloud", serving.address, "--at", "0"
    )
    assert serving.end() == 0


def test_whatever_prints_a_cut_prints_what_selects_it(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Layers called like our own words, and like each other's tensors."""
    import nets
    from splitpoint.models import load
    from splitpoint.planning.files import load_plan

    names = ["stem", "input", "output", "2", "middle", "auto", "a b,c=d"]
    tensors = ["x", "auto", "t2", "t3", "t4", "t5", "t6", "y"]
    nodes = [
        nets.node("MatMul" if k % 2 else "Tanh", [tensors[k], *(["w"] if k % 2 else [])], [tensors[k + 1]], name=name)
        for k, name in enumerate(names)
    ]
    net = nets.proto(nodes, [nets.value("x", [1, 64])], [nets.value("y", [1, 64])], [nets.normal("w", 64, 64)])
    path = nets.saved(net, tmp_path / "names.onnx")
    graph = load(path).graph
    ok(capsys, "inspect", path, "--csv", tmp_path / "n.csv", "--names", tmp_path / "n.txt")
    rows = list(csv.DictReader((tmp_path / "n.csv").read_text().splitlines()))
    lines = (tmp_path / "n.txt").read_text().splitlines()
    for row, line, cut in zip(rows, ["cut:input", *lines], graph.prefixes(), strict=True):
        assert graph.cut(row["at"]).nodes == graph.cut(row["layer"]).nodes == graph.cut(line).nodes == cut.nodes
    table = ok(capsys, "inspect", path)
    assert "cut:2" in table
    assert "layer:2" in table
    for word in ("input", "middle", "output", "2", "auto"):
        said = fails(capsys, 2, "split", path, "--at", word, "-o", tmp_path / "parts")
        assert f"{word} means 2 things in names: say " in said
        assert f"layer:{word} (" in said
    text = ok(capsys, "split", path, "--at", "layer:input", "-o", tmp_path / "parts")
    assert "between them: t2: float32[1,64]" in text
    assert json.loads((tmp_path / "parts" / "manifest.json").read_text())["cut"] == "layer:input"
    profile, plan = tmp_path / "p.json", tmp_path / "plan.json"
    ok(capsys, "profile", path, "--budget", "3s", "-o", profile)
    ok(capsys, "plan", "--edge", profile, "--cloud", profile, "--link", "4g", "-o", plan)
    for option in load_plan(plan).options:
        assert tuple(sorted(graph.cut(option.cut).nodes)) == option.on_edge, option.cut
    serving = Serving(str(path))
    np.save(tmp_path / "x.npy", np.ones((1, 64), np.float32))
    run = ["run", path, tmp_path / "x.npy", "--cloud", serving.address]
    said = fails(capsys, 2, *run, "--at", "auto")
    assert "auto is also a name in names: say --at layer:auto or tensor:auto, or cut:auto to plan" in said
    assert "cut at layer:2: 4 of 7 nodes" in ok(capsys, *run, "--at", "layer:2")
    assert "names" in ok(capsys, *run, "--budget", "1s", "--at", "cut:auto")
    assert serving.end() == 0
