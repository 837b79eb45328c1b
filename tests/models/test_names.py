"""What models are called: short names, files, and what a server has under which name."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitpoint import wire
from splitpoint.errors import ModelError, UsageError
from splitpoint.models.names import (
    BUILT,
    SHORT_NAMES,
    TORCHVISION,
    full_name,
    is_named,
    name_of,
    names_of,
    offered,
    with_weights,
)  # fmt: skip
from splitpoint.runtime.model_choice import choose_model


def served(*names: str) -> list[wire.ModelInfo]:
    return [wire.ModelInfo(name, f"{k:064x}") for k, name in enumerate(names)]


@pytest.mark.parametrize("short", [s for s, full in SHORT_NAMES.items() if name_of(full) != s])
def test_a_served_name_comes_before_what_it_is_short_for(short: str) -> None:
    full = name_of(SHORT_NAMES[short])
    assert choose_model(served("other", short), short, None).name == short
    assert choose_model(served(full, short), short, None).name == short
    assert choose_model(served(full, short), full, None).name == full
    assert choose_model(served("other", full), short, None).name == full
    with pytest.raises(ModelError, match=f"the server has no model {short}"):
        choose_model(served("other"), short, None)


def test_names_with_dots_and_schemes() -> None:
    assert choose_model(served("net", "net.v2"), "net.v2", None).name == "net.v2"
    with pytest.raises(ModelError, match=r"no model net\.v2"):
        choose_model(served("net"), "net.v2", None)
    assert choose_model(served("resnet50"), "torchvision:resnet50", None).name == "resnet50"
    assert choose_model(served("net.v2"), "some/net.v2.onnx", None).name == "net.v2"
    assert names_of("lenet") == ("lenet", "lenet5")


def test_one_model_of_two_names_has_both() -> None:
    same = [wire.ModelInfo(name, "a" * 64) for name in ("first", "second")]
    assert [choose_model(same, name, None).name for name in ("first", "second", None, "aaaaaaaa")] == [
        "first", "second", "first", "first",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="several models, so name one"):
        choose_model([*same, *served("third")], None, None)


@pytest.mark.parametrize("name", ["ctl\x1b[31m", "lat\udce9"])
def test_a_file_whose_name_is_no_text_is_called_as_it_was_typed(name: str) -> None:
    assert choose_model(served(name_of(f"folder/{name}.onnx")), name, None).fingerprint == f"{0:064x}"


def test_a_file_called_just_so_is_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert full_name("lenet") == "zoo:lenet5"
    Path("lenet").write_bytes(b"")
    assert full_name("lenet") == "lenet"


@pytest.mark.parametrize(
    ("typed", "offer"),
    [
        ("resnet50", "; did you mean torchvision:resnet50?"), ("VGG-19", "; did you mean torchvision:vgg19?"),
        ("resnet5", "torchvision:resnet50"), ("alexnett", "did you mean alexnet"), ("nowhere", ""),
    ],
)  # fmt: skip
def test_a_name_of_torchvision_is_offered_with_where_it_is_from(typed: str, offer: str) -> None:
    phrase = offered(typed, SHORT_NAMES)
    assert offer in phrase
    assert bool(phrase) == bool(offer)


@pytest.mark.torch
def test_the_names_of_torchvision_are_its_own() -> None:
    models = pytest.importorskip("torchvision").models
    assert set(TORCHVISION) <= set(models.list_models(module=models))


def test_weights_may_stand_behind_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_weights("le_net@random") == ("le_net", "random")
    assert with_weights("torchvision:resnet50@weights/own.pth") == ("torchvision:resnet50", "weights/own.pth")
    assert with_weights("hf:user/model@main") == ("hf:user/model@main", None)
    assert full_name("mobilenet@random:7") == "torchvision:mobilenet_v2"
    assert name_of("alex_net@random:0") == "alexnet"
    assert names_of("alex_net@random:0") == ("alex_net", "alexnet")
    assert is_named(f"{BUILT}le_net")
    assert is_named("alexnet@random:7")
    assert not is_named("alexnet@/elsewhere/weights.pth")
    assert name_of(f"{BUILT}le_net@random:3") == "le_net"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net@random").write_bytes(b"")
    assert with_weights("net@random") == ("net@random", None)
