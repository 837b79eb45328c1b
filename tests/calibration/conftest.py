"""A network, inputs for it, and what a calibration finds."""

from __future__ import annotations

import numpy as np
import pytest
from calibration_cases import ENGINE, NAMES
from pictures import heldout_digits
from PIL import Image

from splitpoint.calibration.calibrations import Calibration
from splitpoint.calibration.codec_trials import calibrate
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.tensors import Array


@pytest.fixture(scope="module")
def lenet() -> Model:
    return load("zoo:lenet5")


@pytest.fixture(scope="module")
def inputs(lenet: Model) -> list[dict[str, Array]]:
    spec = lenet.inputs[0].bind(lenet.graph.assumed)
    pictures, _ = heldout_digits()
    made = []
    for picture in pictures[:12]:
        image = Image.fromarray(picture).resize((spec.shape[2], spec.shape[1]))  # type: ignore[arg-type]
        made.append({spec.name: np.asarray(image, np.uint8).reshape([int(n) for n in spec.shape])})
    return made


@pytest.fixture(scope="module")
def found(lenet: Model, inputs: list[dict[str, Array]]) -> Calibration:
    return calibrate(lenet, ENGINE, inputs, codecs=NAMES)
