"""LeNet-5 with tables for klt, learnt from digits, and other digits to send."""

from __future__ import annotations

from functools import lru_cache

import msgspec
import numpy as np
from calibration_cases import ENGINE
from pictures import heldout_digits
from PIL import Image

from splitpoint.calibration.calibrations import Calibration, CalibrationRow, Quality, TensorTables
from splitpoint.calibration.codec_trials import calibrate
from splitpoint.calibration.tables import learn_tables
from splitpoint.codecs.klt_tables import KltTables
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.tensors import Array

#: The cut that tests use, and the tensor that crosses there.
AT, TENSOR = "pool1", "pool1"


@lru_cache(maxsize=1)
def lenet() -> Model:
    return load("zoo:lenet5")


@lru_cache(maxsize=1)
def digits() -> tuple[dict[str, Array], ...]:
    pictures, _ = heldout_digits()
    images = (Image.fromarray(picture).resize((32, 32)) for picture in pictures[:40])  # type: ignore[arg-type]
    return tuple({"image": np.asarray(image, np.uint8).reshape(1, 32, 32, 1)} for image in images)


def learnt(start: int, *cuts: str) -> tuple[TensorTables, ...]:
    """Tables from ten digits, for what crosses at these cuts."""
    graph = lenet().graph
    return learn_tables(lenet(), ENGINE, digits()[start : start + 10], [graph.cut(name) for name in cuts])


@lru_cache(maxsize=1)
def calibration() -> Calibration:
    """With tables for two cuts."""
    made = calibrate(lenet(), ENGINE, digits()[:1], codecs=["int8"], cuts=[lenet().graph.cut(AT)])
    return msgspec.structs.replace(made, tables=learnt(0, AT, "pool2"))


def rated(**kept: float) -> Calibration:
    """`calibration` with what 1,000 inputs say of levels of klt: ``klt_40=0.99``."""
    place = next(k for k, cut in enumerate(lenet().graph.prefixes()) if [t.name for t in cut.crossing] == [TENSOR])
    rows = []
    for name, share in kept.items():
        codec, _, level = name.partition("_")
        nbytes = 60 + int(level) if level else 2000
        quality = Quality(1000, share, 0.9, 0.1)
        rows.append(CalibrationRow(place, f"{codec}:{level}" if level else codec, (nbytes,), 200, quality, 0.1, 0.1))
    return msgspec.structs.replace(calibration(), rows=tuple(rows), inputs=1000)


@lru_cache(maxsize=1)
def other_calibration() -> Calibration:
    """The same from other digits: other tables."""
    return msgspec.structs.replace(calibration(), tables=learnt(20, AT))


def tables_for(calibration: Calibration, tensor: str = TENSOR) -> KltTables:
    return next(KltTables.from_bytes(t.data) for t in calibration.tables if t.tensor == tensor)


@lru_cache(maxsize=1)
def answers() -> tuple[Array, ...]:
    """What the whole model says of the digits from the tenth on."""
    session = ENGINE.compile(lenet().whole())
    try:
        return tuple(session.run(one)["logits"] for one in digits()[10:20])
    finally:
        session.close()
