"""How what crosses travels, and what that may cost: --codec, --calib, --agreement, --max-drop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from splitpoint.calibration.calibrations import Calibration
from splitpoint.calibration.files import load_calibration
from splitpoint.calibration.tables import tables_of
from splitpoint.cli.options import PLANNING, together
from splitpoint.cli.options.quantities import AGREEMENT, BYTES, SHARE
from splitpoint.codecs import known_names
from splitpoint.errors import UsageError
from splitpoint.models.model import Model
from splitpoint.models.names import full_name
from splitpoint.models.zoo import zoo_path


def _option(*names: str, **more: Any) -> Callable[[Any], Any]:
    return together(click.option(*names, **more), section=PLANNING)


codec_choice_option = _option(
    "--codec", "codecs", multiple=True, metavar="NAME|TENSOR=NAME",
    help=f"How what crosses travels: {known_names()}. For all that it takes, or for one tensor (may be given several "
    "times). Default: raw.",
)  # fmt: skip
codec_names_option = _option(
    "--codec", "codecs", multiple=True, metavar="NAME",
    help=f"What may cross encoded: {known_names()}. Several may be given.",
)  # fmt: skip
fidelity_options = together(
    click.option("--agreement", type=AGREEMENT, metavar="SHARE",
                 help="The least share of answers that codecs and pictures must keep, such as 98% (needs a "
                      "calibration). plan and compare take what the calibration measured; run, which chooses while "
                      "nobody looks, the lower end of that (95 % confidence)."),
    click.option("--max-drop", type=SHARE, metavar="SHARE",
                 help="The most of that share that may be lost, such as 1%, with 95 % confidence: stricter than "
                      "--agreement 99%, by how few inputs the calibration had (needs a calibration)."),
    click.option("--max-bytes", type=BYTES, metavar="SIZE",
                 help="The most that a request sends, such as 4kB. klt takes a coarser step for a frame that has more. "
                      "Where nothing else says how well answers must be kept: as well as they can be within that, by "
                      "the calibration."),
    section=PLANNING,
)  # fmt: skip
#: What `splitpoint calibrate-codecs` calls a calibration beside MODEL.onnx.
BESIDE = ".calib.json"
_FILE = click.Path(path_type=Path, dir_okay=False)
_THERE = f"Default: MODEL{BESIDE} beside MODEL.onnx, if it is there."
calibration_option = _option(
    "--calibration", "--calib", "calib", type=_FILE, metavar="FILE",
    help=f"What codecs cost in accuracy, and the tables of klt, from splitpoint calibrate-codecs. {_THERE}",
)  # fmt: skip
calibrations_option = _option(
    "--calibration", "--calib", "calibs", type=_FILE, multiple=True, metavar="FILE",
    help=f"The tables of klt for one of the models, from splitpoint calibrate-codecs; one a model. {_THERE}",
)  # fmt: skip


def beside(name: str) -> Path | None:
    """Where the calibration of the model called `name` lies, if that is a file's or the zoo's."""
    text = full_name(name)
    path = zoo_path(text[4:]) if text.startswith("zoo:") else Path(text)
    return path.with_suffix(BESIDE) if path.suffix == ".onnx" else None


def calibration_for(name: str | None, given: Path | None, model: Model | None) -> Calibration | None:
    """What every command takes as the calibration: the file that is `given`, else what lies beside the model called
    `name`, if it is `model` on this machine. InputError if it is another model's."""
    path = given or (beside(name) if name and model is not None else None)
    if path is None or not (given or path.exists()):
        return None
    calibration = load_calibration(path)
    ours = given is None and name is not None and full_name(name).startswith("zoo:")
    if ours and model is not None and calibration.fingerprint != model.fingerprint:
        return None  # the zoo's, with random weights
    if model is not None:
        tables_of(calibration, model, str(path))
    return calibration


def calibration_beside(name: str | None, fingerprint: str) -> Calibration | None:
    """What lies beside the model that is called `name` here, if that is the model with this `fingerprint`."""
    path = beside(name) if name is not None else None
    if path is None or not path.exists():
        return None
    calibration = load_calibration(path)
    return calibration if calibration.fingerprint == fingerprint else None


def parse_codecs(codecs: tuple[str, ...]) -> str | Mapping[str, str]:
    """``("int8",)`` → ``"int8"``; ``("h=int8", "image=jpeg:90")`` → by tensor; ``"raw"`` if there are none.

    UsageError for anything else. Whether there are such codecs and tensors is seen when they are used.
    """
    if not codecs:
        return "raw"
    if len(codecs) == 1 and "=" not in codecs[0]:
        return codecs[0]
    by_name: dict[str, str] = {}
    for text in codecs:
        name, equals, codec = text.rpartition("=")
        if not equals or not name or not codec:
            raise UsageError(f"--codec is one codec for all, or TENSOR=CODEC for each, not {' and '.join(codecs)}")
        if name in by_name:
            raise UsageError(f"--codec names tensor {name} twice")
        by_name[name] = codec
    return by_name
