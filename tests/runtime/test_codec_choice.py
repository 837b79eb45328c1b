"""Which codec a crossing tensor travels with: what was asked for, the tensors at hand, what the server decodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from serving import affine

from splitpoint.codecs import open_codec
from splitpoint.errors import InputError, ServerError, UsageError
from splitpoint.graph import Cut
from splitpoint.runtime.codec_choice import check_decodable, choose, chooser, codecs_in


@pytest.fixture
def cut(tmp_path: Path) -> Cut:
    return affine(tmp_path).graph.cut("add1")


def test_one_for_all_that_it_takes_or_by_name(cut: Cut) -> None:
    (name,) = [t.name for t in cut.crossing]
    assert {n: c.name for n, c in choose(cut, "int8").items()} == {name: "int8"}
    assert {n: c.name for n, c in choose(cut, {name: "fp16"}).items()} == {name: "fp16"}
    assert choose(cut, "raw") == choose(cut, {name: "raw"}) == {}
    with pytest.raises(UsageError, match="does not cross at add1"):
        choose(cut, {"y9": "int8"})
    with pytest.raises(UsageError, match="name another codec for it, or raw"):
        choose(cut, {name: "jpeg:90"})
    assert choose(cut, "jpeg:90") == choose(cut, "raw") == {}


def test_what_the_server_cannot_decode_is_said_before_it_is_sent() -> None:
    known = codecs_in(("codec:int8", "crc32", "codec:jpeg"))
    assert known == {"int8", "jpeg"}
    check_decodable({"x": open_codec("int8"), "y": open_codec("jpeg:90")}, known)
    with pytest.raises(ServerError, match=r"cannot decode fp16 \(it knows int8, jpeg\)"):
        check_decodable({"x": open_codec("fp16")}, known)
    with pytest.raises(ServerError, match="it knows no codec"):
        check_decodable({"x": open_codec("fp16")}, ())


def test_what_its_codec_does_not_take_after_all_travels_raw_or_is_refused() -> None:
    codecs = {"x": open_codec("fp16")}
    floats, whole = np.zeros((1, 4), np.float32), np.zeros((1, 4), np.int64)
    choice = chooser(["x", "y"], codecs, strict=False)
    assert [c and c.name for c in choice([floats, floats])] == ["fp16", None]
    assert list(choice([whole, floats])) == [None, None]
    with pytest.raises(InputError, match="does not take tensor"):
        chooser(["x", "y"], codecs, strict=True)([whole, floats])
