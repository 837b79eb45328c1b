"""--codec: one codec for all, or one by tensor; which calibration is taken."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tabled import calibration, lenet

from splitpoint.calibration.files import save_calibration
from splitpoint.cli.options.codecs import beside, calibration_for, parse_codecs
from splitpoint.errors import InputError, UsageError
from splitpoint.models.zoo import zoo_path


def test_codecs_for_all_or_by_tensor() -> None:
    assert parse_codecs(()) == "raw"
    assert parse_codecs(("int8",)) == "int8"
    assert parse_codecs(("h=int8", "a=b=jpeg:90")) == {"h": "int8", "a=b": "jpeg:90"}
    for wrong in (("int8", "fp16"), ("x=",), ("=int8",), ("x=int8", "x=fp16")):
        with pytest.raises(UsageError, match="--codec"):
            parse_codecs(wrong)


def test_the_calibration_is_the_given_one_or_what_lies_beside_the_model(tmp_path: Path) -> None:
    net, given = str(tmp_path / "net.onnx"), tmp_path / "other.json"
    assert beside(net) == tmp_path / "net.calib.json"
    assert beside("lenet5") == beside("zoo:lenet5") == zoo_path("lenet5").with_name("lenet5.calib.json")
    assert beside("torchvision:resnet18") is None
    assert calibration_for(net, None, lenet()) is None
    save_calibration(tmp_path / "net.calib.json", calibration())
    save_calibration(given, msgspec.structs.replace(calibration(), inputs=7))
    for name, asked, model, inputs in (
        (net, None, lenet(), 1), (net, given, lenet(), 7), ("net", given, None, 7), (None, given, None, 7),
    ):  # fmt: skip
        taken = calibration_for(name, asked, model)
        assert taken is not None
        assert taken.inputs == inputs
    assert calibration_for(net, None, None) is None, "the server's model, whatever it is called"
    save_calibration(tmp_path / "net.calib.json", msgspec.structs.replace(calibration(), fingerprint="0" * 64))
    with pytest.raises(InputError, match=r"net\.calib\.json is of lenet5 000000000000, not of lenet5"):
        calibration_for(net, None, lenet())
