"""The PyTorch half of "models in": what is exported computes what PyTorch does, and every module path is found."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest
from places import SUPPORT

from splitpoint.errors import MissingExtraError, StorageError
from splitpoint.machine import default_cache
from splitpoint.models.names import SHORT_NAMES
from splitpoint.models.torch import export, exported, is_torch_source

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITPOINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.syspath_prepend(str(SUPPORT))


def test_the_terminal_stays_quiet_and_progress_is_heard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export("models_torch:named", tmp_path / "named.onnx", progress=print)
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.splitlines() == [
        "tracing models_torch:named with a free batch",
        "comparing with PyTorch",
    ]


# --- sources ------------------------------------------------------------------------------------------------------


def test_what_is_a_torch_source() -> None:
    for name in ("torchvision:resnet50", "timm:x", "hf:bert", "a.b:c", "nets:make", "x.pt2", *SHORT_NAMES):
        assert is_torch_source(name) == (not SHORT_NAMES.get(name, name).startswith("zoo:")), name
    for name in ("zoo:lenet5", "net.onnx", "resnet50", "C:/models/net.onnx", "a b:c"):
        assert not is_torch_source(name), name


def test_without_torch_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "torch" else real(n, *a))
    with pytest.raises(MissingExtraError, match=r"\[torch\]\): .* install .*'torch>="):
        export("torchvision:alexnet", tmp_path / "x.onnx")


# --- cache --------------------------------------------------------------------------------------------------------


def test_a_cached_export_is_made_once(tmp_path: Path) -> None:
    path = exported("models_torch:named", weights="random")
    assert path.is_relative_to(default_cache() / "exports")
    assert path.name == "named.onnx"
    before = path.stat().st_mtime_ns
    assert exported("models_torch:named", weights="random") == path
    assert path.stat().st_mtime_ns == before
    assert exported("models_torch:named", weights="random:1") != path
    assert [p.name for p in path.parent.iterdir()] == ["named.onnx"]  # no scratch left


def test_a_cache_that_cannot_be_written_ends_no_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPLITPOINT_CACHE", str(tmp_path / "file"))
    told: list[str] = []
    path = exported("models_torch:named", weights="random", progress=told.append)
    assert onnx.load(path).graph.node
    assert sum("not kept for the next time" in text for text in told) == 1


def test_an_export_goes_where_links_and_pipes_lead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from splitpoint.models.torch import tracing

    real, link = tmp_path / "real.onnx", tmp_path / "link.onnx"
    link.symlink_to("real.onnx")
    report = export("models_torch:named", link, weights="random")
    assert link.is_symlink()
    assert report.nbytes == real.stat().st_size
    near, far = os.pipe()
    came: list[bytes] = []

    def read() -> None:
        with open(near, "rb") as file:
            came.append(file.read())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        export("models_torch:named", Path(f"/dev/fd/{far}"), weights="random")
    finally:
        os.close(far)
        reader.join(60)
    assert came == [real.read_bytes()]
    monkeypatch.setattr(tracing, "_INLINE_LIMIT", 10)
    with pytest.raises(StorageError, match="name a regular file"):
        export("models_torch:named", Path("/dev/stdout"), weights="random")
    export("models_torch:named", link, weights="random")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.onnx", "real.onnx", "real.onnx.data"]


def test_a_changed_source_file_is_exported_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = Path("local_nets.py")
    text = "import torch\ndef make():\n    return torch.nn.Linear(4, {n}), torch.ones(1, 4)\n"
    source.write_text(text.format(n=3))
    first = exported("local_nets:make")
    source.write_text(text.format(n=20))
    monkeypatch.delitem(sys.modules, "local_nets")
    second = exported("local_nets:make")
    assert first != second
    assert ort.InferenceSession(str(second)).get_outputs()[0].shape == ["batch", 20]
