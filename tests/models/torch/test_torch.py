"""The PyTorch half of "models in": what is exported computes what PyTorch does, and every module path is found."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import SUPPORT

from splitpoint.errors import MissingExtraError, ModelError, StorageError, UsageError
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


def module(name: str) -> Any:
    import models_torch

    return getattr(models_torch, name)()[0].eval()


def properties(model: Any) -> dict[str, str]:
    return {p.key: p.value for p in model.metadata_props}


def layers(model: Any) -> list[str]:
    return [properties(n)["splitpoint.layer"] for n in model.graph.node]


def uncovered(model: Any, paths: list[str]) -> list[str]:
    """Module paths that are neither a node's layer, nor a prefix of one, nor an alias or a prefix of one."""
    own = properties(model)
    known = [*layers(model), *json.loads(own["splitpoint.aliases"]), *json.loads(own["splitpoint.unused"])]
    return [p for p in paths if p and not any(k == p or k.startswith(p + ".") for k in known)]


def run_all(path: Path, feeds: dict[str, Any]) -> dict[str, Any]:
    """Every tensor of the model, by the name of the node that makes it."""
    model = onnx.load(path)
    made = {n.output[0]: n.name for n in model.graph.node}
    have = {o.name for o in model.graph.output}
    for name in made:
        if name not in have:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return {made[n]: v for n, v in zip(names, session.run(None, feeds), strict=True)}


# --- module paths -----------------------------------------------------------------------------------------------


def test_every_module_path_leads_to_the_node_that_makes_its_output(tmp_path: Path) -> None:
    report = export("models_torch:residual", tmp_path / "residual.onnx")
    model, original = onnx.load(report.path), module("residual")
    assert uncovered(model, [n for n, _ in original.named_modules()]) == []
    assert report.unused == ("auxiliary", "auxiliary.0", "auxiliary.1")

    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    outputs: dict[str, Any] = {}
    for name, part in original.named_modules():
        part.register_forward_hook(lambda _m, _i, o, n=name: outputs.__setitem__(n, o.detach().clone().numpy()))
    with torch.no_grad():
        original(x)
    values = run_all(report.path, {"x": x.numpy()}) | {"x": x.numpy()}

    aliases = json.loads(properties(model)["splitpoint.aliases"])
    last = {properties(n)["splitpoint.layer"]: n.name for n in model.graph.node}
    folded = {"stem.0": "stem.1", "conv": "bn"}  # a folded Conv's node makes the batch norm's output
    for path in [n for n, m in original.named_modules() if not list(m.children()) and n in outputs]:
        node = aliases.get(path) or last[path]
        np.testing.assert_allclose(values[node], outputs[folded.get(path, path)], atol=1e-5, err_msg=path)
    assert aliases["drop"].startswith("add")  # made by the parent's own addition, not by the younger multiplication
    assert aliases["first"] == "x"
    assert set(aliases) == {"first", "stem.0", "skip", "conv", "drop", "head.1", "last"}


def test_weights_used_without_calling_their_module_are_found(tmp_path: Path) -> None:
    report = export("models_torch:pair", tmp_path / "pair.onnx")
    model = onnx.load(report.path)
    aliases = json.loads(properties(model)["splitpoint.aliases"])
    node = next(n for n in model.graph.node if n.name == aliases["attention.out_proj"])
    assert "attention.out_proj.weight" in node.input
    assert [o.name for o in model.graph.output] == ["output_0", "output_1"]


def test_modules_whose_operators_vanish_lead_to_what_holds_them(tmp_path: Path) -> None:
    report = export("models_torch:vanishing", tmp_path / "vanishing.onnx")
    model = onnx.load(report.path)
    assert [n.name for n in model.graph.node] == ["conv/Conv", "tanh/Tanh", "padded/Conv"]
    assert json.loads(properties(model)["splitpoint.aliases"]) == {
        "same": "conv/Conv",  # a reshape to the same shape: its output is its input
        "pad": "padded/Conv",  # folded into what comes after
        "swap.0": "padded/Conv",
        "swap.1": "padded/Conv",
    }
    assert uncovered(model, [n for n, _ in module("vanishing").named_modules()]) == []


def test_nothing_of_this_machine_is_in_the_file(tmp_path: Path) -> None:
    report = export("models_torch:residual", tmp_path / "residual.onnx")
    data = report.path.read_bytes()
    for trace in (b"pkg.torch", b"site-packages", str(Path.cwd()).encode(), str(Path.home()).encode(), b".py"):
        assert trace not in data, trace
    model = onnx.load(report.path)
    names = [n.name for n in model.graph.node]
    assert len(set(names)) == len(names)
    assert all([p.key for p in n.metadata_props] == ["splitpoint.layer"] for n in model.graph.node)
    assert {t.name for t in model.graph.initializer} >= {"conv.weight", "head.2.weight"}


# --- batch, inputs, outputs ---------------------------------------------------------------------------------------


def test_the_batch_is_free(tmp_path: Path) -> None:
    report = export("models_torch:named", tmp_path / "named.onnx")
    assert report.batch is None
    assert report.max_error < 1e-5
    session = ort.InferenceSession(report.path.read_bytes(), providers=["CPUExecutionProvider"])
    assert {i.name: i.shape for i in session.get_inputs()} == {"left": ["batch", 6], "right": ["batch", 4]}
    assert {o.name: o.shape for o in session.get_outputs()} == {"out": ["batch", 4], "aux": ["batch"]}
    for batch in (1, 5):
        out, aux = session.run(None, {"left": np.ones((batch, 6), "f"), "right": np.ones((batch, 4), "f")})
        assert (out.shape, aux.shape) == ((batch, 4), (batch,))


def test_a_batch_that_cannot_be_free_is_fixed_at_one_and_said_so(tmp_path: Path) -> None:
    report = export("models_torch:one_at_a_time", tmp_path / "one.onnx")
    assert report.batch == 1
    assert "the batch is fixed at 1" in str(report)
    assert "size of the batch" in str(report)


def test_a_model_that_relies_on_an_in_place_activation_keeps_it(tmp_path: Path) -> None:
    report = export("models_torch:writes_over", tmp_path / "over.onnx")
    assert [n.op_type for n in onnx.load(report.path).graph.node] == ["Gemm", "Relu"]
    assert report.batch is None


def test_large_weights_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from splitpoint.models.torch import tracing

    monkeypatch.setattr(tracing, "_INLINE_LIMIT", 100)
    report = export("models_torch:residual", tmp_path / "residual.onnx")
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["residual.onnx", "residual.onnx.data"]
    assert report.nbytes == sum(p.stat().st_size for p in tmp_path.iterdir() if p.is_file())
    ort.InferenceSession(str(report.path), providers=["CPUExecutionProvider"])


def test_the_terminal_stays_quiet_and_progress_is_heard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export("models_torch:named", tmp_path / "named.onnx", progress=print)
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.splitlines() == [
        "tracing models_torch:named with a free batch",
        "comparing with PyTorch",
    ]


def test_the_relative_error_is_measured_against_what_an_output_moves_by() -> None:
    from splitpoint.models.torch.tracing import _Different, relative_error

    a, b = np.full((1, 4), 100, "f"), np.full((1, 4), 101, "f")
    assert relative_error([([a], [a]), ([b], [b])]) == 0
    assert relative_error([([a], [a + 0.5]), ([b], [b])]) == pytest.approx(0.5)  # not 0.005 of its magnitude
    assert np.isnan(relative_error([([a], [a]), ([a], [a])]))  # it never moves: nothing is proven
    assert relative_error([([a.astype("i8")], [a.astype("i8")])]) == 0
    for wrong in (b.astype("f8"), np.full((2, 4), 101, "f"), b * np.nan):
        with pytest.raises(_Different):
            relative_error([([a], [a]), ([b], [wrong])])
    with pytest.raises(_Different):
        relative_error([([a.astype("i8")], [b.astype("i8")])])
    with pytest.raises(_Different):  # one output moves, the other does not and is another
        relative_error([([a, a], [a, a]), ([b, a], [b, b])])


# --- weights ------------------------------------------------------------------------------------------------------


def test_random_weights_are_the_same_for_the_same_seed_and_say_so(tmp_path: Path) -> None:
    def weights(seed: str, name: str) -> dict[str, bytes]:
        report = export("models_torch:residual", tmp_path / name, weights=seed)
        model = onnx.load(report.path)
        seed = seed.partition(":")[2] or "0"
        assert properties(model)["splitpoint.source"] == f"models_torch:residual, random weights, seed {seed}"
        return {t.name: t.raw_data for t in model.graph.initializer}

    first = weights("random", "a.onnx")
    assert weights("random:0", "b.onnx") == first
    assert weights("random:1", "c.onnx")["head.2.weight"] != first["head.2.weight"]


def test_random_weights_carry_signal_where_the_initial_ones_do_not(tmp_path: Path) -> None:
    plain = export("models_torch:shrinks", tmp_path / "plain.onnx")
    assert "does not move" in str(plain)  # the trap is real: without help nothing of the input arrives
    assert np.isnan(plain.max_error)
    report = export("models_torch:shrinks", tmp_path / "random.onnx", weights="random")
    assert report.max_error < 1e-4
    session = ort.InferenceSession(report.path.read_bytes(), providers=["CPUExecutionProvider"])
    draw = np.random.default_rng(0)
    a, b = (session.run(None, {"x": draw.normal(size=(1, 8)).astype("f")})[0] for _ in range(2))
    assert np.abs(a - b).max() > 0.01 * np.abs(a).max()


def test_random_weights_that_cannot_carry_signal_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="hardly depends on its input"):
        export("models_torch:deaf", tmp_path / "deaf.onnx", weights="random")
    assert list(tmp_path.glob("*.onnx")) == []


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".nested.pt"])
def test_weights_from_a_file_arrive(tmp_path: Path, suffix: str) -> None:
    other = module("residual")
    with torch.no_grad():
        for value in other.parameters():
            value.uniform_(0.1, 1)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(other.state_dict(), path)
    elif suffix == ".pth":
        torch.save(other.state_dict(), path)
    else:
        torch.save({"state_dict": {f"module.{k}": v for k, v in other.state_dict().items()}, "epoch": 3}, path)
    report = export("models_torch:residual", tmp_path / "residual.onnx", weights=str(path))
    assert f"weights from weights{suffix}" in report.weights
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        want = other(x).numpy()
    session = ort.InferenceSession(report.path.read_bytes(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], want, rtol=1e-4, atol=1e-4)


def test_weights_of_another_model_name_the_keys(tmp_path: Path) -> None:
    state = module("residual").state_dict()
    state["conv.weight"] = torch.zeros(4, 4)
    state["head.9.weight"] = state.pop("head.2.weight")
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(ModelError) as caught:
        export("models_torch:residual", tmp_path / "x.onnx", weights=str(tmp_path / "other.pt"))
    text = str(caught.value)
    assert "1 weights are missing (head.2.weight)" in text
    assert "head.9.weight" in text
    assert "conv.weight is [4, 4], the model needs [8, 8, 3, 3]" in text


class Harmful:
    def __reduce__(self) -> Any:
        return (print, ("this ran",))


def test_a_pickle_in_a_weights_file_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"conv.weight": Harmful()}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="not a file of plain weights"):
        export("models_torch:residual", tmp_path / "x.onnx", weights=str(tmp_path / "evil.pt"))
    assert "this ran" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["torchvision:alexnet", "timm:levit_128s", "hf:google-bert/bert-base-uncased"])
def test_weights_that_cannot_be_downloaded_are_an_error_with_the_ways_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip({"hf": "transformers"}.get(name.split(":")[0], name.split(":")[0]))
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # the discard port: nothing listens
    with pytest.raises(ModelError, match="cannot be downloaded") as caught:
        export(name, tmp_path / "x.onnx")
    assert "--weights random" in str(caught.value)
    assert name.startswith("hf:") or "--weights FILE" in str(caught.value)
    assert list(tmp_path.glob("*.onnx")) == []


# --- sources ------------------------------------------------------------------------------------------------------


def test_what_is_a_torch_source() -> None:
    for name in ("torchvision:resnet50", "timm:x", "hf:bert", "a.b:c", "nets:make", "x.pt2", *SHORT_NAMES):
        assert is_torch_source(name) == (not SHORT_NAMES.get(name, name).startswith("zoo:")), name
    for name in ("zoo:lenet5", "net.onnx", "resnet50", "C:/models/net.onnx", "a b:c"):
        assert not is_torch_source(name), name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("torchvision:mobilenet_v9", "did you mean mobilenet_v2"),
        ("torchvision:fasterrcnn_resnet50_fpn", "detectors take a list of images"),
        ("torchvision:raft_small", "two images"),
        ("timm:levt_128", "did you mean levit_128"),
        ("no_such_module:make", "no Python module no_such_module"),
        ("models_torch:residul", "did you mean residual"),
        ("models_torch:not_a_module", "must return"),
        ("models_torch:fails", "the data set is on the other disk"),
        ("models_torch:branches", "decides by the values of a tensor"),
        ("nowhere.pt2", "no such file"),
        ("zoo:lenet5", "needs no export"),
    ],
)
def test_what_cannot_be_exported_says_why(name: str, says: str, tmp_path: Path) -> None:
    if name.split(":")[0] in ("torchvision", "timm"):
        pytest.importorskip(name.split(":")[0])
    with pytest.raises(ModelError, match=says):
        export(name, tmp_path / "x.onnx", weights="random" if name.startswith(("torchv", "timm")) else None)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"weights": "random:x"}, "whole number"),
        ({"shapes": {"nothing": (1, 3)}}, "no input nothing; its inputs are x"),
    ],
)
def test_senseless_arguments(arguments: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        export("models_torch:residual", tmp_path / "x.onnx", **arguments)


def test_a_missing_weights_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        export("models_torch:residual", tmp_path / "x.onnx", weights="nowhere.pt")


def test_without_torch_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "torch" else real(n, *a))
    with pytest.raises(MissingExtraError, match=r"\[torch\]\): .* install .*'torch>="):
        export("torchvision:alexnet", tmp_path / "x.onnx")


def test_shapes_change_the_example(tmp_path: Path) -> None:
    report = export("models_torch:named", tmp_path / "x.onnx", shapes={"left": (1, 6), "right": (1, 1)})
    session = ort.InferenceSession(report.path.read_bytes(), providers=["CPUExecutionProvider"])
    assert [i.shape for i in session.get_inputs()] == [["batch", 6], ["batch", 1]]


def test_an_exported_program(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch")
    original = module("residual")
    saved = torch.export.export(original, (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(saved, tmp_path / "net.pt2")
    report = export(str(tmp_path / "net.pt2"), tmp_path / "net.onnx")
    assert report.batch is None
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        want = original(x).numpy()
    session = ort.InferenceSession(report.path.read_bytes(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0], want, atol=1e-5)
    assert "stem.1" in layers(onnx.load(report.path))
    with pytest.raises(UsageError, match="weights inside"):
        export(str(tmp_path / "net.pt2"), tmp_path / "net.onnx", weights="random")


def test_an_exported_program_with_a_fixed_batch(tmp_path: Path) -> None:
    saved = torch.export.export(module("named"), (), {"left": torch.randn(2, 6), "right": torch.randn(2, 4)})
    torch.export.save(saved, tmp_path / "net.pt2")
    with pytest.raises(ModelError, match="positional"):
        export(str(tmp_path / "net.pt2"), tmp_path / "net.onnx")
    saved = torch.export.export(module("named"), (torch.randn(2, 6), torch.randn(2, 4)))
    torch.export.save(saved, tmp_path / "net.pt2")
    report = export(str(tmp_path / "net.pt2"), tmp_path / "net.onnx")
    assert report.batch == 2


def test_a_pickle_in_an_exported_program_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import io
    import zipfile

    saved = torch.export.export(module("named"), (torch.randn(2, 6), torch.randn(2, 4)))
    torch.export.save(saved, tmp_path / "net.pt2")
    buffer = io.BytesIO()
    torch.save(Harmful(), buffer)
    with zipfile.ZipFile(tmp_path / "net.pt2") as good, zipfile.ZipFile(tmp_path / "evil.pt2", "w") as evil:
        for name in good.namelist():
            data = good.read(name)
            evil.writestr(name, buffer.getvalue() if data[:2] == b"PK" else data)
    with pytest.raises(ModelError, match="could run code and is refused"):
        export(str(tmp_path / "evil.pt2"), tmp_path / "net.onnx")
    assert "this ran" not in capsys.readouterr().out
    (tmp_path / "text.pt2").write_text("not an archive")
    with pytest.raises(ModelError, match=r"not a \.pt2 archive"):
        export(str(tmp_path / "text.pt2"), tmp_path / "net.onnx")


def test_a_text_model_from_its_type_and_from_a_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50
    )
    transformers.BertModel(config, add_pooling_layer=True).eval().save_pretrained(tmp_path / "tiny")
    name = f"hf:{tmp_path / 'tiny'}"
    report = export(name, tmp_path / "tiny.onnx", shapes={"input_ids": (1, 12)})
    session = ort.InferenceSession(report.path.read_bytes(), providers=["CPUExecutionProvider"])
    assert {i.name: (i.type, i.shape) for i in session.get_inputs()} == {
        "input_ids": ("tensor(int64)", ["batch", 12]),
        "attention_mask": ("tensor(int64)", ["batch", 12]),
    }
    assert [o.name for o in session.get_outputs()] == ["last_hidden_state"]
    original = transformers.BertModel.from_pretrained(tmp_path / "tiny").eval()
    ids, mask = torch.arange(36).reshape(3, 12), torch.tensor([[1] * 12, [1] * 7 + [0] * 5, [1] * 12])
    with torch.no_grad():
        want = original(ids, mask).last_hidden_state.numpy()
    got = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert "pooler.dense" in report.unused  # its output is not among ours
    assert uncovered(onnx.load(report.path), [n for n, _ in original.named_modules()]) == []

    seeded = export(name, tmp_path / "random.onnx", weights="random:4")
    assert "random weights, seed 4" in seeded.weights


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


# --- a real one ---------------------------------------------------------------------------------------------------


def test_mobilenet_takes_pixels_and_knows_its_layers(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    from splitpoint.images import InputSpec

    report = export("mobile_net", tmp_path / "m.onnx", weights="random", shapes={"image": (1, 96, 64, 3)})
    assert report.source == "torchvision:mobilenet_v2"
    assert report.batch is None
    assert report.max_error < 1e-3
    model = onnx.load(report.path)
    session = ort.InferenceSession(report.path.read_bytes(), providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("image", "tensor(uint8)", ["batch", 96, 64, 3])
    ]
    spec = InputSpec.from_metadata(properties(model))
    assert spec is not None
    assert (spec.size, spec.mode, spec.task, len(spec.labels)) == ((96, 64), "shortest", "classify", 1000)
    assert layers(model)[:2] == ["preprocess", "preprocess"]
    original = models.mobilenet_v2(weights=None)
    assert uncovered(model, [n for n, _ in original.named_modules()]) == []
    aliases = json.loads(properties(model)["splitpoint.aliases"])
    assert aliases["features.2.conv.0.0"] == "features.2.conv.0.1/Conv"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("remembers", "its forward changes the buffer state, so that two calls with one input give two answers"),
        ("keeps", "its forward changes something that it keeps"),
        ("draws", r"it draws random numbers \(such as dropout with training=True\)"),
        ("scripted", r"it is TorchScript \(torch.jit\), .* return the nn.Module"),
        ("scripted_inside", "its 1 is TorchScript"),
        ("quantised", r"its 0 is quantised by PyTorch \(Linear\), .* export the float module"),
    ],
)
def test_why_a_module_cannot_be_exported(name: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"models_torch:{name} cannot be exported.*: {why}"):
        export(f"models_torch:{name}", tmp_path / "net.onnx")


def test_what_is_wrapped_around_a_module_is_taken_off(tmp_path: Path) -> None:
    export("models_torch:parallel", tmp_path / "net.onnx")
    assert layers(onnx.load(tmp_path / "net.onnx")) == ["0", "1"]


def test_a_module_without_inputs(tmp_path: Path) -> None:
    report = export("models_torch:nothing", tmp_path / "net.onnx")
    assert report.max_error < 1e-6
    assert not report.notes
