"""splitpoint predict: what it prints and writes, and which latency files it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from commands import fails, ok
from latencies import latency
from plans import model_of
from plans import profile as hand_made
from predicted_nets import EFFICIENT, LENET

from splitpoint.cli import main
from splitpoint.predict.kernels.kernels import kernels_of
from splitpoint.predict.learn.files import load_latency, save_latency
from splitpoint.predict.price.prediction import predict_latency
from splitpoint.profile.files import load_profile, save_profile


def test_predict_prints_kernels_the_whole_and_what_comes_next(
    latency_files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = latency_files / "device.latency.json"
    text = ok(capsys, "predict", "--on", device, EFFICIENT)
    for words in (
        "predicted: nothing was run", "on device: Cortex-A72, onnxruntime on cpu, 1 thread", "for eight of ten",
        "2: conv dw_conv", "not calibrated, priced by FLOPs and bytes: 1 kernel", "ReduceMean", "blocks.3",
        "beside them up to 0.050 ms that a run costs after a pause",
        f"next: splitpoint plan {EFFICIENT} --edge {device} --cloud HOST",
    ):  # fmt: skip
        assert words in text
    assert text.replace(EFFICIENT, "") != ok(capsys, "predict", EFFICIENT, "--on", device, "--all").replace(
        EFFICIENT, ""
    )
    found = json.loads(ok(capsys, "predict", EFFICIENT, "--on", device, "--json"))
    assert found["whole_ms"] == pytest.approx(predict_latency(model_of(EFFICIENT), load_latency(device)).whole.median)
    assert [u["op"] for u in found["uncalibrated"]] == ["ReduceMean"]
    assert len(found["kernels"]) == len(kernels_of(model_of(EFFICIENT)))


def test_too_little_data_is_repeated_by_predict_its_profile_and_plan(
    latency_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latency = load_latency(latency_files / "device.latency.json")
    conv = msgspec.structs.replace(latency.kinds["conv"], networks=3, shared=0.4)
    few = msgspec.structs.replace(latency, kinds={**latency.kinds, "conv": conv}, lacking=("conv",))
    path, profile = tmp_path / "few.latency.json", tmp_path / "few.profile.json"
    save_latency(path, few)
    sentence = "too little was measured of conv (3 networks): ranges are wide for that; measure on with a longer budget"
    assert sentence in " ".join(ok(capsys, "predict", EFFICIENT, "--on", path, "-o", profile).split())
    assert sentence in json.loads(ok(capsys, "predict", EFFICIENT, "--on", path, "--json"))["too_little"]
    assert sentence in load_profile(profile).note
    assert main(["plan", EFFICIENT, "--edge", str(path), "--cloud", "neurosurgeon-cloud", "--link", "wifi"]) == 0
    captured = capsys.readouterr()
    assert sentence in " ".join((captured.out + captured.err).split())
    wide, narrow = (predict_latency(model_of(EFFICIENT), x).whole for x in (few, latency))
    assert wide.p90 / wide.p10 > narrow.p90 / narrow.p10
    assert predict_latency(model_of(EFFICIENT), latency).too_little == ""


def test_predict_fits_a_narrow_terminal(latency_files: Path) -> None:
    env = os.environ | {"COLUMNS": "80", "TTY_COMPATIBLE": "1", "TERM": "xterm", "NO_COLOR": "1"}
    words = [
        sys.executable,
        "-m",
        "splitpoint",
        "predict",
        EFFICIENT,
        "--on",
        str(latency_files / "device.latency.json"),
    ]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    lines = [line.replace("\x1b[1m", "").replace("\x1b[0m", "") for line in done.stdout.splitlines()]
    assert max(len(line) for line in lines if not line.startswith("next: ")) <= 80
    assert len(lines) < 50


def test_files_that_predict_writes(latency_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device, edge = latency_files / "device.latency.json", tmp_path / "edge.profile.json"
    ok(capsys, "predict", LENET, "--on", device, "-o", edge, "--csv", tmp_path / "k.csv")
    assert load_profile(edge).graph.name == "lenet5"
    assert (tmp_path / "k.csv").read_text().splitlines()[0].startswith("layer,kind,ops,kernels,ms,low_ms")
    assert "split" in ok(capsys, "plan", "--edge", edge, "--cloud", edge, "--link", "4g")
    # what was predicted is no measurement
    message = fails(capsys, 4, "predict", LENET, "--on", device, "--measured", edge)
    assert "no measured time in it" in message


def test_a_measured_profile_corrects_what_the_command_says(
    latency_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device, model = latency_files / "device.latency.json", model_of(LENET)
    plain = json.loads(ok(capsys, "predict", LENET, "--on", device, "--json"))["whole_ms"]
    save_profile(tmp_path / "m.profile.json", hand_made(model.graph, 2 * plain, model.fingerprint))
    (tmp_path / "run.jsonl").write_text(
        "\n".join(json.dumps({"cut": "output", "spans_ms": {"head": 2 * plain}}) for _ in range(5))
    )
    for more in (("--measured", tmp_path / "m.profile.json"), ("--traces", tmp_path / "run.jsonl")):
        found = json.loads(ok(capsys, "predict", LENET, "--on", device, "--json", *more))
        assert found["measured"] > 0
        assert found["whole_ms"] == pytest.approx(2 * plain, rel=0.1)
    assert "corrected by" in ok(capsys, "predict", LENET, "--on", device, "--traces", tmp_path / "run.jsonl")
    others = hand_made(model.graph, 2 * plain, model.fingerprint, threads=4)
    save_profile(tmp_path / "m.profile.json", others)
    message = fails(capsys, 4, "predict", LENET, "--on", device, "--measured", tmp_path / "m.profile.json")
    assert "was measured with 4 threads, device with 1 thread" in message
    ok(capsys, "predict", LENET, "--on", device, "--measured", tmp_path / "m.profile.json", "--force")
    message = fails(capsys, 4, "predict", EFFICIENT, "--on", device, "--measured", tmp_path / "m.profile.json")
    assert "not of efficientnet_lite0" in message


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--threads", "4"), "was made with 1 thread, not with 4 threads"),
        (("--device", "cuda"), "was made with device cpu, not with device cuda"),
    ],
)
def test_another_device_or_thread_count_is_refused_or_warned_of(
    latency_files: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, str], said: str
) -> None:
    device = latency_files / "device.latency.json"
    assert said in fails(capsys, 4, "predict", LENET, "--on", device, *more)
    assert main(["predict", LENET, "--on", str(device), *more, "--force"]) == 0
    assert f"warning: {device} {said}" in capsys.readouterr().err
    if more[0] == "--threads":
        words = (
            "plan",
            LENET,
            "--edge",
            device,
            "--cloud",
            latency_files / "server.latency.json",
            "--link",
            "4g",
            *more,
        )
        assert said in fails(capsys, 4, *words)
        ok(capsys, *words, "--force")


def test_another_engine_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.latency.json"
    save_latency(path, latency(engine="tvm"))
    assert "engine tvm, not with engine onnxruntime" in fails(capsys, 4, "predict", LENET, "--on", path)
    assert "engine tvm" in fails(capsys, 4, "plan", LENET, "--edge", path, "--cloud", path, "--link", "4g")
    ok(capsys, "predict", LENET, "--on", path, "--force")


@pytest.mark.parametrize("verb", ["predict", "plan"])
@pytest.mark.parametrize("damage", ["cut", "nan", "format", "profile", "text", "gone"])
def test_a_damaged_file_is_refused_in_one_sentence(
    latency_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, damage: str
) -> None:
    data = (latency_files / "device.latency.json").read_bytes()
    made = {
        "cut": data[: len(data) // 2],
        "nan": data.replace(b'"fixed_ms": 0.05', b'"fixed_ms": NaN'),
        "format": data.replace(b'"format": 1', b'"format": 99'),
        "profile": b'{"format": 1, "fingerprint": "ab", "segments": [], "whole": [1, 1, 1, 1]}',
        "text": b"conv: 3 ms",
    }
    path = tmp_path / "bad.latency.json"
    if damage != "gone":
        assert made[damage] != data
        path.write_bytes(made[damage])
    words = ("--on", path) if verb == "predict" else ("--edge", path, "--cloud", path, "--link", "4g")
    assert str(path) in fails(capsys, 4, verb, LENET, *words)


def test_what_is_missing_is_said(capsys: pytest.CaptureFixture[str], latency_files: Path) -> None:
    assert "Missing argument 'MODEL'" in fails(capsys, 2, "predict")
    assert "Missing option '--on'" in fails(capsys, 2, "predict", LENET)
    assert "neurosurgeon-edge" in fails(capsys, 4, "predict", LENET, "--on", "neurosurgeon-egde")
    assert "no model is called trian" in fails(
        capsys, 3, "predict", "trian", "--on", latency_files / "device.latency.json"
    )
    text = ok(capsys, "predict", "--help")
    for words in ("predict [OPTIONS] MODEL", "--on", "evaluate", "train"):
        assert words in text


def test_the_shipped_devices_work_at_once_and_say_whose_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    text = ok(capsys, "predict", EFFICIENT, "--on", "neurosurgeon-edge")
    edge, cloud = load_latency("neurosurgeon-edge"), load_latency("neurosurgeon-cloud")
    assert edge.note
    assert " ".join(edge.note.split()) in " ".join(text.split())
    words = (
        "plan",
        EFFICIENT,
        "--edge",
        "neurosurgeon-edge",
        "--cloud",
        "neurosurgeon-cloud",
        "--link",
        "wifi",
        "--json",
    )
    found = json.loads(ok(capsys, *words))
    assert edge.note in found["hosts"][0]
    assert cloud.note in found["hosts"][1]
    assert (
        predict_latency(model_of(EFFICIENT), edge).whole.median
        > predict_latency(model_of(EFFICIENT), cloud).whole.median
    )
