"""The command line as a user meets it: real processes where a server or a signal is the point."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from commands import PYTHON, Serving, fails, ok
from PIL import Image

from splitpoint.cli import main
from splitpoint.cli.verbs import VERBS
from splitpoint.models.zoo import digits, photos
from splitpoint.report.sweep_table import COLUMNS, SEED_COLUMNS
from splitpoint.tensors import load_arrays


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    server = Serving("zoo:efficientnet_lite0", "zoo:lenet5")
    yield server
    server.end()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPLITPOINT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- without a server -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Usage: splitpoint" in ok(capsys, verb, "--help")


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    text = ok(capsys, "--help")
    assert all(verb in text for verb in VERBS)


def test_inspect_lists_layers_and_what_crosses(capsys: pytest.CaptureFixture[str]) -> None:
    text = ok(capsys, "inspect", "lenet")
    assert "conv2" in text
    assert "1×16×10×10" in text
    assert "uint8[batch,32,32,1]" in text


@pytest.mark.parametrize("width", [80, 100, 200])
def test_inspect_fits_the_terminal(width: int) -> None:
    env = os.environ | {"COLUMNS": str(width), "TTY_COMPATIBLE": "1", "TERM": "dumb", "NO_COLOR": "1"}
    command = [*PYTHON, "inspect", "zoo:efficientnet_lite0"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert max(len(line) for line in done.stdout.splitlines()) <= width


def test_inspect_writes_json_csv_names_and_a_spreadsheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = json.loads(ok(capsys, "inspect", "lenet", "--json"))
    conv2 = next(r for r in out["rows"] if r["layer"] == "conv2")
    assert conv2["shape"] == [1, 16, 10, 10]
    assert conv2["memory_bytes"] == 6400
    assert 6400 < conv2["crossing_wire_bytes"] < 6500
    ok(capsys, "inspect", "lenet", "--csv", tmp_path / "l.csv", "--names", tmp_path / "layer_names.txt")
    with (tmp_path / "l.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(out["rows"])
    names = (tmp_path / "layer_names.txt").read_text().split()
    assert names[:3] == ["normalize", "conv1", "tanh1"]
    openpyxl = pytest.importorskip("openpyxl")
    ok(capsys, "inspect", "lenet", "--xlsx", tmp_path / "l.xlsx")
    sheet = openpyxl.load_workbook(tmp_path / "l.xlsx").active
    assert sheet.max_row == len(out["rows"]) + 1


def test_split_writes_halves_that_plain_onnxruntime_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime as ort

    text = ok(capsys, "split", "lenet", "--at", "pool1", "-o", tmp_path)
    assert "float32[1,6,14,14]" in text
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    head = ort.InferenceSession(str(tmp_path / manifest["head"]))
    tail = ort.InferenceSession(str(tmp_path / manifest["tail"]))
    image = np.random.default_rng(0).integers(0, 255, (1, 32, 32, 1), np.uint8)
    between = dict(zip((o.name for o in head.get_outputs()), head.run(None, {"image": image}), strict=True))
    assert tail.run(None, between)[0].shape == (1, 10)


def test_verify_says_equal_and_exits_1_when_it_is_not_conclusive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import nets

    assert "17 cuts equal the whole model" in ok(capsys, "verify", "lenet", "--cuts", "all")
    blank = tmp_path / "blank.png"
    Image.new("L", (32, 32)).save(blank)
    assert "all equal" in fails(capsys, 2, "verify", "lenet", "--input", blank, "--input", blank)
    nodes = [nets.node("Mul", ["x", "zero"], ["gone"]), nets.node("Add", ["gone", "bias"], ["y"])]
    weights = [nets.weight("zero", np.zeros(1, np.float32)), nets.normal("bias", 8)]
    deaf = nets.proto(nodes, [nets.value("x", ["batch", 8])], [nets.value("y", ["batch", 8])], weights)
    message = fails(capsys, 1, "verify", nets.saved(deaf, tmp_path / "deaf.onnx"))
    assert "inconclusive" in message


def test_doctor_says_what_this_machine_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    text = ok(capsys, "doctor")
    assert "onnxruntime" in text
    assert re.search(r"cuda      (yes|no   .*pip uninstall -y onnxruntime && .*pip install onnxruntime-gpu\n)", text)
    assert "telemetry  off" in text


def test_run_without_a_server_runs_everything_here(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "espresso" in ok(capsys, "run", "zoo:efficientnet_lite0", photos()[2])


@pytest.mark.parametrize(
    ("args", "status", "hint"),
    [
        (["inspekt"], 2, "inspect"),
        (["inspect", "zoo:efficientnet"], 3, "efficientnet_lite0"),
        (["inspect", "alexnett"], 3, "alexnet"),
        (["inspect", "nowhere.onnx"], 3, "no such file"),
        (["inspect", "lenet", "--shape", "image"], 2, "--shape is NAME="),
        (["inspect", "lenet", "--shape", "img=1,32,32,1"], 3, "image"),
        (["inspect", "lenet", "--weights", "random"], 3, "--weights is for"),
        (["split", "lenet", "--at", "conv3", "-o", "x"], 2, "conv2"),
        (["split", "lenet", "--at", "99", "-o", "x"], 2, "0…"),
        (["verify", "lenet", "--cuts", "some"], 2, "chain, all or a number"),
        (["verify", "lenet", "--device", "cuda9"], 5, "cuda"),
        (["run", "zoo:lenet5"], 2, "say what to run"),
        (["run", "nowhere.jpg"], 4, "no such file"),
        (["run", "--cloud", "127.0.0.1:1", "lenet", str(digits()[0])], 6, "127.0.0.1:1"),
        (["doctor", "--cloud", "127.0.0.1:1"], 6, "127.0.0.1:1"),
        (["run", "lenet", str(digits()[0]), "--at", "conv2"], 2, "add --cloud"),
        (["run", "lenet", str(digits()[0]), "--cloud", "127.0.0.1:1", "--weights", "random"], 2, "the server's"),
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


def test_run_prints_labels_and_stages(serving: Serving, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = ok(capsys, "run", "efficientnet_lite0", "--cloud", serving.address, "--at", "blocks.5", *photos())
    assert "espresso" in text
    assert "Egyptian cat" in text
    for title in ("decode", "edge", "encode", "net", "queue", "server", "total", "median"):
        assert title in text


def test_run_json_lines_add_up_and_equal_the_uncut_model(
    serving: Serving, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "outputs.npz"
    text = ok(capsys, "run", "efficientnet_lite0", "--cloud", serving.address, "--at", "blocks.7", "--json",
              "--save", saved, *photos())  # fmt: skip
    rows = [json.loads(line) for line in text.splitlines()]
    assert [Path(r["input"]).name for r in rows] == [p.name for p in photos()]
    for row in rows:
        stages = dict(row["ms"])
        total = stages.pop("total")
        assert sum(stages.values()) == pytest.approx(total, abs=0.01)
        assert all(value >= 0 for value in stages.values())
    ok(capsys, "run", "zoo:efficientnet_lite0", "--save", tmp_path / "whole.npz", *photos())
    cut, whole = load_arrays(saved), load_arrays(tmp_path / "whole.npz")
    assert list(cut) == list(whole) == [f"{p.stem}/logits" for p in photos()]
    for name in cut:
        np.testing.assert_allclose(cut[name], whole[name], atol=2e-4)
    logits = list(whole.values())
    assert max(np.abs(a - logits[0]).max() for a in logits[1:]) > 1  # the answers do differ from photo to photo


def test_run_streams_a_folder_and_passes_over_what_is_broken(
    serving: Serving, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for photo in photos():
        shutil.copy(photo, folder)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    status = main(["run", "efficientnet_lite0", "--cloud", serving.address, str(folder)])
    captured = capsys.readouterr()
    assert status == 4
    assert "1 of 5 inputs could not be read; the others were answered" in captured.err
    assert "broken.png" in captured.err
    answered = [line.split()[0] for line in captured.out.splitlines() if ".jpg" in line]
    assert answered == sorted(p.name for p in photos())


def test_an_answer_without_labels_is_described_and_ends_nothing(
    serving: Serving, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "two.npy", np.zeros((2, 32, 32, 1), np.uint8))
    shutil.copy(digits()[0], tmp_path / "zero.png")
    text = ok(capsys, "run", "lenet", "--cloud", serving.address, tmp_path)
    assert "float32[2,10]" in text
    assert any(line.startswith("zero.png") for line in text.splitlines())


@pytest.mark.parametrize("at", ["input", "output", "3", "pool1"])
def test_run_anywhere(at: str, serving: Serving, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digit = digits()[0]
    text = ok(capsys, "run", "lenet", "--cloud", serving.address, "--at", at, digit)
    line = next(line for line in text.splitlines() if line.startswith(digit.name))
    assert line.split()[1] == digit.stem


def test_run_reads_standard_input(serving: Serving, cache: Path) -> None:
    command = [*PYTHON, "run", "efficientnet_lite0", "--cloud", serving.address, "-"]
    done = subprocess.run(command, input=photos()[2].read_bytes(), capture_output=True, check=True)
    assert b"espresso" in done.stdout


def test_every_row_of_inspect_and_sweep_names_its_own_cut(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside parallel branches the last node's name means a smaller cut: such rows are called prefix:K."""
    import nets
    from splitpoint.models import load

    nodes = [
        nets.node("MatMul", ["a", "wl"], ["l1"], name="left"),
        nets.node("Relu", ["l1"], ["l2"], name="left_relu"),
        nets.node("MatMul", ["a", "wr"], ["r1"], name="right"),
        nets.node("Tanh", ["r1"], ["r2"], name="right_tanh"),
        nets.node("Add", ["l2", "r2"], ["y"], name="add"),
    ]
    shape = ["batch", 8]
    weights = [nets.normal("wl", 8, 8), nets.normal("wr", 8, 8)]
    net = nets.proto(nodes, [nets.value("a", shape)], [nets.value("y", shape)], weights)
    path = nets.saved(net, tmp_path / "b.onnx")
    graph = load(path).graph
    rows = json.loads(ok(capsys, "inspect", path, "--json"))["rows"]
    assert [r["at"] for r in rows] == ["input", "left", "left_relu", "prefix:3", "prefix:4", "output"]
    for row, cut in zip(rows, graph.prefixes(), strict=True):
        assert graph.cut(row["at"]).nodes == cut.nodes
        assert [t.name for t in graph.cut(row["at"]).crossing] == row["crossing"]


def test_pull_then_cache(serving: Serving, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = ok(capsys, "pull", "lenet", "--cloud", serving.address)
    assert "fetched 245.3 kB" in first
    assert "fetched 0 B" in ok(capsys, "pull", "lenet", "--cloud", serving.address)
    assert str(cache) in ok(capsys, "cache")
    assert "cleared" in ok(capsys, "cache", "--clear")
    assert ": 0 files" in ok(capsys, "cache")


def test_doctor_reaches_a_server(serving: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    text = ok(capsys, "doctor", "--cloud", serving.address)
    assert "reachable" in text
    assert "lenet5" in text


def test_two_models_ask_which(serving: Serving, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, 2, "run", "--cloud", serving.address, photos()[0])
    assert "lenet5" in message
    message = fails(capsys, 3, "run", "resnet50", "--cloud", serving.address, photos()[0])
    assert "efficientnet_lite0" in message


def test_something_else_on_the_port(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import threading

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            peer, _ = listening.accept()
            with peer:
                peer.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                peer.recv(4096)

        thread = threading.Thread(target=greet)
        thread.start()
        message = fails(capsys, 6, "doctor", "--cloud", f"127.0.0.1:{listening.getsockname()[1]}")
        thread.join()
    assert "SSH-2.0" in message


def test_sweep_writes_the_seeds_columns_and_resumes(
    serving: Serving, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "split_latency_results.csv"
    command = ["sweep", "lenet", "--cloud", serving.address, "--repeat", "1", "--images", digits()[0].parent]
    text = ok(capsys, *command, "--csv", path, "--cuts", "5")
    assert "fastest" in text
    with path.open(newline="") as file:
        header = file.readline().strip()
        assert header.startswith("split_layer,avg_compute,avg_transfer,avg_recv,avg_rtt")
        assert header == ",".join(COLUMNS)
        file.seek(0)
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    assert rows[0]["split_layer"] == "input"
    assert rows[-1]["split_layer"] == "output"
    for row in rows:
        compute, transfer, recv, rtt = (float(row[c]) for c in SEED_COLUMNS[1:])
        assert compute + transfer + recv == pytest.approx(rtt, rel=1e-9)
        assert rtt > 0
        assert min(compute, transfer, recv) >= 0
    before = path.read_text().splitlines()
    ok(capsys, *command, "--csv", path, "--cuts", "chain")
    after = path.read_text().splitlines()
    assert len(after) == 18
    assert set(before) <= set(after)  # what was measured is not measured again
    ok(capsys, *command, "--csv", path, "--cuts", "3")
    assert path.read_text().splitlines() == after  # nor lost
    message = fails(capsys, 2, *command, "--csv", path, "--repeat", "2")
    assert "was measured otherwise" in message
    message = fails(capsys, 2, "sweep", "efficientnet_lite0", "--cloud", serving.address, "--csv", path)
    assert "--fresh" in message


def test_sweep_writes_once_where_nothing_can_be_written_anew(
    serving: Serving, cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "lenet", "--cloud", serving.address, "--repeat", "1", "--images", str(digits()[0]),
                 "--csv", "-", "--cuts", "3"]) == 0  # fmt: skip
    out, err = capfd.readouterr()
    assert [row["split_layer"] for row in csv.DictReader(out.splitlines())][::2] == ["input", "output"]
    assert out.count("split_layer") == 1
    assert "fastest" in err


def test_outputs_are_saved_to_a_pipe(
    serving: Serving, cache: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["run", "lenet", "--cloud", serving.address, "--at", "input", "--save", "-", str(digits()[0])]) == 0
    out, err = capfdbinary.readouterr()
    assert [a.shape for a in load_arrays(out).values()] == [(1, 10)]
    assert b"cut at input" in err


def test_sweep_draws(serving: Serving, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    ok(capsys, "sweep", "lenet", "--cloud", serving.address, "--repeat", "1", "--images", digits()[0],
       "--csv", tmp_path / "s.csv", "--png", tmp_path / "s.png", "--cuts", "3")  # fmt: skip
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 600


def test_missing_extras_are_asked_for_by_name(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    assert "the extra [xlsx]" in fails(capsys, 2, "inspect", "lenet", "--xlsx", tmp_path / "x.xlsx")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_ends_cleanly(number: int) -> None:
    server = Serving("zoo:lenet5")
    assert server.end(number) == 0
    assert "Traceback" not in "".join(server.said)


def test_port_in_use_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = fails(capsys, 6, "serve", "zoo:lenet5", "--port", port)
    assert str(port) in message


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = " ".join([*PYTHON, "inspect", "zoo:efficientnet_lite0"]) + " | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_demo_shows_labels_and_the_proof() -> None:
    done = subprocess.run([*PYTHON, "demo"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "espresso" in done.stdout
    assert "The uncut model gives" in done.stdout


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
