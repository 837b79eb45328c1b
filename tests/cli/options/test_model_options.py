"""How MODEL is loaded, from the words of a command line."""

from __future__ import annotations

import pytest

from splitpoint.cli.options.model_options import Opening, is_local, parse_shapes, parse_values
from splitpoint.errors import UsageError


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
        Opening(weights="random").here("lenet5")
    here = Opening().here("zoo:lenet5")
    assert here is not None
    assert here.name == "lenet5"
