"""Files from strangers: one sentence, in bounded time and memory, whatever is in them and whatever they are."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import socket
import stat
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image

from splitpoint import files, tensors
from splitpoint.calibration.files import load_calibration
from splitpoint.cli import main
from splitpoint.cli.console import bold, line, out
from splitpoint.decoding import open_picture, silent
from splitpoint.engines import open_engine
from splitpoint.errors import InputError, ModelError, SplitpointError, StorageError, UsageError
from splitpoint.files import open_file, private_folder, read_file
from splitpoint.images import SPEC_KEY, InputSpec
from splitpoint.inputs import token_inputs
from splitpoint.lab.scenario import load_scenario
from splitpoint.link.files import load_link, load_trace
from splitpoint.models import input_values as values
from splitpoint.models import load
from splitpoint.models.foreign import what_is
from splitpoint.models.layer_names import ALIASES_KEY, VALUES_KEY
from splitpoint.models.reading import read
from splitpoint.parsing import MOST_DEPTH, MalformedError, parse_json, parse_toml
from splitpoint.planning.files import load_plan
from splitpoint.predict.calibrate.collection import load_collection
from splitpoint.predict.kernels.kernel_kinds import KINDS
from splitpoint.predict.kernels.kernel_table import read_table
from splitpoint.predict.learn.files import latency_bytes, load_latency, parse_latency
from splitpoint.predict.price.service_traces import read_traces
from splitpoint.profile.files import load_profile
from splitpoint.report.sweep_table import read_rows
from splitpoint.runtime.client.blob_cache import BlobCache, clear, usage
from splitpoint.security import check_own, read_token
from splitpoint.survey import profile_here
from splitpoint.tasks.files import load_tasks
from splitpoint.tensors import load_arrays
from splitpoint.text import harmless, plain

LENET = "zoo:lenet5"
#: Every kind of file that is read, its suffix, and who reads it.
READERS: Mapping[str, tuple[str, Callable[[Path], object]]] = {
    "plan": (".json", load_plan),
    "profile": (".json", load_profile),
    "latency": (".latency.json", load_latency),
    "calibration": (".json", load_calibration),
    "collection": (".json", load_collection),
    "link": (".link.json", load_link),
    "trace": (".csv", load_trace),
    "requests": (".jsonl", lambda p: read_traces(p, load(LENET).graph)),
    "table": (".csv", lambda p: read_table(p, next(iter(KINDS.values())))),
    "sweep": (".csv", read_rows),
    "spec": (".json", InputSpec.from_file),
    "spec in TOML": (".toml", InputSpec.from_file),
    "tasks": (".toml", load_tasks),
    "scenario": (".toml", load_scenario),
    "token": (".token", read_token),
    "ids": (".ids", lambda p: token_inputs(load(LENET), p)),
    "npy": (".npy", load_arrays),
    "npz": (".npz", load_arrays),
    "picture": (".png", lambda p: open_picture(p, str(p), "RGB", silent)),
    "model": (".onnx", read),
}


def refused(what: str, path: Path) -> str:
    """What is said of the file: one sentence, which a terminal does not act upon."""
    with pytest.raises(SplitpointError) as caught:
        READERS[what][1](path)
    text = str(caught.value)
    assert len(text) < 3000
    return text


def network(node: str = "r") -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], name=node)], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# --- no files ---------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def nobody_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_WRITER_S", 0.01)


@pytest.mark.parametrize("what", READERS)
@pytest.mark.parametrize("node", ["zero", "pipe", "socket", "folder"])
def test_what_is_no_file_is_refused_at_once(what: str, node: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{READERS[what][0]}"
    with socket.socket(socket.AF_UNIX) as listening:
        if node == "zero":
            path.symlink_to("/dev/zero")
        elif node == "pipe":
            os.mkfifo(path)
        elif node == "folder":
            path.mkdir()
        else:
            listening.bind(str(path))
        refused(what, path)
        assert what_is(path) is not None


def test_a_pipe_of_ours_and_one_with_a_writer_are_read(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"[1]")
    os.close(writing)
    try:
        assert read_file(Path(f"/dev/fd/{reading}"), 10, "a list") == b"[1]"
    finally:
        os.close(reading)
    os.mkfifo(tmp_path / "pipe")
    held = os.open(tmp_path / "pipe", os.O_RDWR)  # so that the writer need not wait for a reader
    try:
        os.write(held, b"[2]")
        with open_file(tmp_path / "pipe") as file:
            assert file.read(3) == b"[2]"
    finally:
        os.close(held)


def test_a_file_without_an_end_is_read_up_to_its_limit(tmp_path: Path) -> None:
    endless = os.open("/dev/zero", os.O_RDONLY)
    try:
        with pytest.raises(InputError, match="too large to be a plan"):
            read_file(Path(f"/dev/fd/{endless}"), 1 << 20, "a plan")
    finally:
        os.close(endless)


# --- nesting ----------------------------------------------------------------------------------------------------------

DEEP_JSON = ["[" * 100_000, '{"a":' * 100_000, '{"format": 1, "x": ' + "[" * 900 + "]" * 900 + "}"]
DEEP_TOML = [
    "a = " + "[" * 5000, "a = " + "{a=" * 3000, ".".join("a" * 3000) + " = 1", "size" + ".a" * 2000 + " = 1",
    f"[{'.'.join('a' * 5000)}]\n" + "b = 1\n" * 100, f"count = {'9' * 5000}", "a = '''" + "x" * 1000,
]  # fmt: skip


@pytest.mark.parametrize("what", [w for w, (s, _) in READERS.items() if s.endswith((".json", ".jsonl"))])
@pytest.mark.parametrize("text", DEEP_JSON, ids=range(len(DEEP_JSON)))
def test_nested_json(what: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{READERS[what][0]}"
    path.write_text(text)
    refused(what, path)


@pytest.mark.parametrize("what", [w for w, (s, _) in READERS.items() if s == ".toml"])
@pytest.mark.parametrize("text", DEEP_TOML, ids=range(len(DEEP_TOML)))
def test_nested_toml(what: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    refused(what, path)


@pytest.mark.parametrize("key", [ALIASES_KEY, VALUES_KEY, "splitpoint.unused", SPEC_KEY])
def test_nested_json_in_metadata(key: str, tmp_path: Path) -> None:
    for text in DEEP_JSON:
        proto = network()
        proto.metadata_props.add(key=key, value=text)
        (tmp_path / "a.onnx").write_bytes(proto.SerializeToString())
        with pytest.raises(SplitpointError, match=key if key != SPEC_KEY else "input spec"):
            load(tmp_path / "a.onnx").input_spec  # noqa: B018 - read when it is asked for


def test_depth_is_bounded_by_a_number() -> None:
    assert parse_json("[" * MOST_DEPTH + "]" * MOST_DEPTH)
    with pytest.raises(MalformedError, match="nested too deeply"):
        parse_json("[" * (MOST_DEPTH + 1) + "]" * (MOST_DEPTH + 1))
    with pytest.raises(MalformedError, match="nested too deeply"):
        parse_toml("a" + ".a" * MOST_DEPTH + " = 1")


# --- numpy ------------------------------------------------------------------------------------------------------------


def npy(header: str, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    text = header.encode() + b"\n"
    length = struct.pack("<H" if version == b"\1\0" else "<I", len(text))
    return b"\x93NUMPY" + version + length + text + data


def described(descr: str, shape: str, fortran: bool = False) -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as archive:
        for name, body in members.items():
            archive.writestr(name, body)
    return data.getvalue()


BAD_ARRAYS = {
    "2^40": npy(described("'|u1'", "(1099511627776,)")),
    "2^40 of nothing": npy(described("'<f8'", "(1048576, 1048576)"), b"x" * 64),
    "overflows": npy(described("'<f8'", "(4611686018427387904, 4611686018427387904)")),
    "negative": npy(described("'|u1'", "(-5, 3)"), b"x" * 15),
    "two negative": npy(described("'|u1'", "(-5, -3)"), b"x" * 15),
    "object": npy(described("'|O'", "(1,)"), b"\x80\x04cos\nsystem\n."),
    "structured": npy(described("[('a', '<f4'), ('b', '|O')]", "(3,)"), b"x" * 64),
    "structured numbers": npy(described("[('a', '<f4')]", "(3,)"), b"x" * 64),
    "subarray": npy(described("('<f4', (1000, 1000))", "(0,)")),
    "void": npy(described("'|V2147483647'", "(3,)")),
    "text": npy(described("'<U9'", "(1,)"), b"x" * 36),
    "dates": npy(described("'<M8[s]'", "(1,)"), b"x" * 8),
    "nested": npy(described("'|u1'", "(" * 2000 + ")" * 2000)),
    "minus": npy(described("'|u1'", "(" + "-" * 4000 + "1,)")),
    "cut": npy(described("'|u1'", "(64,)"), b"x" * 10),
    "header of 4 GB": b"\x93NUMPY\2\0\xff\xff\xff\xff" + b" " * 100,
    "version 3": npy(described("'|u1'", "(3,)"), b"abc", b"\3\0"),
    "version 9": npy(described("'|u1'", "(3,)"), b"abc", b"\x09\0"),
    "no numpy file": b"hello",
    "empty": b"",
    "half an archive": b"PK\3\4" + b"x" * 50,
    "a pickle in an archive": zipped({"a.npy": npy(described("'|O'", "(1,)"), b"\x80\x04.")}),
    "a claim in an archive": zipped({"a.npy": npy(described("'|u1'", "(1099511627776,)"))}),
    "too many in an archive": zipped({f"{k:064}.npy": b"" for k in range(9000)}, zipfile.ZIP_STORED),
}


@pytest.mark.parametrize("what", BAD_ARRAYS)
def test_arrays_that_are_none(what: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(BAD_ARRAYS[what])
    for source in (path, BAD_ARRAYS[what]):
        with pytest.raises(InputError):
            load_arrays(source)


def test_an_archive_unpacks_to_no_more_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "_MOST_UNPACKED", 1 << 20)
    bomb = zipped({"a.npy": npy(described("'|u1'", "(8388608,)"), bytes(8 << 20))})
    with pytest.raises(InputError, match="unpacks to more than"):
        load_arrays(bomb)


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.float32(3), np.zeros((0, 4), np.int64),
        np.arange(5, dtype=">i4"), np.array([True, False]), np.arange(24).reshape(2, 3, 4)[:, ::2], np.array([1 + 2j]),
    ],
)  # fmt: skip
def test_honest_arrays_are_read_as_numpy_reads_them(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", x=array, y=np.arange(3))
    for found in (load_arrays(tmp_path / "a.npy")[""], load_arrays(tmp_path / "a.npz")["x"]):
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


# --- pictures ---------------------------------------------------------------------------------------------------------


def jpeg(**options: Any) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(data, "JPEG", **options)
    return data.getvalue()


def with_scans(count: int) -> bytes:
    data = jpeg(progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + b"\xff\xd9"


def in_two_colours(data: bytes) -> bytes:
    """A grey JPEG that says that it has two, so that its scan is not all of it."""
    at = data.index(b"\xff\xc0") + 9
    return data[:at] + b"\2" + data[at + 1 :]


BOMBS = {
    "scans": with_scans(1000),
    "scans behind fill bytes": with_scans(1000).replace(b"\xff\xda", b"\xff\xff\xff\xda"),
    "scans behind what is no marker": with_scans(1000).replace(b"\xff\xda", b"\xff\x01\xff\xda"),
    "segments": b"\xff\xd8" + b"\xff\xe5\0\2" * 100_000 + jpeg()[2:],
    "a sequential picture's": in_two_colours(jpeg())[:-2] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" * 1000 + b"\xff\xd9",
}


@pytest.mark.parametrize("what", BOMBS)
def test_jpegs_that_cost_much_more_than_their_pixels(what: str) -> None:
    with pytest.raises(InputError, match=r"JPEG of more than .*: save it anew"):
        open_picture(BOMBS[what], "it", "L", silent)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}, {"comment": b"\xff\xda" * 9000}])
def test_honest_jpegs_are_read(options: dict[str, Any]) -> None:
    data = jpeg(**options) + b"motion photo \xff\xda" * 1000  # cameras append videos
    assert open_picture(data, "it", "L", silent)[0].size == (64, 64)


# --- text -------------------------------------------------------------------------------------------------------------

#: What acts, deceives or is not seen.
HIDDEN = "\x00\x07\x1b\x7f\x85\x9b\xad\u034f\u061c\u115f\u180e\u200b\u200d\u200e\u2028\u2029\u202e\u2060\u2066\u2800\u3164\ufe0f\ufeff\U000e0041\U000e0101"  # noqa: E501


@pytest.mark.parametrize("character", HIDDEN, ids=ascii)
def test_no_hidden_character_is_shown_or_taken_in_a_name(character: str, tmp_path: Path) -> None:
    assert character not in plain(f"a{character}b")
    assert plain(f"a{character}b").isprintable()
    assert character not in harmless(f"a{character}b")
    assert json.loads(harmless(json.dumps([f"a{character}b"], ensure_ascii=False))) == [f"a{character}b"]
    (tmp_path / "a.onnx").write_bytes(network(f"a{character}b").SerializeToString())
    with pytest.raises(ModelError, match="hidden or control characters"):
        load(tmp_path / "a.onnx")


def test_no_text_is_markup(capsys: pytest.CaptureFixture[str]) -> None:
    nasty = "[link=https://a.example][red]x[/] \\[bold] [/nothing]"
    out().print(line("a ", bold(nasty), f", {nasty}"), markup=True)
    assert capsys.readouterr().out.split() == f"a {nasty}, {nasty}".split()


# --- the cache --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPLITPOINT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_kept_is_for_this_user_alone(cache: Path) -> None:
    values.remember("f" * 64, {"x": np.full(1, 3, np.float32)})
    assert stat.S_IMODE((cache / "values").stat().st_mode) == 0o700
    os.chmod(cache / "values", 0o777)  # an earlier version made it, under a mild umask
    assert private_folder(cache / "values")
    assert stat.S_IMODE((cache / "values").stat().st_mode) == 0o700


@pytest.mark.parametrize("how", ["folder", "around", "link", "writable"])
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_others_can_change_in_a_cache_is_not_believed(how: str, cache: Path) -> None:
    spec = load(LENET).inputs[0]
    values.remember("f" * 64, {spec.name: np.zeros((1, *map(int, spec.shape[1:])), spec.dtype)})
    bound = [spec.bind({str(spec.shape[0]): 1})]
    assert values.remembered("f" * 64, bound)
    if how == "folder":
        os.chown(cache / "values", 4321, 4321)
    elif how == "around":
        os.chown(cache, 4321, 4321)
    elif how == "writable":
        os.chmod(cache, 0o777)
    else:
        (cache / "values").rename(cache / "elsewhere")
        (cache / "values").symlink_to(cache / "elsewhere")
    with pytest.warns(RuntimeWarning, match="not remembered"):
        assert not values.remembered("f" * 64, bound)
    with pytest.raises(StorageError):
        private_folder(cache / "values")


@contextmanager
def another_user() -> Iterator[Path]:
    """A folder that is open to all, in which from now on we are somebody else: not root, whom nothing is closed to."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o1777)
    try:
        if os.geteuid() != 0:
            yield folder
        else:
            os.seteuid(4321)
            try:
                yield folder
            finally:
                os.seteuid(0)
    finally:
        for path in [p for p in folder.rglob("*") if p.is_dir() and not p.is_symlink()]:
            path.chmod(0o700)
        shutil.rmtree(folder)


def closed(folder: Path) -> None:
    """`folder`, for another user alone."""
    folder.mkdir()
    folder.chmod(0)


def test_what_is_another_users_in_a_shared_cache_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, engine, told = load(LENET), open_engine(threads=1), list[str]()
    profile_here(model, engine, budget_s=1e-3, cache=tmp_path)  # what it imports may be closed to others
    with another_user() as folder:
        monkeypatch.setenv("SPLITPOINT_CACHE", str(folder))
        for name in ("profiles", "values", "exports", "blobs", "graphs"):
            closed(folder / name)
        assert values.remembered("f" * 64, model.inputs) == {}
        made = profile_here(model, engine, budget_s=1e-3, cache=folder, on_step=told.append)
        assert made.fingerprint == model.fingerprint
        assert any("is not kept for the next time" in text for text in told), told
        kept = BlobCache(folder)
        kept.put_graph("a" * 64, b"graph")
        assert kept.unkept is not None
        kept.put(hashlib.sha256(b"one").hexdigest(), [b"one"])
        assert bytes(kept.open(hashlib.sha256(b"one").hexdigest())) == b"one"


def test_a_cache_that_is_partly_anothers_is_counted_and_cleared() -> None:
    with another_user() as folder:
        BlobCache(folder).put_graph("a" * 64, b"graph")
        for name in ("profiles", "values", "exports"):
            closed(folder / name)
        assert usage(folder) == {"graphs": (1, 5)}
        assert clear(folder) == 1


def test_a_folder_that_is_closed_to_us_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    main(["inspect", "nothing.onnx"])  # what it imports may be closed to others
    capsys.readouterr()
    with another_user() as folder:
        closed(folder / "closed")
        for name in ("model.onnx", "model.pt2", "model"):
            status = main(["inspect", str(folder / "closed" / name)])
            assert status in (3, 7)
            said = capsys.readouterr().err
            assert said.startswith("splitpoint: ")
            assert said.count("\n") == 1
            assert "ermission denied" in said or status == 3


def test_all_of_a_cache_is_cleared(tmp_path: Path) -> None:
    model, engine = load(LENET), open_engine(threads=1)
    profile_here(model, engine, budget_s=1e-3, cache=tmp_path)
    names = sorted(p.name for p in (tmp_path / "profiles").iterdir())
    (tmp_path / "profiles" / f".{names[0][:16]}.{'0' * 12}").write_bytes(b"half")
    (tmp_path / "profiles" / "mine.profile.json").write_bytes(b"not ours")
    assert len(names) == 2
    assert usage(tmp_path)["profiles"][0] == 3
    assert clear(tmp_path) == 3
    assert [p.name for p in (tmp_path / "profiles").iterdir()] == ["mine.profile.json"]


def test_a_graph_is_kept_in_place_of_a_link_not_through_it(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    diary.write_text("dear diary")
    os.link(diary, tmp_path / "second name")
    graphs = tmp_path / "cache" / "graphs"
    graphs.mkdir(parents=True)
    (graphs / ("a" * 64)).symlink_to(diary)
    kept = BlobCache(tmp_path / "cache")
    kept.put_graph("a" * 64, b"graph")
    assert diary.read_text() == "dear diary"
    assert kept.graph("a" * 64) == b"graph"


def test_a_key_that_its_group_may_write_is_refused(tmp_path: Path) -> None:
    check_own(tmp_path / "key", "private key", 0o640, group=True)
    with pytest.raises(UsageError, match="chmod 600"):
        check_own(tmp_path / "key", "private key", 0o660, group=True)


# --- anything at all --------------------------------------------------------------------------------------------------

NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 2**64, -(2**70), 10**30, 1e308, -1e308, 5e-324, float("nan"), float("inf"), "",
    "x" * 5000, "\x1b]0;t\x07", "\u202e", "../../etc/passwd", "=1+1", [], {}, [[]], [None], {"a": {"a": 1}},
)  # fmt: skip


def changed(value: Any, draw: random.Random) -> Any:
    """`value` (parsed JSON) with one place of it, drawn at random, made something else."""
    if isinstance(value, dict | list) and value and draw.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = draw.choice(list(keys))
        made: Any = dict(value) if isinstance(value, dict) else list(value)
        what = draw.random()
        if what < 0.08:
            del made[key]
        elif what < 0.16 and isinstance(made, list):
            made.insert(key, made[key])
        else:
            made[key] = changed(value[key], draw)
        return made
    return draw.choice(NASTY)


def _latency() -> dict[str, Any]:
    made = json.loads(latency_bytes(load_latency("neurosurgeon-edge")))
    made["kinds"] = {k: made["kinds"][k] for k in list(made["kinds"])[:1]}
    return made  # type: ignore[no-any-return]


LATENCY = _latency()
LINK = {"format": 1, "name": "n", "up_mbps": 3.0, "down_mbps": 4.0, "rtt_ms": 20.0, "jitter_ms": 1.0}
SPEC = {"dtype": "float32", "layout": "NCHW", "size": [8, 8], "mode": "shortest", "crop": 0.9, "mean": [1.0, 2.0, 3.0],
        "std": 1.0, "scale": 0.5, "labels": ["a", "b"], "top": 3}  # fmt: skip


@settings(max_examples=80, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(st.integers(0, 2**32), st.integers(1, 3))
def test_altered_files_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, seed: int, count: int) -> None:
    draw = random.Random(seed)
    folder = tmp_path_factory.getbasetemp()
    latency, link, spec = LATENCY, LINK, SPEC
    for _ in range(count):
        latency, link, spec = changed(latency, draw), changed(link, draw), changed(spec, draw)
    try:
        found = parse_latency(json.dumps(latency).encode(), "it")
    except InputError:
        pass
    else:  # what is taken can be used: no index out of a tree, no number that is none
        for model in found.kinds.values():
            rows = np.full((2, len(model.features)), 1e18)
            assert np.isfinite(model.forest.evaluate(rows)).all()
    for name, value, reader in (("a.link.json", link, load_link), ("a.json", spec, InputSpec.from_file)):
        (folder / name).write_text(json.dumps(value))
        with suppress(SplitpointError):
            reader(folder / name)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "words", "status"),
    [
        ("a.link.json", "[" * 9000, "link --link {}", 4),
        ("a.json", DEEP_JSON[1], "plan zoo:lenet5 --edge {} --cloud {} --link 4g", 4),
        ("a.toml", DEEP_TOML[2], "run zoo:lenet5 {} --input-spec {}", 4),
        ("a.npy", BAD_ARRAYS["2^40"], "run zoo:lenet5 {}", 4),
        ("a.jpg", BOMBS["scans"], "run zoo:lenet5 {}", 4),
        ("a.toml", DEEP_TOML[5], "lab run {}", 4),
    ],
)
def test_one_sentence_and_its_status(
    name: str, text: str | bytes, words: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(words.replace("{}", str(tmp_path / name)).split()) == status
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("splitpoint: ")
    assert not any("Traceback" in each for each in said)
