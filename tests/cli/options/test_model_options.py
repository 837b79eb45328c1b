"""How MODEL is loaded, from the words of a command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitpoint.cli.options import model_options
from splitpoint.cli.options.model_options import Opening, is_local, parse_shapes, parse_values
from splitpoint.errors import MissingExtraError, UsageError


def test_shapes_and_values() -> None:
    assert parse_shapes(("images=1,3,640,640", "mask=1x8")) == {"images": (1, 3, 640, 640), "mask": (1, 8)}
    assert parse_values(("sr=16000", "sizes=1,16", "on=true", "x=0.5")) == {
        "sr": 16000, "sizes": [1, 16], "on": True, "x": 0.5,
    }  # fmt: skip
    for parse, wrong in ((parse_shapes, "images"), (parse_shapes, "=1"), (parse_values, "x=y"), (parse_values, "=1")):
        with pytest.raises(UsageError, match="NAME="):
            parse((wrong,))  # type: ignore[operator]


def test_a_model_is_here_or_the_servers() -> None:
    assert is_local("zoo:lenet5")
    assert is_local("net.onnx")
    assert not is_local("lenet5")
    assert Opening().here("lenet5") is None
    assert Opening().here(None) is None
    with pytest.raises(UsageError, match="the server's"):
        Opening(shapes=("x=1,2",)).here("lenet5")
    here = Opening().here("zoo:lenet5")
    assert here is not None
    assert here.name == "lenet5"


def test_weights_are_those_of_a_model_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPLITPOINT_CACHE", str(tmp_path))
    assert is_local("alexnet@random:0")
    drawn = Opening().here("le_net@random:1")
    assert drawn is not None
    assert drawn.name == "lenet5"
    by_option = Opening(weights="random:1").here("le_net")
    assert by_option is not None
    assert by_option.fingerprint == drawn.fingerprint
    assert Opening().here("le_net") is None  # the server's
    with pytest.raises(UsageError, match="name it, as in alexnet@random:0"):
        Opening(weights="random").here(None)
    with pytest.raises(UsageError, match="names its weights, and --weights random:2 others"):
        Opening(weights="random:2").here("le_net@random:1")


def test_without_pytorch_the_line_that_works_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object, **options: object) -> None:
        raise MissingExtraError("torch", "torch", "export alexnet")

    monkeypatch.setattr(model_options, "load", missing)
    with pytest.raises(UsageError, match="or take the server's as it is: alexnet without weights"):
        Opening().here("alexnet@random:0")
