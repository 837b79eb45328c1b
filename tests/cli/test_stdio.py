"""The command's streams: closed, full, without a reader, in another encoding; what text of strangers does there."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from serving import until

from splitpoint.cli import main
from splitpoint.cli.stdio import ReaderGone, _Sink, _Text, styled
from splitpoint.engines import open_engine
from splitpoint.errors import StorageError
from splitpoint.models import load
from splitpoint.models.zoo import photos
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.server.server import Server
from splitpoint.tensors import load_arrays
from splitpoint.text import harmless, plain, valid

PYTHON = [sys.executable, "-m", "splitpoint"]
DIGITS = photos()[0].parents[1] / "digits"
DIGIT = DIGITS / "8.png"
#: A file name of an old archive (Latin-1), and one that would act on a terminal.
LATIN, ACTS = b"caf\xe9", b"\x1b]0;owned\x07\x1b[31mred\nline"


def shell(command: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    """`sp` in it is the command."""
    words = f'set -o pipefail; sp() {{ {" ".join(PYTHON)} "$@"; }}; {command}'
    return subprocess.run(["bash", "-c", words], capture_output=True, timeout=60, env={**os.environ, **env})


def lines(data: bytes) -> list[str]:
    return data.decode().splitlines()


# --- closed, full, gone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_device_works_with_closed_streams(closed: str, tmp_path: Path) -> None:
    """And none of its sockets gets the number of one: what it says would go to the server."""
    with Server([load("zoo:lenet5")], engine=open_engine(threads=1), port=0) as server:
        kept = tmp_path / "kept.npz"
        done = shell(f"sp run --cloud {server.address} --at pool1 {DIGIT} --save {kept} {closed}")
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
        assert load_arrays(kept)["8/logits"].shape == (1, 10)
        with Edge(server.address, at="pool1") as edge:  # which has nothing to complain of
            edge.infer(np.zeros((1, 32, 32, 1), np.uint8))


def test_standard_input_that_is_closed_is_empty() -> None:
    done = shell("sp run zoo:lenet5 - <&-")
    assert done.returncode == 4
    assert b"standard input is empty" in done.stderr


@pytest.mark.parametrize("words", [f"run zoo:lenet5 {DIGIT}", f"run zoo:lenet5 {DIGITS} --json", "inspect zoo:lenet5"])
def test_a_full_disk_behind_standard_output_is_one_sentence(words: str) -> None:
    done = shell(f"sp {words} >/dev/full")
    assert done.returncode == 7
    assert lines(done.stderr)[-1] == "splitpoint: cannot write standard output: No space left on device"
    assert b"Traceback" not in done.stderr


def test_what_was_answered_is_kept_although_it_could_not_be_printed(tmp_path: Path) -> None:
    assert shell(f"sp run zoo:lenet5 {DIGIT} --save {tmp_path / 'kept.npz'} >/dev/full").returncode == 7
    assert list(load_arrays(tmp_path / "kept.npz")) == ["8/logits"]


def test_what_cannot_be_said_is_not_said() -> None:
    done = shell(f"sp run zoo:lenet5 {DIGITS} --json 2>/dev/full")
    assert done.returncode == 0
    assert all(json.loads(line)["labels"] for line in lines(done.stdout))
    assert shell("sp inspect zoo:nothing 2>/dev/full").returncode == 3


@pytest.mark.parametrize("reader", ["head -1", "true"])
@pytest.mark.parametrize(
    "words",
    [
        "--help", "run --help", "inspect zoo:lenet5", f"run zoo:lenet5 {DIGITS} --json", "link --link 4g",
        f"run zoo:lenet5 {DIGITS} --save -", "profile zoo:lenet5 --budget 100ms -o -",
    ],
)  # fmt: skip
def test_a_reader_that_goes_is_no_error(words: str, reader: str) -> None:
    done = shell(f"sp {words} | {reader}")
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr


@contextmanager
def serving(stdout: int | IO[bytes], stderr: int | IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [*PYTHON, "serve", "zoo:lenet5", "--port", "0", "--threads", "1", "--verbose"],
        stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
    )  # fmt: skip
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def port_of(process: subprocess.Popen[bytes]) -> str:
    """Where it listens: its log may not say so."""
    inodes = set()
    for fd in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(OSError):
            inodes.add(os.readlink(fd).removeprefix("socket:[").removesuffix("]"))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ports = [int(row[1].partition(":")[2], 16) for row in rows if row[3] == "0A" and row[9] in inodes]
    return f"127.0.0.1:{ports[0]}" if ports else ""


needs_proc = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="finds a port of a silent server in /proc")


@needs_proc
@pytest.mark.parametrize("log", ["gone", "full", "not read", "both gone"])
def test_a_server_goes_on_whatever_becomes_of_its_log(log: str) -> None:
    reading, writing = os.pipe()
    if log in ("gone", "both gone"):
        os.close(reading)
    elif log == "full":
        os.close(writing)
        writing = os.open("/dev/full", os.O_WRONLY)
    else:
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(writing, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writing, b"x")
        os.set_blocking(writing, True)
    try:
        with serving(writing, writing if log == "both gone" else subprocess.PIPE) as process:
            addresses: list[str] = []
            assert until(lambda: bool(addresses.append(port_of(process)) or addresses[-1]), 60)
            for _ in range(3):
                with Edge(addresses[-1], "lenet5", at="pool1", patience=Patience(answer_s=30)) as edge:
                    edge.infer(np.zeros((1, 32, 32, 1), np.uint8))
        if process.stderr is not None:
            with process.stderr:
                said = lines(process.stderr.read())
            expected = {
                "gone": ["splitpoint: nobody reads the log on standard output any more; serving goes on"],
                "full": ["splitpoint: cannot write standard output: No space left on device; serving goes on"],
            }
            assert said == expected.get(log, [])
    finally:
        os.close(writing)
        if log == "not read":
            os.close(reading)


def test_a_pipe_that_somebody_made_non_blocking_takes_all() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    data = bytes(300_000)
    got: list[bytes] = []

    def read() -> None:
        while part := os.read(reading, 8192):
            got.append(part)

    reader = threading.Thread(target=read)
    sink = _Sink(writing)
    reader.start()
    assert sink.write(data) == len(data)
    os.close(writing)
    reader.join()
    os.close(reading)
    assert b"".join(got) == data


@pytest.mark.parametrize(("fd", "error"), [(1, True), (2, False)])
def test_after_a_failure_all_goes_nowhere(fd: int, error: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = os.open("/dev/full", os.O_WRONLY)
    sink = _Sink(taken)
    if error:
        monkeypatch.setattr("splitpoint.cli.stdio._STDOUT", taken)
        with pytest.raises(StorageError, match="No space left"):
            sink.write(b"x")
    sink.write(b"x")
    assert os.path.samestat(os.fstat(taken), os.stat(os.devnull))
    os.close(taken)


def test_whose_reader_has_gone_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr("splitpoint.cli.stdio._STDOUT", writing)
    with pytest.raises(ReaderGone):
        _Sink(writing).write(b"x")
    assert _Sink(writing).write(b"x") == 1
    os.close(writing)


# --- encodings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
    ids=["latin-1", "ascii", "C"],
)
def test_a_terminal_that_lacks_characters_gets_others(env: dict[str, str]) -> None:
    done = shell("sp plan zoo:lenet5 --edge neurosurgeon-edge --cloud neurosurgeon-cloud --link wifi", **env)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert not any(b in done.stdout for b in ("×".encode(), "…".encode()))
    assert b"all on the edge" in done.stdout


def test_json_is_utf_8_whatever_the_terminal_is() -> None:
    done = shell("sp inspect zoo:lenet5 --json", PYTHONIOENCODING="latin-1")
    assert json.loads(done.stdout.decode())["model"] == "lenet5"


# --- text of strangers ----------------------------------------------------------------------------------------------


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """A folder of digits whose names are not text, or act on a terminal, or are markup."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in (b"a", LATIN, ACTS, b"[bold]b[", b"z"):
        shutil.copy(DIGIT, os.fsencode(folder) + b"/" + name + b".png")
    return folder


def acts(data: bytes) -> bool:
    """Whether a terminal would do more than show it."""
    return harmless(text := data.decode("utf-8", "surrogateescape")) != text


@pytest.mark.parametrize("strict", [False, True])
def test_every_file_has_its_row_whatever_its_name(named: Path, strict: bool) -> None:
    env = {"PYTHONIOENCODING": "utf-8:strict"} if strict else {}
    done = shell(f"sp run zoo:lenet5 {named}", **env)
    assert done.returncode == 0, done.stderr
    assert not acts(done.stdout)
    rows = [line.split("  ")[0] for line in lines(done.stdout)]
    assert {"a.png", "caf\\xe9.png", "z.png", "[bold]b[.png"} <= set(rows)
    assert "]0;owned [31mred line.png" in rows


def test_names_are_kept_in_json_and_in_what_is_saved(named: Path, tmp_path: Path) -> None:
    done = shell(f"sp run zoo:lenet5 {named} --json --save {tmp_path / 'kept.npz'}")
    assert done.returncode == 0, done.stderr
    names = [json.loads(line)["input"].removeprefix(f"{named}/") for line in lines(done.stdout)]
    assert set(names) == {"a.png", "caf\\xe9.png", ACTS.decode() + ".png", "[bold]b[.png", "z.png"}
    assert not acts(done.stdout)
    kept = load_arrays(tmp_path / "kept.npz")
    assert "caf\\xe9/logits" in kept
    assert len(kept) == 5


def test_a_broken_file_is_named_on_one_line(named: Path) -> None:
    Path(os.fsdecode(os.fsencode(named) + b"/" + ACTS + b".png")).write_bytes(b"no image")
    done = shell(f"sp run zoo:lenet5 {named}")
    assert done.returncode == 4
    assert not acts(done.stderr)
    (line,) = [line for line in lines(done.stderr) if "is not an image" in line]
    assert line.startswith("splitpoint: ")


@pytest.mark.parametrize("stem", [LATIN, ACTS, b"[/bold]"], ids=["latin-1", "acts", "markup"])
def test_a_model_is_served_planned_and_run_whatever_its_file_is_called(stem: bytes, tmp_path: Path) -> None:
    stem = stem.replace(b"/", b"")
    path = os.fsencode(tmp_path) + b"/" + stem + b".onnx"
    shutil.copy(next(Path(str(DIGITS.parent)).rglob("lenet5*.onnx")), path)
    model = load(os.fsdecode(path))
    assert plain(model.name) == model.name == valid(model.name)
    with (
        Server([model], engine=open_engine(threads=1), port=0) as server,
        Edge(server.address, at="pool1", cache=tmp_path / "cache") as edge,
    ):
        assert edge.info.name == model.name
        assert edge.infer(np.zeros((1, 32, 32, 1), np.uint8)).outputs["logits"].shape == (1, 10)
    for words in (["inspect"], ["inspect", "--json"], ["profile", "--budget", "0.3s", "-o", str(tmp_path / "p.json")]):
        done = subprocess.run([*PYTHON, words[0], path, *words[1:]], capture_output=True, timeout=60, check=True)
        assert not acts(done.stdout + done.stderr), words


def test_a_model_with_names_that_act_is_refused_in_words_that_do_not(tmp_path: Path) -> None:
    from onnx import helper

    import nets

    bad = "la\x1b[31myer\u202e\x9b"
    made = nets.proto(
        [helper.make_node("Relu", ["x"], [bad])], [nets.value("x", [1, 4])], [nets.value(bad, [1, 4])], []
    )
    path = nets.saved(made, tmp_path / "bad.onnx")
    done = subprocess.run([*PYTHON, "inspect", str(path)], capture_output=True, timeout=60)
    assert done.returncode == 3
    assert b"control characters" in done.stderr
    assert not acts(done.stderr)


def test_what_is_typed_does_not_act_when_it_is_said_again() -> None:
    for words in (["inspect", "no\x1b[31m.onnx"], ["fo\x1b]0;x\x07o"], ["run", "--fo\x1b[31mo"]):
        done = subprocess.run([*PYTHON, *words], capture_output=True, timeout=60)
        assert done.returncode in (2, 3)
        assert not acts(done.stderr), words


def test_colours_of_ours_pass_and_those_of_others_do_not() -> None:
    stream = _Text(io.BytesIO(), encoding="utf-8")
    styled(stream).write("\x1b[1mours\x1b[0m ")
    stream.write("\x1b[1mtheirs\n")
    stream.flush()
    assert stream.buffer.getvalue() == b"\x1b[1mours\x1b[0m \\x1b[1mtheirs\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "shown", "kept"),
    [
        ("plain", "plain", "plain"),
        ("caf\udce9.jpg", "caf\\xe9.jpg", "caf\\xe9.jpg"),
        ("a\tb\nc\r\n", "a b c", "a\tb\nc\r\n"),
        ("over\rwrite", "over write", "over\\x0dwrite"),
        ("\x1b[31m\x07", "[31m", "\\x1b[31m\\x07"),
        ("\x9b31m\x7f", "31m", "\\u009b31m\\u007f"),
        ("right\u202eleft\u2066", "right left", "right\\u202eleft\\u2066"),
        ("zero\u200bwidth\ufe0f\u3164", "zero width", "zero\\u200bwidth\\ufe0f\\u3164"),
        ("tag\U000e0061", "tag", "tag\\udb40\\udc61"),
        ("next\x85line\u2028", "next line", "next\\u0085line\\u2028"),
        ("naïve … 日本", "naïve … 日本", "naïve … 日本"),
    ],
)
def test_text_of_strangers(text: str, shown: str, kept: str) -> None:
    assert plain(text) == shown
    assert harmless(text) == kept
    assert valid(text).encode() == text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").encode()


# --- terminals ------------------------------------------------------------------------------------------------------


def test_the_help_of_no_command_is_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    status = main([])
    said = capsys.readouterr()
    assert status in (0, 2)  # as click has it
    assert (said.out + said.err).startswith("Usage: splitpoint")
