"""`splitpoint serve` and what it is given: folders, broken files, limits."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from commands import Serving, fails
from serving import affine, evaluate, nothing_leaks

import nets
from splitpoint.cli import main
from splitpoint.cli import serve as serve_verb
from splitpoint.cli.serve import Log
from splitpoint.engines import open_engine
from splitpoint.lab.process import PIPES, Process
from splitpoint.runtime.client.edge import Edge


def serve(*arguments: str) -> Process:
    command = [sys.executable, "-u", "-m", "splitpoint", "serve", *arguments, "--port", "0", "--until-stdin-ends"]
    return Process(subprocess.Popen(command, **PIPES), "server")


def test_a_folder_with_broken_files_serves_the_others_and_names_those(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    good = [affine(folder, name=name, seed=seed) for seed, name in enumerate(("first", "second"))]
    whole = (folder / "first.onnx").read_bytes()
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "half.onnx").write_bytes(whole[: len(whole) // 2])
    (folder / "noise.onnx").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "notes.txt").write_text("not a model")
    (folder / "gone.onnx").symlink_to(tmp_path / "nowhere")
    engine = open_engine(threads=1)
    with nothing_leaks():
        server = serve(str(folder), "--threads", "1")
        try:
            address = server.expect("serving on ").split()[2]
            for model in good:
                with Edge(address, model.name, at="y1", cache=tmp_path / "cache", engine=engine) as edge:
                    assert [m.name for m in edge.served] == ["first", "second"]
                    x = np.ones((1, 1024), np.float32)
                    np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-5)
            said = server.complaints()
        finally:
            server.close()
    assert server.process.returncode == 0
    for name in ("empty.onnx", "half.onnx", "noise.onnx", "gone.onnx"):
        (line,) = [line for line in said if str(folder / name) in line]
        assert line.startswith("not served: "), line
    assert len(said) == 4, said


def test_the_same_model_under_two_names_is_said(tmp_path: Path) -> None:
    affine(tmp_path, name="first")
    (tmp_path / "second.onnx").write_bytes((tmp_path / "first.onnx").read_bytes())
    server = serve(str(tmp_path), "--threads", "1")
    try:
        assert server.expect("second ").endswith("the same model as first")
        server.expect("serving on ")
    finally:
        server.close()


@pytest.mark.parametrize(
    ("files", "words"),
    [({}, "has no .onnx file"), ({"a.onnx": b"broken"}, "has no model that can be served")],
)
def test_a_folder_with_nothing_to_serve_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, bytes], words: str
) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    code, said = run(["serve", str(tmp_path)], capsys)
    assert code == 3
    assert words in said
    assert all(name in said for name in files)


def test_a_broken_file_that_was_asked_for_by_name_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    affine(tmp_path)
    (tmp_path / "broken.onnx").write_bytes(b"broken")
    code, said = run(["serve", str(tmp_path / "affine.onnx"), str(tmp_path / "broken.onnx")], capsys)
    assert code == 3
    assert "broken.onnx" in said


def test_a_model_among_several_that_cannot_be_opened_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    affine(tmp_path)
    free = [nets.value("x", ["N", 3, "H"])], [nets.value("y", ["N", 3, "H"])]
    path = nets.saved(nets.proto([nets.node("Relu", ["x"], ["y"])], *free, []), tmp_path / "free.onnx")
    code, said = run(["serve", str(tmp_path / "affine.onnx"), str(path)], capsys)
    assert code == 3
    assert f"{path}: input x: float32[N,3,H] has free dimensions (H): fix them with --shape x=1,3,N" in said


def test_weights_of_several_models_stand_behind_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    code, said = run(["serve", "alex_net", "le_net@random:2", "--weights", "random:1"], capsys)
    assert code == 2
    assert "serve alex_net@random:1 le_net@random:2" in said


def test_options_of_one_model_are_not_for_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    affine(tmp_path)
    code, said = run(["serve", str(tmp_path), "--shape", "x=1,1024"], capsys)
    assert code == 2
    assert "describe one model" in said


@pytest.mark.parametrize("option", ["--queue", "--connections", "--client-connections", "--max-profile", "--port"])
@pytest.mark.parametrize("value", ["-1", "nan", "many", "", "1e99"])
def test_limits_that_make_no_sense_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    code, said = run(["serve", str(tmp_path / "never-read.onnx"), option, value], capsys)
    assert code == 2
    assert option in said or "the limit " in said


def run(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = main(list(arguments))
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return status, said.err


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


# --- the log ----------------------------------------------------------------------------------------------------------


def test_all_lines_are_written_before_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with Log() as lines:
        for k in range(100):
            lines.say(f"line {k}", err=k % 2 == 1)
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [f"line {k}" for k in range(0, 100, 2)]
    assert printed.err.splitlines() == [f"line {k}" for k in range(1, 100, 2)]


def test_the_oldest_lines_are_lost_where_nobody_reads_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    reads, begun, written = threading.Event(), threading.Event(), list[str]()

    def echo(text: str, err: bool) -> None:
        begun.set()
        reads.wait()
        written.append(text)

    monkeypatch.setattr(serve_verb, "_HELD", 3)
    monkeypatch.setattr(serve_verb.click, "echo", echo)
    with Log() as lines:
        lines.say("first")
        assert begun.wait(30)
        for k in range(5):
            lines.say(f"line {k}")
        reads.set()
    assert written == ["first", "2 lines of this log were lost: it was not read", "line 2", "line 3", "line 4"]
