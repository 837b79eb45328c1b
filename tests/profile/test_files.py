"""Profiles as files, which are looked at."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from profile_cases import example

from splitpoint.errors import (
    InputError,
    StorageError,
)
from splitpoint.models.model import Model
from splitpoint.profile.files import load_profile, parse_profile, profile_bytes, save_profile


def test_a_profile_loads_back_as_it_was_saved(lenet: Model, tmp_path: Path) -> None:
    profile = example(lenet, note="emulated: 4x slower")
    profile.costs()
    path = tmp_path / "edge.profile.json"
    save_profile(path, profile)
    loaded = load_profile(path)
    assert loaded == profile
    assert loaded.graph.chain() == lenet.graph.chain()
    assert json.loads(path.read_text())["graph"].keys() == {f.name for f in dataclasses.fields(lenet.graph)}
    loaded.require(lenet.fingerprint)
    assert "2 threads (emulated: 4x slower)" in loaded.where
    assert loaded.where != msgspec.structs.replace(loaded, threads=1).where


BROKEN: Sequence[tuple[str, Callable[[dict[str, Any]], object], str]] = (
    ("another version", lambda d: d.update(format=2), "of format 2, and this version reads format 1"),
    ("no fingerprint", lambda d: d.pop("fingerprint"), "is not a profile: make one"),
    ("missing nodes", lambda d: d["nodes"].pop(), r"16 nodes, but there are times of 15 \(at \$.nodes\)"),
    ("negative", lambda d: d["nodes"].__setitem__(3, -1.0), r"`float` >= 0.0 - at `\$.nodes\[3\]`"),
    ("not a number", lambda d: d["nodes"].__setitem__(3, None), r"Expected `float`, got `null` - at `\$.nodes"),
    ("too large", lambda d: d["whole"].__setitem__(0, 1e999), "is not a profile, or it is damaged"),
    ("order", lambda d: d["whole"].__setitem__(1, 1e7), r"not in order \(at \$.whole\)"),
    ("place", lambda d: d["segments"][0].update(prefix=17), r"not one of 0…16 \(at \$.segments\[0\]\)"),
    ("twice", lambda d: d["segments"][0].update(prefix=4), r"there twice.*\$.segments\[1\]"),
    ("tail", lambda d: d["segments"][1].update(tail=[1, 2, 3, -9]), r"`int` >= 0 - at `\$.segments\[1\].tail\[3\]`"),
    (
        "codec",
        lambda d: d["codecs"]["int8"].update(decode_fixed_ms=-1),
        r">= 0.0 - at `\$.codecs\[...\].decode_fixed_ms`",
    ),
    ("watts", lambda d: d["watts"].update(idle=-1), r"`float` >= 0.0 - at `\$.watts.idle`"),
    ("terminal", lambda d: d["machine"].update(processor="\x1b[2J"), r"control characters - at `\$.machine.processor`"),
    ("layer", lambda d: d["graph"]["nodes"][0].update(layer="a\nb"), "control characters"),
    ("backwards", lambda d: d["graph"]["nodes"].reverse(), "before it is made"),
    ("no tensor", lambda d: d["graph"]["tensors"].clear(), "damaged profile"),
    ("no size", lambda d: next(iter(d["graph"]["tensors"].values())).update(shape=["n"]), "no size of its own"),
    ("no type", lambda d: next(iter(d["graph"]["tensors"].values())).update(dtype="str"), "cannot be str"),
    ("no output", lambda d: d["graph"]["outputs"][0].update(name="z"), "nothing makes the output z"),
    ("flops", lambda d: d["graph"]["nodes"][0].update(flops=-5), "-5 is no"),
    ("threads", lambda d: d.update(threads=-1), r"`int` >= 0 - at `\$.threads`"),
    ("many threads", lambda d: d.update(threads=1 << 40), r"`int` <= 65536 - at `\$.threads`"),
    ("many cores", lambda d: d["machine"].update(cores=1 << 17), r"`int` <= 65536 - at `\$.machine.cores`"),
    ("longer than a day", lambda d: d["whole"].__setitem__(2, 1e300), r"`float` <= 86400000.0 - at `\$.whole\[2\]`"),
    (
        "a number without end",
        lambda d: d["graph"]["nodes"][0].update(flops=10**400),
        "no number of operations|not a prof",
    ),
    ("long text", lambda d: d.update(device="x" * 201), r"`str` of length <= 200 - at `\$.device`"),
    ("long name", lambda d: d["graph"]["nodes"][3].update(name="x" * 1001), "1001 characters, more than 1000"),
    ("huge tensor", lambda d: next(iter(d["graph"]["tensors"].values())).update(shape=[1 << 41]), "larger than 1 TiB"),
    ("huge power of two", lambda d: d["graph"]["inputs"][0].update(shape=[0] + [1 << 30] * 9), "larger than 1 TiB"),
    ("levels", lambda d: d["graph"]["nodes"][0].update(layer=".".join("a" * 101)), "101 levels of layers"),
)


@pytest.mark.parametrize(("change", "says"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_a_broken_profile_is_refused_with_a_sentence(
    lenet: Model, tmp_path: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    data = json.loads(profile_bytes(example(lenet)))
    change(data)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=says) as caught:
        load_profile(path)
    assert str(path) in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b'{"format": 1}', b"\xff\xfe", b"[" * 100_000, b'{"a": NaN}']
)
def test_other_files_are_no_profiles(data: bytes) -> None:
    with pytest.raises(InputError, match=r"^that file is not a profile"):
        parse_profile(data, "that file")


def test_a_file_that_is_not_there(tmp_path: Path, lenet: Model) -> None:
    with pytest.raises(InputError, match=r"there is no file .*none\.json: splitpoint profile"):
        load_profile(tmp_path / "none.json")
    with pytest.raises(StorageError, match="there is no folder"):
        save_profile(tmp_path / "no" / "p.json", example(lenet))
